"""What a step folder holds of a run, and how a run is taken up again: from its own newest good step, or from another run's."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from olmo_train import checkpoint
from olmo_train.config.train import TrainConfig
from olmo_train.data.order import DataOrder
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.transformer import Transformer
from olmo_train.optim.build import Optimizer
from olmo_train.optim.guard import Guard
from olmo_train.parallel.collectives import from_main, gather_to_all
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.weights import Weight
from olmo_train.rng import rng_state, set_rng_state
from olmo_train.saver import LocalPart
from olmo_train.schema import read_yaml, to_plain
from olmo_train.step_folder import list_steps

log = logging.getLogger(__name__)

# What may change between two starts of one run; everything else decides weights, order or schedule and must stay.
FREE = (
    "run_name", "run_dir", "stop_at_step", "gc_every", "parallel", "kernels", "checkpoint", "eval", "metrics", "faults", "load",
    "data.micro_batch_size", "data.verify", "data.prefetch", "optim.max_skips_in_a_row", "optim.on_nonfinite",
)  # fmt: skip


@dataclass
class Progress:
    """Where a run is: the state after `step` optimizer steps."""

    step: int = 0
    peak_lr: float = 0.0
    """What the schedule multiplies."""
    lr: float = 0.0
    """Of the last step taken."""
    loss: float | None = None
    """Of the last step taken."""
    is_saved: bool = False
    """This very step was loaded from its folder."""


@dataclass
class Live:
    """The objects whose state is saved and restored."""

    layout: Layout
    model: Transformer
    weights: dict[str, Weight]
    optimizer: Optimizer
    guard: Guard
    order: DataOrder


def local_parts(live: Live) -> dict[str, dict[str, LocalPart]]:
    """This rank's part of the state, by group. Replicas (HSDP) share out the writing, tensor by tensor."""
    layout = live.layout
    n_replicas = layout.mesh["replicate"].size() if "replicate" in (layout.mesh.mesh_dim_names or ()) else 1
    replica = layout.mesh["replicate"].get_local_rank() if n_replicas > 1 else 0
    model, optim, starts, shapes = {}, {}, {}, {}
    for i, (name, weight) in enumerate(live.weights.items()):
        starts[name], shapes[name] = weight.rows[0], weight.shape
        model[name] = LocalPart(weight.tensor, starts[name], shapes[name], i % n_replicas == replica)
    for i, (key, moment) in enumerate(live.optimizer.moments().items()):
        name = key.split("/", 1)[1]
        shape = (shapes[name][0], *moment.shape[1:])  # scales of 8-bit moments have the parameter's rows and their own columns
        optim[key] = LocalPart(moment, starts[name], shape, i % n_replicas == replica)
    for name, buffer in live.model.named_buffers():
        model[name] = LocalPart(buffer, 0, tuple(buffer.shape), layout.is_main)
    rng = {f"{name}/{layout.rank}": LocalPart(state, 0, tuple(state.shape)) for name, state in rng_state(layout.device).items()}
    return {"model": model, "optim": optim, "rng": rng}


def state_text(live: Live, run: TrainConfig, progress: Progress) -> str:
    """state.json: every small value that the next step depends on, and what identifies the data position."""
    values = {
        "step": progress.step,
        "tokens": progress.step * run.data.global_batch_size,
        "loss": progress.loss,
        "lr": progress.lr,
        "peak_lr": progress.peak_lr,
        "optimizer_steps": live.optimizer.steps_taken,
        "guard": live.guard.state(),
        "data": {"next_position": progress.step * live.order.rows, "order": live.order.key, **_without(run, progress.step)},
        "n_ranks": live.layout.n_ranks,
    }
    return json.dumps(values, indent=1)


def _without(run: TrainConfig, step: int) -> dict[str, Any]:
    """The documents that some step up to `step` left out; empty if all steps saw all documents."""
    without = run.data.without
    return {} if without is None or step <= without.after_step else {"without": to_plain(without)}


# ---- finding -----------------------------------------------------------------------------------------------------------


def newest_good_step(steps: Path, layout: Layout) -> Path | None:
    """The newest finished step folder whose every byte is as written. A damaged one is renamed and reported, not used.

    Ranks share out the checking; all return the same.
    """
    while True:
        found = list_steps(steps) if layout.is_main else []
        folder: Path | None = from_main(layout, found[-1][1] if found else None)
        if folder is None:
            return None
        problems = verify_together(folder, layout)
        if not problems:
            return folder
        if layout.is_main:
            aside = folder.with_name(f".{folder.name}.damaged-{os.getpid()}")
            log.error("%s is damaged, using the step before it; moved to %s: %s", folder, aside.name, "; ".join(problems))
            os.rename(folder, aside)


