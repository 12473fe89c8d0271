"""The checkpoint before a release: the release before it, or what its run was loaded from."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from checkpoints.hf_names import hf_names, part_rows
from checkpoints.opening import Checkpoint, open_step_folder
from checkpoints.release import Release, weights_digest
from olmo_train.checkpoint import DTYPE_NAMES, manifest_identity, read_state
from olmo_train.config.train import TrainConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.shapes import param_shapes


def parent_of(before: Release | None, run: TrainConfig, starts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """{name, step, tokens, weights_sha256} of the release `before`; without one, of the step folder that the run was loaded from.

    Of a step folder `tokens` and `weights_sha256` are None unless it is still there, the very one by the SHA-256 of its manifest.
    """
    if before is not None:
        return {"name": before.name, "step": before.step, "tokens": before.tokens, "weights_sha256": before.weights_sha256}
    if run.load is None:
        return None
    loaded = next((start["loaded"] for start in starts if "loaded" in start), None)
    folder = Path(run.load.path)
    entry = {"name": folder.name, "step": loaded and loaded["step"], "tokens": None, "weights_sha256": None}
    try:
        if loaded is None or manifest_identity(folder) != loaded:
            return entry
        return entry | {"tokens": read_state(folder).get("tokens"), "weights_sha256": weights_of(open_step_folder(folder))}
    except (CheckpointError, ConfigError, OSError):
        return entry  # gone, or damaged since; what it was cannot be told any more


def weights_of(checkpoint: Checkpoint) -> str:
    """What `weights_sha256` of a release of this checkpoint would be, its weights as saved. Memory holds one tensor.

    Raises:
        CheckpointError: a tensor cannot be read. ConfigError: no class in transformers computes this model.
    """
    weights, model = checkpoint.weights, checkpoint.model
    tensors = {}
    for shape in param_shapes(model):
        is_stacked = len(shape.shape) == 3
        for expert, names in enumerate(hf_names(shape, model)):
            value = weights.read(shape.name, (expert, expert + 1))[0] if is_stacked else weights.read(shape.name)
            parts = value.split(part_rows(shape, model)) if len(names) > 1 else [value]
            for name, part in zip(names, parts, strict=True):
                data = part.contiguous().view(-1).view(torch.uint8).numpy().data
                sha256 = hashlib.sha256(data).hexdigest()
                tensors[name] = {"dtype": DTYPE_NAMES[part.dtype], "shape": list(part.shape), "sha256": sha256}
    return weights_digest(tensors)
