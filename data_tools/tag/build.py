"""Which tagger a name stands for, and all of them together over a batch of documents."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data_tools.documents import Line
from data_tools.tag import c4, code_words, fineweb, gopher, length, repetition
from data_tools.tag.build_models import MODEL_TAGGERS, build_model_tagger
from data_tools.tag.config import TagConfig
from data_tools.tag.scanner import Needs, Scanned, Scanner
from data_tools.tag.tagger import Tagger
from data_tools.tokenize.encoder import Encoder
from olmo_train.schema import to_dataclass, to_plain

NEEDS = {
    "gopher": gopher.NEEDS,
    "c4": c4.NEEDS,
    "fineweb": fineweb.NEEDS,
    "length": length.NEEDS,
    "code_words": code_words.NEEDS,
}
"""Of the rules that share one pass over the text."""


class Taggers:
    """All that a config names. Made once per process."""

    def __init__(self, config: TagConfig) -> None:
        self._config, names = config, config.taggers
        self._rules = [name for name in names if name in NEEDS]
        self._scanner = Scanner(_together([NEEDS[name] for name in self._rules]), config.memory_mb)
        self._naughty = c4.NaughtyWords(Path(config.c4.naughty_words)) if "c4" in names and config.c4.naughty_words else None
        self._repetitions: repetition.Repetitions | None = None
        if config.tokenizer and ("repetition" in names or "length" in names):
            self._repetitions = repetition.Repetitions(Encoder(Path(config.tokenizer)), config.repetition)
        self._models: dict[str, Tagger] = {
            name: build_model_tagger(name, config.models) for name in names if name in MODEL_TAGGERS
        }
        self._full = {
            (tagger, kind): f"{config.name}__{tagger}__{kind}" for tagger, kinds in self._types().items() for kind in kinds
        }

    def _types(self) -> dict[str, Sequence[str]]:
        """Of each tagger, in the order of the config."""
        models = {name: (tagger.name, tagger.types) for name, tagger in self._models.items()}
        return dict(models[name] if name in models else (name, self._rule_types(name)) for name in self._config.taggers)

    def _rule_types(self, name: str) -> Sequence[str]:
        match name:
            case "gopher":
                return gopher.TYPES
            case "c4":
                return (*c4.TYPES, c4.NAUGHTY) if self._naughty else c4.TYPES
            case "fineweb":
                return fineweb.TYPES
            case "length":
                return (*length.TYPES, length.TOKENS) if self._repetitions else length.TYPES
            case "code_words":
                return code_words.TYPES
            case "repetition":
                return repetition.TYPES
        raise AssertionError(name)

    @property
    def attributes(self) -> list[str]:
        """Full names of all that may be written."""
        return list(self._full.values())

    def tag(self, lines: list[Line], scratch: Path | None = None) -> list[tuple[dict[str, Any], int, int | None]]:
        """(attributes, bytes of text, tokens) of each document, in order. `scratch`: see Scanner.scan."""
        tokens: Sequence[repetition.Tokenized | None] = [None] * len(lines)
        if self._repetitions is not None:
            tokens = self._repetitions.find(lines)
        modelled = [(tagger.name, tagger.tag(lines)) for tagger in self._models.values()]
        told = []
        for i, (line, tokenized) in enumerate(zip(lines, tokens, strict=True)):
            found = self._scanner.scan(line, scratch)
            attributes: dict[str, Any] = {}
            for name in self._rules:
                self._put(attributes, name, self._rule(name, found, line, tokenized))
            if tokenized is not None and "repetition" in self._config.taggers:
                self._put(attributes, "repetition", repetition.repetition_scores(tokenized, found.whole[1]))
            for name, scores in modelled:
                self._put(attributes, name, scores[i])
            told.append((attributes, found.n_bytes, tokenized.n_tokens if tokenized is not None else None))
        return told

    def _put(self, attributes: dict[str, Any], tagger: str, scores: dict[str, Any]) -> None:
        for kind, spans in scores.items():
            attributes[self._full[tagger, kind]] = spans

    def _rule(self, name: str, found: Scanned, line: Line, tokens: repetition.Tokenized | None) -> dict[str, Any]:
        match name:
            case "gopher":
                return gopher.gopher_scores(found)
            case "c4":
                return c4.c4_scores(found, self._naughty is not None and self._naughty.are_in(line))
            case "fineweb":
                return fineweb.fineweb_scores(found)
            case "length":
                return length.length_scores(found, tokens.n_tokens if tokens is not None else None)
            case "code_words":
                return code_words.code_words_scores(found, line, self._config.code_words.stars)
        raise AssertionError(name)


def _together(needs: list[Needs]) -> Needs:
    """What all of them ask for."""
    return Needs(
        max((need.grams for need in needs), default=0),
        any(need.lines for need in needs),
        any(need.paragraphs for need in needs),
        any(need.spans for need in needs),
    )


def build_taggers(config: TagConfig) -> Taggers:
    """Those of this process: made once for equal configs."""
    return _build(json.dumps(to_plain(config), sort_keys=True))


@cache
def _build(config: str) -> Taggers:
    return Taggers(to_dataclass(json.loads(config), TagConfig))
