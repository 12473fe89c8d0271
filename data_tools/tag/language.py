"""`language`: how likely a text is in each of some languages."""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from data_tools.documents import Line
from data_tools.tag.fasttext_file import read_labels
from data_tools.tag.fasttext_model import FastText
from data_tools.tag.list_files import file_problems
from data_tools.tag.model_config import LanguageConfig, Unit
from data_tools.tag.tagger import Scores
from data_tools.tag.units import DECIMALS, n_chars, score_units
from olmo_train.errors import ConfigError

OTHER = "other"
MOST_CHARS = 100_000
"""That `max_chars` may be: the first piece of a long text has them."""


class _Model(Protocol):
    labels: list[str]

    def scores(self, text: str) -> dict[str, float]: ...


class Langid:
    """py3langid's model: naive Bayes over byte n-grams that an automaton finds; its loop over bytes is compiled here.

    Raises:
        ConfigError: no package, or another version than the one whose parts are known.
    """

    def __init__(self) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise ConfigError(f"language needs py3langid ({error}); pip install 'olmo-train[data]', or set model") from None
        model = LanguageIdentifier.from_model_file(MODEL_FILE)
        try:
            self._classes, self._log_priors = list(model.nb_classes), np.asarray(model.nb_pc, np.float64)
            self._table = np.asarray(model.nb_ptc)
            self._next, self._row = np.asarray(model.tk_nextmove), np.asarray(model.tk_row)
            self._feature = np.asarray(model.tk_output, np.int32)
        except AttributeError as error:
            raise ConfigError(
                f"language knows py3langid 0.4, not the version installed: {error}; install 0.4, or set model"
            ) from None
        self.labels = list(dict.fromkeys(self._classes))
        self._counts = np.zeros(len(self._table), np.int32)
        self._seen = np.zeros(len(self._table), np.int32)

    def scores(self, text: str) -> dict[str, float]:
        """Probability of every language; all alike where nothing is known of a text."""
        from data_tools.tag.language_kernels import count_features

        text = unicodedata.normalize("NFC", text.lower() if text.isupper() else text)
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        n = count_features(self._next, self._row, self._feature, data, self._counts, self._seen)
        seen = self._seen[:n]
        # Long texts see most features: their rows a few thousand at a time, so that memory does not grow.
        sums = np.zeros(len(self._classes)) if n == 0 else self._log_priors.copy()
        for first in range(0, n, 4096):
            some = seen[first : first + 4096]
            sums += np.log1p(self._counts[some].astype(np.float32)) @ self._table[some].astype(np.float32)
        self._counts[seen] = 0
        # py3langid divides by the root of the length, so that certainty does not grow with length alone
        powers = np.exp((sums - sums.max()) / np.sqrt(max(len(data), 1)))
        found: dict[str, float] = {}
        for label, value in zip(self._classes, (powers / powers.sum()).tolist(), strict=True):
            found[label] = found.get(label, 0.0) + value
        return found


@lru_cache(maxsize=1)
def load_langid() -> Langid:
    """The model, once per process: it takes a second to unpack, and 70 MB."""
    return Langid()


class LanguageTagger:
    """See LanguageConfig."""

    name = "language"

    def __init__(self, config: LanguageConfig) -> None:
        self._config = config
        self._model: _Model = load_langid() if config.model is None else FastText(Path(config.model))
        self._document = [*config.languages, OTHER]
        self._paragraph = [f"{language}_paragraph" for language in self._document]
        self.types: Sequence[str] = (*self._document, *(self._paragraph if config.paragraphs else ()))

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """Probabilities of each language and of all others, of each document; and of its paragraphs."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        if self._config.max_chars:
            values, length = self._score(next(line.pieces(), "")), n_chars(line)
            found = {name: [[0, length, round(value, DECIMALS)]] for name, value in zip(self._document, values, strict=True)}
        else:
            found = score_units(line, Unit.DOCUMENT, self._document, self._score)
        if self._config.paragraphs:
            found.update(score_units(line, Unit.PARAGRAPH, self._paragraph, self._score))
        return found

    def _score(self, text: str) -> list[float]:
        scores = self._model.scores(text[: self._config.max_chars or None])
        wanted = [scores.get(language, 0.0) for language in self._config.languages]
        return [*wanted, max(0.0, 1 - sum(wanted))]


def language_problems(field: str, config: LanguageConfig) -> list[str]:
    """What is wrong with the settings."""
    problems = []
    if not 0 <= config.max_chars <= MOST_CHARS:
        problems.append(f"{field}.max_chars={config.max_chars} is not in 0 .. {MOST_CHARS}; 0 looks at all of a text")
    if not config.languages or len(set(config.languages)) < len(config.languages) or OTHER in config.languages:
        problems.append(f"{field}.languages={config.languages} must name each language once; `{OTHER}` is what is left")
    try:
        if config.model is None:
            known, where = load_langid().labels, "py3langid"
        else:
            if missing := file_problems(f"{field}.model", config.model, None):
                return problems + missing
            known, where = read_labels(Path(config.model)), config.model
    except ConfigError as error:
        return [*problems, f"{field}.model: {error}"]
    if unknown := [language for language in config.languages if language not in known and language != OTHER]:
        problems.append(f"{field}.languages: {where} does not know {', '.join(unknown)}; it knows {', '.join(known)}")
    return problems
