"""`onnx`: classifiers and regressors over tokens that a user has as model.onnx and tokenizer.json, as FineWeb-Edu's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_tools.documents import Line
from data_tools.tag.model_config import Activation, OnnxModelConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.units import DECIMALS, n_chars
from olmo_train.errors import ConfigError

STEP = 64
"""Texts are filled up to a multiple of so many tokens."""
CHARS_PER_TOKEN = 32
"""More characters of a text than this times `max_tokens` are not looked at."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxModel:
    """One model in memory.

    A text's score must not depend on those beside it: products of matrices round differently in other shapes, so every batch has
    `batch_size` rows, and a text is only ever filled up to its own length's next multiple of STEP.

    Raises:
        ConfigError: no library, a file that is no model, inputs or outputs of another kind, a provider that is not there.
    """

    def __init__(self, config: OnnxModelConfig) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"{config.path} needs ONNX Runtime ({error}); pip install 'olmo-train[data_models]'") from None
        providers = onnxruntime.get_available_providers()
        if config.provider not in providers:
            raise ConfigError(f"provider={config.provider} is not there; this ONNX Runtime has {', '.join(providers)}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # processes share the cores out
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(config.path, options, [config.provider])
        except Exception as error:  # its classes have no common base but this
            raise ConfigError(f"{config.path} cannot be loaded as an ONNX model: {_short(error)}; export it again") from None
        try:
            self._tokenizer = Tokenizer.from_file(config.tokenizer)
        except Exception as error:  # plain Exception is what it raises
            raise ConfigError(f"{config.tokenizer} is no tokenizer.json: {_short(error)}") from None
        self._tokenizer.enable_truncation(config.max_tokens)
        self._tokenizer.no_padding()
        self._config = config
        self._inputs = {found.name: np.int32 if "int32" in found.type else np.int64 for found in self._session.get_inputs()}
        if unknown := [name for name in self._inputs if name not in INPUTS]:
            raise ConfigError(f"{config.path} wants the inputs {', '.join(unknown)}; it may have {', '.join(INPUTS)} only")
        n_outputs = self._run([[0]]).shape[1]
        if n_outputs != max(len(config.labels), 1):
            raise ConfigError(f"{config.path} has {n_outputs} outputs, and labels names {len(config.labels)}; name each")

    def scores(self, texts: Sequence[str]) -> list[list[float]]:
        """Outputs of each text."""
        most = self._config.max_tokens * CHARS_PER_TOKEN
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch([text[:most] for text in texts])]
        found: list[list[float]] = [[] for _ in texts]
        shapes: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            shapes.setdefault(-(-max(len(row), 1) // STEP), []).append(i)
        for members in shapes.values():
            for first in range(0, len(members), self._config.batch_size):
                batch = members[first : first + self._config.batch_size]
                for i, values in zip(batch, self._run([rows[i] for i in batch]), strict=True):
                    found[i] = [round(float(value), DECIMALS) for value in values]
        return found

    def _run(self, rows: list[list[int]]) -> np.ndarray:
        """(rows, outputs) float64."""
        size = min(-(-max(max(map(len, rows)), 1) // STEP) * STEP, self._config.max_tokens)
        ids = np.zeros((self._config.batch_size, size), np.int64)
        mask = np.zeros_like(ids)
        mask[:, 0] = 1  # an empty text would be divided by zero
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        try:
            output = self._session.run(None, {name: given[name].astype(kind) for name, kind in self._inputs.items()})[0]
        except Exception as error:  # as above
            raise ConfigError(f"{self._config.path} fails on {ids.shape} tokens: {_short(error)}; export it again") from None
        values = np.asarray(output, np.float64).reshape(len(ids), -1)[: len(rows)]
        match self._config.activation:
            case Activation.SIGMOID:
                return 1 / (1 + np.exp(-values))
            case Activation.SOFTMAX:
                powers = np.exp(values - values.max(1, keepdims=True))
                return np.asarray(powers / powers.sum(1, keepdims=True))
            case Activation.NONE:
                return values


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class OnnxTagger:
    """See OnnxModelConfig."""

    name = "onnx"

    def __init__(self, models: Sequence[OnnxModelConfig]) -> None:
        self._models = [(_types(config), OnnxModel(config)) for config in models]
        self.types: Sequence[str] = tuple(name for types, _ in self._models for name in types)

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """The outputs of each model for the beginning of each document."""
        texts = [next(line.pieces(), "") for line in lines]
        lengths = [n_chars(line) for line in lines]
        found: list[Scores] = [{} for _ in lines]
        for types, model in self._models:
            for scores, length, values in zip(found, lengths, model.scores(texts), strict=True):
                scores.update({name: [[0, length, value]] for name, value in zip(types, values, strict=True)})
        return found


def _types(config: OnnxModelConfig) -> list[str]:
    return [f"{config.name}_{label}" for label in config.labels] or [config.name]
