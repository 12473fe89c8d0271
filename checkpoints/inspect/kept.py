"""Results kept beside a run, so that a measure is taken once: `runs/NAME/inspect/kept/step00000010-heldout-<key>.npz`, `.json`.

The key is a digest of everything a result depends on: weights, tokens, settings, and the version of the measure.
"""

import dataclasses
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.inspect.heldout import Heldout
from checkpoints.inspect.measures import Norm, Norms, TextProbability
from checkpoints.inspect.observe import Observation
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic

VERSION = 1
"""Of what the measures mean; a change makes them anew."""
REMEDY = "results of measures are kept there; make it writable"
_FROM_HELDOUT = ("sources", "source_N", "ids_N", "targets_N")
"""Parts of an observation that the tokens alone give."""


class Kept:
    """A folder of results; `folder=None` keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Raises:
        ConfigError: the folder cannot be made.
        """
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{folder}: {error.strerror}; {REMEDY}") from error

    def observation(self, name: str, key: Any, heldout: Heldout) -> Observation | None:
        """One kept by `keep_observation`; None: there is none, or it cannot be read."""
        path = self._path(name, key, ".npz")
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values = {field: arrays[field] for field in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None  # measured again, and written over
        values["layers"], values["n_experts"] = values["layers"].tolist(), int(values["n_experts"])
        return Observation(**token_arrays(heldout), **values)

    def keep_observation(self, name: str, key: Any, seen: Observation) -> None:
        """Keep what the tokens alone do not give."""
        arrays = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen) if field.name not in _FROM_HELDOUT}
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        self._write(self._path(name, key, ".npz"), data.getvalue())

    def norms(self, name: str, key: Any) -> Norms | None:
        """Kept by `keep`."""
        values = self._json(name, key)
        return None if values is None else _norms(values)

    def texts(self, name: str, key: Any) -> list[TextProbability] | None:
        """Kept by `keep`."""
        values = self._json(name, key)
        return None if values is None else [TextProbability(**value) for value in values]

    def keep(self, name: str, key: Any, value: Norms | list[TextProbability]) -> None:
        """Keep a result."""
        plain = dataclasses.asdict(value) if isinstance(value, Norms) else [dataclasses.asdict(entry) for entry in value]
        self._write(self._path(name, key, ".json"), json.dumps(plain).encode())

    def values(self, name: str, key: Any) -> Any:
        """Plain values kept by `keep_values`; None: there are none, or they cannot be read."""
        return self._json(name, key)

    def keep_values(self, name: str, key: Any, values: Any) -> None:
        """Keep what JSON can hold."""
        self._write(self._path(name, key, ".json"), json.dumps(values).encode())

    def _json(self, name: str, key: Any) -> Any:
        path = self._path(name, key, ".json")
        try:
            return json.loads(path.read_text()) if path is not None and path.exists() else None
        except (OSError, ValueError):
            return None

    def _path(self, name: str, key: Any, suffix: str) -> Path | None:
        digest = hashlib.sha256(json.dumps([VERSION, key], sort_keys=True).encode()).hexdigest()
        return None if self.folder is None else self.folder / f"{name}-{digest[:24]}{suffix}"

    def _write(self, path: Path | None, data: bytes) -> None:
        if path is None:
            return
        try:
            write_atomic(path, data)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; {REMEDY}") from error


def token_arrays(heldout: Heldout) -> dict[str, Any]:
    """The parts of an observation that the tokens alone give, in the order of `observe`."""
    sources, ids, targets = [], [], []
    for number, source in enumerate(heldout.sources):
        valid = np.arange(heldout.seq_len) < source.lengths_R[:, None]
        ids.append(source.rows.ids[valid])
        targets.append(source.rows.labels[valid])
        sources.append(np.full(len(ids[-1]), number))
    return {
        "sources": [source.name for source in heldout.sources], "source_N": np.concatenate(sources),
        "ids_N": np.concatenate(ids), "targets_N": np.concatenate(targets),
    }  # fmt: skip


def _norms(values: dict[str, Any]) -> Norms:
    def by_layer(layers: dict[str, Any]) -> dict[int, Norm]:
        return {int(layer): Norm(**norm) for layer, norm in layers.items()}

    return Norms(
        Norm(**values["all"]),
        {kind: Norm(**norm) for kind, norm in values["by_kind"].items()},
        by_layer(values["by_layer"]),
        {kind: by_layer(layers) for kind, layers in values["by_kind_and_layer"].items()},
    )