def verify_together(folder: Path, layout: Layout) -> list[str]:
    """Problems of a step folder, each rank having checked its share of the files."""
    try:
        manifest = checkpoint.read_manifest(folder)
        names = sorted(manifest["files"])[layout.rank :: layout.n_ranks]
        problems = checkpoint.verify_files(folder, manifest, names)
    except CheckpointError as error:
        problems = [str(error)]
    return [problem for share in gather_to_all(layout, problems) for problem in share]


# ---- restoring ---------------------------------------------------------------------------------------------------------


def load_weights(live: Live, folder: Path, with_moments: bool) -> dict[str, Any]:
    """Fill this rank's shards (and moments) from a step folder of any number of ranks and number formats; return its state.json.

    Raises:
        CheckpointError: the folder belongs to another model, or has the moments of another optimizer.
        ConfigError: the moments are wanted and the folder has none.
    """
    manifest, state = checkpoint.read_manifest(folder), checkpoint.read_state(folder)
    if with_moments and "optim" not in manifest["tensors"]:
        raise ConfigError(
            f"load.optimizer_state=true (the default), but {folder} holds no optimizer state: it comes from weights alone; "
            f"begin a run with load.path={folder} load.optimizer_state=false"
        )
    rows = {name: weight.rows for name, weight in live.weights.items()}
    for name, weight in live.weights.items():
        shape = manifest["tensors"]["model"].get(name, {}).get("shape")
        if shape is not None and shape != list(weight.shape):
            raise CheckpointError(
                f"{folder}: {name} has shape {shape}, this model's is {list(weight.shape)}; check the model config"
            )
    with torch.no_grad():
        for name, tensor in checkpoint.load_rows(folder, manifest, "model", rows).items():
            live.weights[name].fill(tensor)
        buffers = dict(live.model.named_buffers())
        for name, tensor in checkpoint.load_rows(folder, manifest, "model", dict.fromkeys(buffers)).items():
            buffers[name].copy_(tensor)
    if with_moments:
        # All that was saved, in whatever number format: the optimizer converts what is not its own.
        wanted = {key: rows[key.split("/", 1)[1]] for key in manifest["tensors"]["optim"] if key.split("/", 1)[1] in rows}
        live.optimizer.load(checkpoint.load_rows(folder, manifest, "optim", wanted), state["optimizer_steps"])
    return state


def resume(live: Live, run: TrainConfig, folder: Path) -> Progress:
    """Take up this run after the step saved in `folder`.

    Raises:
        ConfigError: the data order is not the one the run began with, or other documents were left out; names what differs.
    """
    state = load_weights(live, folder, with_moments=True)
    left_out, wanted = state["data"].get("without"), _without(run, state["step"]).get("without")
    if left_out != wanted:
        raise ConfigError(
            f"data.without: the steps up to {state['step']} of {folder} left out {left_out}, by the config it is {wanted}; "
            "restore it, or set data.without.after_step so that it tells what those steps did"
        )
    saved, now = state["data"]["order"], live.order.key
    if saved["sha256"] != now["sha256"]:
        different = [
            f"{name}: {saved[name]} when the run began, {now[name]} now"
            for name in saved
            if name != "sha256" and saved[name] != now[name]
        ]
        raise ConfigError(
            [f"the data order changed; {text}; restore it, or start a new run with load.path={folder}" for text in different]
        )
    live.guard.load_state(state["guard"])
    if state["n_ranks"] == live.layout.n_ranks:
        manifest = checkpoint.read_manifest(folder)
        mine = [key for key in manifest["tensors"]["rng"] if key.endswith(f"/{live.layout.rank}")]
        tensors = checkpoint.load_rows(folder, manifest, "rng", dict.fromkeys(mine))
        set_rng_state({key.split("/")[0]: tensor for key, tensor in tensors.items()}, live.layout.device)
    return Progress(state["step"], state["peak_lr"], state["lr"], state["loss"], is_saved=True)


def changed_config(run: TrainConfig, saved: Path) -> list[str]:
    """Differences from the config the run began with that would make another run of it."""
    before, now = _flatten(to_plain(read_yaml(saved, TrainConfig))), _flatten(to_plain(run))
    problems = []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not any(f"{name}.".startswith(f"{free}.") for free in FREE):
            problems.append(
                f"{name}={now.get(name)}, but {saved.parent} began with {before.get(name)}; restore it, or start "
                "another run_name "
                "(with load.path to begin from a checkpoint)"
            )
    return problems


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {k: v for key, value in values.items() for k, v in _flatten(value, f"{prefix}.{key}" if prefix else key).items()}
    return {prefix: values}
