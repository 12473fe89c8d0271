"""The tensors of a checkpoint under our names, read one at a time: memory holds one tensor, whatever the model."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from checkpoints.hf_names import hf_names, part_rows
from olmo_train.checkpoint import DTYPES, load_rows, read_manifest
from olmo_train.config.model import ModelConfig
from olmo_train.errors import CheckpointError
from olmo_train.model.shapes import ParamShape, param_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Weights(Protocol):
    """Parameters and buffers of a model by our names (`param_shapes`, then `blocks.{i}.moe.router.bias` where there is one)."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, in the order of the model."""

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Rows [start, stop) along dim 0 (experts of `moe.w_in`, `moe.w_out`), as stored; None: all.

        Raises:
            CheckpointError: the file is damaged or the tensor is not in it.
        """


class StepWeights:
    """Of a step folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._manifest = folder, read_manifest(folder)
        self._entries: dict[str, Any] = self._manifest["tensors"]["model"]
        self.shapes = {name: tuple(entry["shape"]) for name, entry in self._entries.items()}

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return DTYPES[self._entry(name)["dtype"]]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Rows of a tensor; None: all."""
        self._entry(name)
        return load_rows(self.folder, self._manifest, "model", {name: rows})[name]

    def _entry(self, name: str) -> Any:
        if name not in self._entries:
            raise CheckpointError(f"{self.folder}: no model tensor {name!r}; it was written by another model")
        return self._entries[name]


class HFWeights:
    """Of a Hugging Face folder (safetensors, one or several files), parts put together as our layers want them."""

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        """Raises:
        CheckpointError: the folder has no safetensors, or its tensors are not those of the config; names them.
        """
        self.folder, self.model = folder, model
        self.files = hf_tensor_files(folder)
        self._open = lru_cache(maxsize=8)(lambda name: safe_open(str(folder / name), "pt"))
        params = param_shapes(model)
        self.shapes = {shape.name: shape.shape for shape in params}
        self._names = {shape.name: self._layout(shape) for shape in params}
        self._per_expert = {shape.name for shape in params if self._names[shape.name] != hf_names(shape, model, "module")}
        self._rows = {shape.name: part_rows(shape, model) for shape in params}
        self._check_names()
        self._check_shapes()

    def _layout(self, shape: ParamShape) -> list[list[str]]:
        """Per expert as files have them, or stacked as modules of transformers 5 have them."""
        stacked = hf_names(shape, self.model, "module")
        return stacked if stacked[0][0] in self.files else hf_names(shape, self.model)

    def _check_names(self) -> None:
        wanted = {theirs for groups in self._names.values() for group in groups for theirs in group}
        missing = sorted(wanted - set(self.files))
        if missing:
            raise CheckpointError(
                f"{self.folder}: no tensor {missing[0]!r} (and {len(missing) - 1} more), which its config.json asks for; "
                "the folder is not whole"
            )
        # Older versions of transformers saved the angles of the rotation, and a tied output twice.
        unknown = [name for name in self.files if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
        unknown = [name for name in unknown if not (name == "lm_head.weight" and self.model.tie_embeddings)]
        if unknown:
            raise CheckpointError(
                f"{self.folder}: tensor {unknown[0]!r} (and {len(unknown) - 1} more) has no place in the model of its "
                "config.json, which would compute something else without it"
            )

    def _check_shapes(self) -> None:
        for name, groups in self._names.items():
            first = self._slice(groups[0][0]).get_dtype()
            if first not in DTYPES:
                raise CheckpointError(f"{self.folder}: {groups[0][0]} is {first}, not one of {', '.join(DTYPES)}")
            for group in groups:
                for theirs, shape in zip(group, self._part_shapes(name, len(group)), strict=True):
                    part = self._slice(theirs)
                    if tuple(part.get_shape()) != shape:
                        raise CheckpointError(
                            f"{self.folder}: {theirs} has shape {tuple(part.get_shape())}, its config.json says {shape}"
                        )
                    if part.get_dtype() != first:
                        raise CheckpointError(f"{self.folder}: {theirs} is {part.get_dtype()}, {groups[0][0]} is {first}")

    def _part_shapes(self, name: str, n_parts: int) -> list[tuple[int, ...]]:
        whole = self.shapes[name][1:] if name in self._per_expert else self.shapes[name]
        return [whole] if n_parts == 1 else [(rows, *whole[1:]) for rows in self._rows[name]]

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return DTYPES[self._slice(self._names[name][0][0]).get_dtype()]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Rows of a tensor; None: all."""
        groups, shape = self._names[name], self.shapes[name]
        start, stop = rows if rows is not None else (0, shape[0])
        try:
            if name in self._per_expert:
                return torch.stack([self._concatenated(group) for group in groups[start:stop]])
            if len(groups[0]) == 1:
                return self._slice(groups[0][0])[start:stop]
            return self._rows_of(groups[0], self._rows[name], start, stop)
        except CheckpointError:
            raise
        except Exception as error:  # safetensors raises its own class
            raise CheckpointError(f"{self.folder}: {name} cannot be read: {error}; fetch the folder again") from error

    def _rows_of(self, names: list[str], sizes: tuple[int, ...], start: int, stop: int) -> Tensor:
        parts, at = [], 0
        for theirs, size in zip(names, sizes, strict=True):
            first, last = max(start - at, 0), min(stop - at, size)
            if first < last:
                parts.append(self._slice(theirs)[first:last])
            at += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _concatenated(self, names: list[str]) -> Tensor:
        parts = [self._slice(name)[:] for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _slice(self, theirs: str) -> Any:
        try:
            return self._open(self.files[theirs]).get_slice(theirs)
        except Exception as error:  # safetensors raises its own class
            raise CheckpointError(
                f"{self.folder / self.files[theirs]} cannot be read: {error}; fetch the folder again"
            ) from error


def hf_tensor_files(folder: Path) -> dict[str, str]:
    """By tensor of a Hugging Face folder, the file it is in.

    Raises:
        CheckpointError: there is no safetensors file, or the index names one that is not there.
    """
    try:
        if (folder / INDEX).exists():
            files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
            for name in sorted(set(files.values())):
                if not (folder / name).exists():
                    raise CheckpointError(f"{folder}: {INDEX} names {name}, which is not there; fetch the folder again")
            return files
        with safe_open(str(folder / SINGLE), "pt") as file:
            return dict.fromkeys(file.keys(), SINGLE)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has neither {INDEX} nor {SINGLE}: no weights in safetensors; `save_pretrained` of transformers writes them"
        ) from None
    except Exception as error:  # JSON, missing keys, safetensors' own class
        raise CheckpointError(f"{folder}: its safetensors cannot be read: {error}; fetch the folder again") from error


def state_dict(
    weights: Weights, names: list[str], convert: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> dict[str, Tensor]:
    """The named tensors, each through `convert` as it comes."""
    return {name: convert(weights.read(name)) for name in names}
