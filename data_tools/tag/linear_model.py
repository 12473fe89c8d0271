"""`linear`: a user's weights of words and n-grams, as a JSON file that any trainer can write (docs/tag_models.md).

{"format": "olmo-linear-1", "ngram_min": 1, "ngram_max": 2, "lowercase": true, "sublinear_tf": false, "normalize": true,
 "sigmoid": true, "bias": -0.3, "terms": ["good", "very good", ...], "idf": [1.2, ...], "weights": [0.7, ...]}
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from data_tools.documents import Line
from data_tools.tag.model_config import LinearModelConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.units import score_units
from olmo_train.errors import ConfigError

FORMAT = "olmo-linear-1"
_WORD = re.compile(r"\b\w\w+\b")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    terms: list[str]
    """Words of two or more letters, or n-grams of them with single spaces."""
    weights: list[float]
    bias: float
    idf: list[float] | None = None
    """A factor for each term's count; None: 1."""
    ngram_min: int = 1
    ngram_max: int = 1
    lowercase: bool = True
    sublinear_tf: bool = False
    """1 + ln(count) instead of the count."""
    normalize: bool = True
    """Values of a text divided by their Euclidean norm."""
    sigmoid: bool = True
    """The sum becomes a probability."""


class LinearModel:
    """One model: sum of value * weight over the terms of a text, plus bias; as scikit-learn has it.

    Raises:
        ConfigError: the file is none, or its parts do not fit together.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = msgspec.json.decode(path.read_bytes(), type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no linear model: {error}; docs/tag_models.md says how to write one") from None
        idf = model.idf or [1.0] * len(model.terms)
        if model.format != FORMAT:
            raise ConfigError(f"{path} is no linear model: format is {model.format!r}, not {FORMAT!r}")
        if not model.terms or not len(model.terms) == len(idf) == len(model.weights) == len(set(model.terms)):
            raise ConfigError(
                f"{path}: {len(set(model.terms))} different terms, {len(model.weights)} weights and {len(idf)} values of idf; "
                "each term has one of each, and there is at least one"
            )
        if not 1 <= model.ngram_min <= model.ngram_max:
            raise ConfigError(
                f"{path}: n-grams of {model.ngram_min} to {model.ngram_max} words; it takes 1 <= ngram_min <= ngram_max"
            )
        self._model, self._terms = model, dict(zip(model.terms, zip(idf, model.weights, strict=True), strict=True))

    def score(self, text: str) -> float:
        """Of one text."""
        model = self._model
        words = _WORD.findall(text.lower() if model.lowercase else text)
        total = squares = 0.0
        for n in range(model.ngram_min, model.ngram_max + 1):
            grams = words if n == 1 else [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
            for gram, count in Counter(grams).items():
                if gram in self._terms:
                    idf, weight = self._terms[gram]
                    value = (1 + math.log(count) if model.sublinear_tf else count) * idf
                    total += value * weight
                    squares += value * value
        if model.normalize and squares:
            total /= math.sqrt(squares)
        total += model.bias
        if not model.sigmoid:
            return total
        return 1 / (1 + math.exp(-total)) if total >= 0 else math.exp(total) / (1 + math.exp(total))


class LinearTagger:
    """See LinearModelConfig."""

    name = "linear"

    def __init__(self, models: Sequence[LinearModelConfig]) -> None:
        self._models = [(config, LinearModel(Path(config.path))) for config in models]
        self.types: Sequence[str] = tuple(config.name for config in models)

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """The score of each model, of the document or of its paragraphs or sentences."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        found: Scores = {}
        for config, model in self._models:

            def score(text: str, model: LinearModel = model) -> list[float]:
                return [model.score(text)]

            found.update(score_units(line, config.unit, [config.name], score, config.min_score))
        return found
