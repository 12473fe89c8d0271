"""`fasttext`: classifiers that a user has as files: toxicity, quality (DCLM's, Dolma 1.7's), languages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.documents import Line
from data_tools.tag.fasttext_file import LABEL, read_labels
from data_tools.tag.model_config import FastTextModelConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.units import score_units
from olmo_train.errors import ConfigError


class FastText:
    """One model in memory. `path` is checked before the library sees it.

    Raises:
        ConfigError: no library, or no whole model.
    """

    def __init__(self, path: Path) -> None:
        self.labels = read_labels(path)
        try:
            from fasttext.FastText import _FastText
        except ImportError as error:
            raise ConfigError(f"{path} needs fastText ({error}); pip install 'olmo-train[data_models]'") from None
        self._model: Any = _FastText(str(path))  # `load_model` prints a warning

    def scores(self, text: str) -> dict[str, float]:
        """Probability of every label of a text, whose lines are joined by spaces as DCLM does.

        Source: mlfoundations/dclm baselines/mappers/enrichers/quality_prediction_enrichers_calc_fasttext.py
        """
        labels, values = self._model.predict(" ".join(text.strip().splitlines()), k=-1)
        return {label.removeprefix(LABEL): min(max(float(value), 0.0), 1.0) for label, value in zip(labels, values, strict=True)}


class FastTextTagger:
    """See FastTextModelConfig."""

    name = "fasttext"

    def __init__(self, models: Sequence[FastTextModelConfig]) -> None:
        self._models = [(config, FastText(Path(config.path))) for config in models]
        self.types: Sequence[str] = tuple(name for config, model in self._models for name in _types(config, model.labels))

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """Scores of the labels of each model, of the document or of its paragraphs or sentences."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        found: Scores = {}
        for config, model in self._models:
            labels = config.labels or model.labels

            def score(
                text: str, model: FastText = model, labels: list[str] = labels, small: bool = config.lowercase
            ) -> list[float]:
                scores = model.scores(text.lower() if small else text)
                return [scores.get(label, 0.0) for label in labels]

            found.update(score_units(line, config.unit, _types(config, model.labels), score, config.min_score))
        return found


def _types(config: FastTextModelConfig, labels: list[str]) -> list[str]:
    return [f"{config.name}_{label}" for label in config.labels or labels]


def fasttext_problems(field: str, config: FastTextModelConfig) -> list[str]:
    """What is wrong with a model whose file is there."""
    try:
        labels = read_labels(Path(config.path))
    except ConfigError as error:
        return [f"{field}.path: {error}"]
    missing = [label for label in config.labels if label not in labels]
    few = ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")
    return [f"{field}.labels: {config.path} has no label {', '.join(missing)}; it has {few}"] if missing else []
