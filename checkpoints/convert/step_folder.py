"""A Hugging Face folder, a release or an OLMo-core checkpoint as our step folder, from which `olmo train load.path=...` goes on.

A release with the optimizer and random states gives back the step folder that it was made from: released_step.py.
"""

import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoints.convert.core import is_core_folder, optimizer_of
from checkpoints.convert.new_folder import refuse_existing
from checkpoints.convert.pieces import check_shapes, pieces
from checkpoints.convert.released_step import rebuild, why_not_whole
from checkpoints.hf_names import hf_model_type
from checkpoints.load import load_tokenizer
from checkpoints.opening import Checkpoint
from checkpoints.publish.training_files import STEP
from checkpoints.release import TRAINING
from checkpoints.weights import Weights
from olmo_train.checkpoint import PERMANENT, Shard, StreamedShard, commit, read_manifest, write_rank
from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.model.shapes import vocab_rows
from olmo_train.provenance import git_state
from olmo_train.schema import load_config, to_yaml

RELEASED = {"olmoe": "olmoe_1b_7b", "olmo": "olmo_1b", "olmo2": "olmo2_1b", "olmo3": "olmo3_7b"}
"""Of configs/model: where what a Hugging Face config does not hold is taken from."""


@dataclass(frozen=True)
class StepFiles:
    """What was written."""

    is_rebuilt: bool
    """The step folder that the release was made from: weights, moments and random states byte for byte."""
    has_optimizer: bool
    note: str = ""
    """Why there is no optimizer state though there might be."""


def write_step(checkpoint: Checkpoint, folder: Path) -> StepFiles:
    """Write `folder`, which must not exist; it gets its name when it is whole. Holds a piece of one tensor.

    Raises:
        ConfigError: the checkpoint is a step folder already, `folder` exists, or the tokenizer does not fit.
        CheckpointError: the checkpoint is not whole, or the file system refused.
    """
    is_core = is_core_folder(checkpoint.folder)
    if not checkpoint.is_hf and not is_core:
        raise ConfigError(f"{checkpoint.where} is a step folder already; cp -r copies it")
    refuse_existing(folder)
    check_shapes(checkpoint)
    optimizer: Mapping[str, Weights] = {}
    updates, rate, note = 0, 0.0, ""
    if is_core:
        found = optimizer_of(checkpoint.folder, checkpoint.model)
        if isinstance(found, str):
            note = found
        else:
            optimizer, updates, rate = found
    elif (checkpoint.folder / TRAINING / STEP).exists():
        manifest = read_manifest(checkpoint.folder / TRAINING, STEP)
        note = why_not_whole(checkpoint, manifest)
        if not note:
            rebuild(checkpoint, manifest, folder)
            return StepFiles(is_rebuilt=True, has_optimizer=True)
    state = _state(checkpoint, updates, rate)
    _write_new(checkpoint, optimizer, _texts(checkpoint, state, folder.name), state["step"], folder)
    return StepFiles(is_rebuilt=False, has_optimizer=bool(optimizer), note=note)


# ---- a new step folder -----------------------------------------------------------------------------------------------------


def _write_new(checkpoint: Checkpoint, moments: Mapping[str, Weights], texts: Mapping[str, str], step: int, folder: Path) -> None:
    """One rank's files; the trainer takes any rows from them."""
    names = checkpoint.weights.shapes
    groups: dict[str, dict[str, Shard | StreamedShard]] = {"model": {name: _whole(checkpoint.weights, name) for name in names}}
    if moments:
        groups["optim"] = {f"{moment}/{name}": _whole(weights, name) for moment, weights in moments.items() for name in names}
    temporary = folder.absolute().with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        write_rank(temporary, 0, 1, groups)
        commit(temporary, folder, 1, {"step": step, "kind": PERMANENT, "n_ranks": 1}, texts, threading.Event())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _whole(weights: Weights, name: str) -> StreamedShard:
    shape = weights.shapes[name]
    return StreamedShard(weights.dtype(name), 0, shape[0], shape, lambda: pieces(weights, name, (0, shape[0])))


def _texts(checkpoint: Checkpoint, state: Mapping[str, Any], name: str) -> dict[str, str]:
    """config.yaml, provenance.json, state.json, and the tokenizer's file, which `opening.tokenizer_of` finds."""
    run = checkpoint.run if checkpoint.run is not None else converted_run(checkpoint, name)
    texts = {
        "config.yaml": to_yaml(run),
        "state.json": json.dumps(state, indent=1),
        "provenance.json": json.dumps({"starts": [], "converted": {"from": checkpoint.where, "git": git_state()}}, indent=1),
    }
    if checkpoint.tokenizer is not None:
        texts["tokenizer.json"] = load_tokenizer(checkpoint, None).path.read_text("utf-8")
    return texts


def _state(checkpoint: Checkpoint, updates: int, rate: float) -> dict[str, Any]:
    """state.json: that of the release; of others no position in any data."""
    unknown = {
        "step": 0, "tokens": 0, "loss": None, "lr": rate, "peak_lr": rate, "optimizer_steps": updates, "guard": None,
        "data": {"next_position": 0, "order": None}, "n_ranks": 1,
    }  # fmt: skip
    return unknown | checkpoint.state


def converted_run(checkpoint: Checkpoint, name: str) -> TrainConfig:
    """A whole run config around the model of others: no data, batches of eight instances.

    What a Hugging Face config does not hold (loss weights, how weights are drawn) is that of the released model of the same
    class in configs/model; ids the tokenizer does not have count as padding of the embedding.
    """
    run = load_config("train", TrainConfig, ["run_name=converted"])
    run.run_name, run.run_dir = name, f"runs/{name}"
    run.model, run.data.sources = _trainable(checkpoint), {}
    run.data.seq_len = run.data.micro_batch_size = checkpoint.seq_len
    run.data.global_batch_size = 8 * checkpoint.seq_len
    return run


def _trainable(checkpoint: Checkpoint) -> ModelConfig:
    model = checkpoint.model
    if checkpoint.is_hf:
        base = load_config("train", TrainConfig, ["run_name=x", f"model={RELEASED[hf_model_type(model)]}"]).model
        model = replace(model, init=base.init, z_loss_weight=base.z_loss_weight)
        if model.moe is not None and base.moe is not None:
            weights = base.moe.load_balancing_loss_weight, base.moe.router_z_loss_weight
            moe = replace(model.moe, load_balancing_loss_weight=weights[0], router_z_loss_weight=weights[1])
            model = replace(model, moe=moe)
    if checkpoint.tokenizer is not None:
        known, rows = load_tokenizer(checkpoint, None).vocab_size, vocab_rows(model)
        model = replace(model, vocab_size=known, padded_vocab_size=rows if rows > known else None)
    return model
