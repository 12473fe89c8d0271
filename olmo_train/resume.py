"""What a step folder holds of a run, and how a run is taken up again: from its own newest good step, or from another run's."""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from olmo_train import checkpoint
from olmo_train.attempt import node_name
from olmo_train.config.train import TrainConfig
from olmo_train.data.order import DataOrder
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import sync_folder
from olmo_train.model.transformer import Transformer
from olmo_train.optim.build import Optimizer
from olmo_train.optim.guard import Guard
from olmo_train.parallel.collectives import from_main, gather_to_all
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.weights import Weight
from olmo_train.rng import rng_state, set_rng_state
from olmo_train.saver import LocalPart
from olmo_train.schema import to_plain
from olmo_train.step_folder import SUSPECT, last_trusted, list_steps, list_unfinished

log = logging.getLogger(__name__)


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
    """The newest finished step folder whose every byte is as written. What is damaged is renamed and reported, not used.

    Ranks share out the checking; all return the same.

    Raises:
        CheckpointError: a folder cannot be renamed, or a rank reads other bytes than rank 0 does.
    """
    _on_main(layout, lambda: _clear_away(steps))
    while True:
        found = list_steps(steps) if layout.is_main else []
        folder: Path | None = from_main(layout, found[-1][1] if found else None)
        if folder is None:
            return None
        if not (problems := _damage(folder, layout)):
            return folder
        _on_main(layout, partial(set_aside, folder, "damaged", "; ".join(problems)))


def set_aside(folder: Path, word: str, why: str) -> None:
    """Take a step folder out of the run, loudly, without deleting anything: it becomes `.stepNNNNNNNN.WORD-...`.

    Raises:
        CheckpointError: it cannot be renamed.
    """
    aside = folder.with_name(f".{folder.name}.{word}-{time.time_ns()}")
    log.error("%s is %s, using the step before it; moved to %s: %s", folder, word, aside.name, why)
    try:
        os.rename(folder, aside)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} is {word} and cannot be moved aside: {error.strerror}; move it away") from error


def _clear_away(steps: Path) -> None:
    """Take away what would stand in the way of a save, and the steps that a replica check has called suspect."""
    for folder in list_unfinished(steps):
        set_aside(folder, "damaged", "it has no manifest: copied by half, or its manifest was deleted")
    after = last_trusted(steps.parent)
    for step, folder in list_steps(steps):
        if after is not None and step > after:
            set_aside(folder, "suspect", f"a check of the hardware last passed at step {after} ({SUSPECT})")


def forget_suspects(steps: Path, layout: Layout) -> None:
    """The run goes on from what is trusted, wherever that was found: what it saves from here on is."""
    _on_main(layout, lambda: (steps.parent / SUSPECT).unlink(missing_ok=True))


def _damage(folder: Path, layout: Layout) -> list[str]:
    """Problems of a step folder as rank 0 sees them too: where only another rank does, its node is at fault, not the folder."""
    for pause_s in (0, 1, 10, 0):
        problems = verify_together(folder, layout)
        if not problems:
            return []
        confirmed: list[str] = from_main(layout, _look_again(folder, problems) if layout.is_main else None)
        if confirmed:
            return confirmed
        time.sleep(pause_s)  # a network file system may show a new folder late on other nodes
    raise CheckpointError(f"rank 0 reads {folder} as it was written, but elsewhere: {'; '.join(problems)}; look after that node")


def _look_again(folder: Path, problems: list[str]) -> list[str]:
    try:
        manifest = checkpoint.read_manifest(folder)
        names = [name for name in manifest["files"] if any(str(folder / name) in problem for problem in problems)]
        return checkpoint.verify_files(folder, manifest, names)
    except CheckpointError as error:
        return [str(error)]


def _on_main(layout: Layout, work: Callable[[], None]) -> None:
    """Do something on rank 0; its failure is every rank's."""
    problem = None
    if layout.is_main:
        try:
            work()
        except (CheckpointError, OSError, ValueError, KeyError) as error:
            problem = str(error)
    problem = from_main(layout, problem)
    if problem is not None:
        raise CheckpointError(problem)


def verify_together(folder: Path, layout: Layout) -> list[str]:
    """Problems of a step folder, each rank having checked its share of the files."""
    try:
        manifest = checkpoint.read_manifest(folder)
        names = sorted(manifest["files"])[layout.rank :: layout.n_ranks]
        problems = checkpoint.verify_files(folder, manifest, names)
    except CheckpointError as error:
        problems = [str(error)]
    where = "" if layout.is_main else f"rank {layout.rank} on {node_name()}: "
    return [problem for share in gather_to_all(layout, [where + text for text in problems]) for problem in share]


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
