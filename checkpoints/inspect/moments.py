"""The optimizer's moments of a step folder (or a release with its optimizer state), read like weights, whatever their format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.opening import Checkpoint
from checkpoints.publish.training_files import STEP
from checkpoints.release import TRAINING
from olmo_train.checkpoint import load_rows, read_manifest
from olmo_train.errors import ConfigError
from olmo_train.optim.moments import as_float32
from olmo_train.step_folder import MANIFEST


class MomentWeights:
    """`<moment>/<parameter>` as float32, 8-bit codes turned into what they stand for."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self._manifest = folder, manifest
        self._entries: dict[str, Any] = manifest["tensors"].get("optim", {})
        names = [name for name in self._entries if ".scale/" not in name]
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(self._entries[name]["shape"]) for name in names}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "MomentWeights":
        """Of a checkpoint.

        Raises:
            ConfigError: it has none.
        """
        folder = checkpoint.folder / TRAINING if checkpoint.is_hf else checkpoint.folder
        name = STEP if checkpoint.is_hf else MANIFEST
        manifest = read_manifest(folder, name) if (folder / name).exists() else {"tensors": {}}
        files = {shard["file"] for entry in manifest["tensors"].get("optim", {}).values() for shard in entry["shards"]}
        if not files or not all((folder / file).exists() for file in files):  # a release may leave them out
            raise ConfigError(f"--optimizer: {checkpoint.where} has no optimizer state; leave --optimizer out")
        return cls(folder, manifest)

    def dtype(self, name: str) -> torch.dtype:
        """After reading."""
        return torch.float32

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Rows of a moment."""
        moment, _, param = name.partition("/")
        keys = [key for key in (name, f"{moment}.scale/{param}") if key in self._entries]
        return as_float32(load_rows(self.folder, self._manifest, "optim", dict.fromkeys(keys, rows)), moment, param)
