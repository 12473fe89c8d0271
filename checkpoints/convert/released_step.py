"""The step folder that a release was made from, put together again and checked against its own manifest.

Weights, moments, random states and state.json are byte for byte the run's. config.yaml and provenance.json are as the release
has them: it cuts private paths (publish/training_files.py), and then the manifest of the new folder has their new SHA-256.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.convert.new_folder import new_folder
from checkpoints.convert.pieces import pieces
from checkpoints.opening import Checkpoint
from checkpoints.publish.training_files import REDACTED, STEP
from checkpoints.release import TRAINING
from checkpoints.weights import Weights
from olmo_train.checkpoint import DTYPE_NAMES, write_safetensors
from olmo_train.config.model import ModelConfig
from olmo_train.errors import CheckpointError
from olmo_train.files import write_atomic
from olmo_train.kernels.choose import REFERENCE
from olmo_train.model.transformer import Transformer
from olmo_train.step_folder import MANIFEST


def why_not_whole(checkpoint: Checkpoint, manifest: Mapping[str, Any]) -> str:
    """Why the step folder of `manifest` (training/step.json) cannot come from this release; empty if it can.

    Raises:
        CheckpointError: the release has other tensors.
    """
    source = checkpoint.folder / TRAINING
    if not any(
        (source / name).exists() for name in set(manifest["files"]) - _model_files(manifest) if name.endswith(".safetensors")
    ):
        return "the release has no optimizer state"
    for name, entry in manifest["tensors"]["model"].items():
        if name not in checkpoint.weights.shapes:
            raise CheckpointError(f"{checkpoint.where}: {TRAINING}/{STEP} has a tensor {name!r}, the release has not")
        published = DTYPE_NAMES[checkpoint.weights.dtype(name)]
        if published != entry["dtype"]:
            return f"the release is in {published}, the run trained in {entry['dtype']}: it cannot go on bit for bit"
    return ""


def rebuild(checkpoint: Checkpoint, manifest: Mapping[str, Any], folder: Path) -> None:
    """Write each rank's rows as they were, and copy the rest.

    Raises:
        CheckpointError: a file is missing or has another SHA-256 than the manifest says.
    """
    source, files, model_files = checkpoint.folder / TRAINING, dict(manifest["files"]), _model_files(manifest)
    odd = [name for name in {*files, *model_files} if Path(name).name != name]
    if odd:
        raise CheckpointError(f"{source / STEP}: {odd[0]!r} is not the name of a file; fetch the release again")
    order = saved_order(checkpoint.model)
    with new_folder(folder) as new:
        for name, entry in files.items():
            if name in model_files:
                found = _write_rows(checkpoint.weights, order, manifest, new / name)
            else:
                found = _copy(source / name, new / name)
            if found != entry and name not in REDACTED:
                raise CheckpointError(
                    f"{checkpoint.where}: {name} has SHA-256 {found['sha256']}, {TRAINING}/{STEP} says {entry['sha256']}: "
                    "the release is not whole, or not of this step; fetch it again"
                )
            files[name] = found
        if checkpoint.tokenizer is not None:
            write_atomic(new / "tokenizer.json", checkpoint.tokenizer.read_bytes())
        is_same = files == manifest["files"]
        text = (source / STEP).read_bytes() if is_same else json.dumps({**manifest, "files": files}, indent=1).encode()
        write_atomic(new / MANIFEST, text)


def _model_files(manifest: Mapping[str, Any]) -> set[str]:
    return {shard["file"] for entry in manifest["tensors"]["model"].values() for shard in entry["shards"]}


def saved_order(model: ModelConfig) -> list[str]:
    """Of the tensors of a rank's file of weights: that of the module, whose parameters training saves."""
    with torch.device("meta"):
        module = Transformer(model, REFERENCE)
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def _write_rows(weights: Weights, order: list[str], manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The file of one rank, as `write_rank` wrote it."""
    rows: dict[str, tuple[int, int]] = {}
    for name in order:
        entry = manifest["tensors"]["model"].get(name, {"shards": []})
        for shard in entry["shards"]:
            if shard["file"] == path.name:
                rows[name] = shard["start"], shard["stop"]
    specs = {name: (weights.dtype(name), (b - a, *weights.shapes[name][1:])) for name, (a, b) in rows.items()}

    def read() -> Iterator[Tensor]:
        for name, part in rows.items():
            yield from pieces(weights, name, part)

    written = write_safetensors(path, specs, read())
    return {"bytes": written.bytes, "sha256": written.sha256}


def _copy(source: Path, target: Path) -> dict[str, Any]:
    """A file copied: {bytes, sha256}."""
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as file, open(target, "wb") as copy:
            while block := file.read(2**22):
                digest.update(block)
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
            return {"bytes": copy.tell(), "sha256": digest.hexdigest()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{source} is not there, and {STEP} beside it names it; fetch the release again") from error
