"""A checkpoint as a Hugging Face folder that `from_pretrained` of transformers loads: weights bit for bit, config, tokenizer.

The names in the files are those of released models (a tensor per expert). Memory holds a piece of one tensor; the SHA-256 of
files and tensors comes from the same pass.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.convert.hf_tokenizer import TokenIds, to_json, tokenizer_files
from checkpoints.convert.new_folder import new_folder, refuse_existing
from checkpoints.convert.pieces import check_shapes, pieces
from checkpoints.hf_names import hf_config, hf_names, part_rows
from checkpoints.opening import Checkpoint
from checkpoints.weights import INDEX, SINGLE
from olmo_train.checkpoint import DTYPE_NAMES, write_safetensors
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import write_atomic
from olmo_train.model.shapes import param_shapes

SHARD_BYTES = 5 * 10**9
"""Of one file of weights; what transformers took until version 4, and hubs take without trouble."""
FLOAT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class HFOptions:
    """How the weights are written."""

    dtype: torch.dtype | None = None
    """Of every tensor; None: as saved, bit for bit."""
    shard_bytes: int = SHARD_BYTES
    """Of one file; a tensor is never cut, so one that is larger has a file of its own."""


@dataclass
class HFFiles:
    """What was written, as `release.json` lists it."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path: {bytes, sha256}."""
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By Hugging Face name: {dtype (as safetensors call it), shape, file, sha256 of the raw little-endian bytes}."""

    def add(self, path: Path, data: bytes) -> None:
        """Write a small file."""
        write_atomic(path, data)
        self.files[path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@dataclass(frozen=True)
class _Part:
    """One tensor of theirs: rows of one of ours, of the whole or of one expert."""

    name: str
    source: str
    expert: int | None
    rows: tuple[int, int]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_hf(checkpoint: Checkpoint, folder: Path, options: HFOptions = HFOptions()) -> HFFiles:
    """Write `folder`, which must not exist; it gets its name when it is whole.

    Raises:
        ConfigError: no Hugging Face class computes this model (every reason), `folder` exists, or the tokenizer does not fit.
        CheckpointError: the checkpoint is not whole, a weight is too large for the dtype, or the file system refused.
    """
    refuse_existing(folder)
    problems = []
    if options.dtype not in (None, *FLOAT_DTYPES.values()):
        problems.append(f"dtype {options.dtype} is not one of {', '.join(FLOAT_DTYPES)}")
    if options.shard_bytes <= 0:
        problems.append(f"shard_bytes={options.shard_bytes} must be positive")
    if problems:
        raise ConfigError(problems)
    config = hf_config(checkpoint.model, checkpoint.seq_len)
    check_shapes(checkpoint)
    texts, ids = tokenizer_files(checkpoint)
    parts = _parts(checkpoint, options.dtype)
    texts |= _config_files(checkpoint, config, ids, parts)
    with new_folder(folder) as new:
        written = HFFiles()
        for name, data in texts.items():
            written.add(new / name, data)
        _write_weights(checkpoint, parts, options.shard_bytes, new, written)
    return HFFiles(dict(sorted(written.files.items())), written.tensors)


# ---- config ----------------------------------------------------------------------------------------------------------------


def _config_files(checkpoint: Checkpoint, config: dict[str, Any], ids: TokenIds, parts: list[_Part]) -> dict[str, bytes]:
    """config.json and generation_config.json. Every id is written, null too: a class has defaults of its own."""
    sizes: Counter[torch.dtype] = Counter()
    for part in parts:
        sizes[part.dtype] += part.bytes
    dtype = str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")
    special = {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}
    out = {"config.json": to_json({**config, **special, "dtype": dtype, "torch_dtype": dtype})}
    theirs = checkpoint.folder / "generation_config.json"
    if checkpoint.is_hf and theirs.exists():
        return out | {"generation_config.json": theirs.read_bytes()}
    if ids.pad is None and isinstance(ids.eos, int):
        special["pad_token_id"] = ids.eos
    return out | {"generation_config.json": to_json(special)}


# ---- weights ---------------------------------------------------------------------------------------------------------------


def _parts(checkpoint: Checkpoint, dtype: torch.dtype | None) -> list[_Part]:
    """Every tensor of the folder in the order of the files."""
    out = []
    for shape in param_shapes(checkpoint.model):
        groups, is_stacked = hf_names(shape, checkpoint.model), len(shape.shape) == 3
        number_format = dtype or checkpoint.weights.dtype(shape.name)
        for expert, group in enumerate(groups):
            at = 0
            sizes = part_rows(shape, checkpoint.model) if len(group) > 1 else (shape.shape[-2] if is_stacked else shape.shape[0],)
            for name, rows in zip(group, sizes, strict=True):
                theirs = (rows, *shape.shape[2 if is_stacked else 1 :])
                out.append(_Part(name, shape.name, expert if is_stacked else None, (at, at + rows), number_format, theirs))
                at += rows
    return out


def _write_weights(checkpoint: Checkpoint, parts: list[_Part], shard_bytes: int, folder: Path, written: HFFiles) -> None:
    """The files of weights, and their index if they are several."""
    files = _cut(parts, shard_bytes)
    source = _read(checkpoint, parts)
    for number, members in enumerate(files, 1):
        name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        specs = {part.name: (part.dtype, part.shape) for part in members}
        file = write_safetensors(folder / name, specs, source, {"format": "pt"}, hash_tensors=True)
        written.files[name] = {"bytes": file.bytes, "sha256": file.sha256}
        for part in members:
            written.tensors[part.name] = {
                "dtype": DTYPE_NAMES[part.dtype], "shape": list(part.shape), "file": name, "sha256": file.tensors[part.name],
            }  # fmt: skip
    if len(files) > 1:
        total = {"total_parameters": sum(math.prod(p.shape) for p in parts), "total_size": sum(p.bytes for p in parts)}
        places = {name: entry["file"] for name, entry in sorted(written.tensors.items())}
        written.add(folder / INDEX, to_json({"metadata": total, "weight_map": places}))


def _cut(parts: list[_Part], shard_bytes: int) -> list[list[_Part]]:
    """Files of at most `shard_bytes`, in order."""
    files: list[list[_Part]] = [[]]
    size = 0
    for part in parts:
        if files[-1] and size + part.bytes > shard_bytes:
            files.append([])
            size = 0
        files[-1].append(part)
        size += part.bytes
    return files


def _read(checkpoint: Checkpoint, parts: list[_Part]) -> Iterator[Tensor]:
    """The values of the parts in order, in pieces. An expert is read once for its two parts."""
    held: tuple[str, int, Tensor] | None = None
    for part in parts:
        if part.expert is None:
            for piece in pieces(checkpoint.weights, part.source, part.rows):
                yield _converted(piece, part)
            continue
        if held is None or held[:2] != (part.source, part.expert):
            held = None  # before the next one is read: only one is ever alive
            held = part.source, part.expert, checkpoint.weights.read(part.source, (part.expert, part.expert + 1))[0]
        yield _converted(held[2][slice(*part.rows)], part)


def _converted(piece: Tensor, part: _Part) -> Tensor:
    """In the dtype of the part, to nearest.

    Raises:
        CheckpointError: a finite value is too large for it.
    """
    out = piece.to(part.dtype)
    if piece.dtype != part.dtype and not torch.equal(out.isfinite(), piece.isfinite()):
        raise CheckpointError(
            f"{part.source} has values up to {float(piece.abs().max()):.4g}, {str(part.dtype).removeprefix('torch.')} ends at "
            f"{torch.finfo(part.dtype).max:.4g}; use bfloat16 or float32"
        )
    return out
