"""Everything known of one checkpoint, from its own files and, for a step folder, those of its run."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.inspect.identity import weights_identity
from checkpoints.inspect.matrices import matrices_of
from checkpoints.inspect.moments import MomentWeights
from checkpoints.inspect.row_sums import of_each, row_stats
from checkpoints.opening import Checkpoint
from checkpoints.release import MANIFEST as RELEASE
from checkpoints.release import TRAINING, Release, read_release_folder
from checkpoints.run_files import Evaluation, read_evaluations
from olmo_train.checkpoint import DTYPE_NAMES, read_manifest
from olmo_train.config.model import ModelConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.size import count_params
from olmo_train.schema import to_plain


@dataclass(frozen=True)
class TensorStats:
    """One tensor as stored; sums are float64."""

    name: str
    dtype: str
    """By safetensors' name."""
    shape: tuple[int, ...]
    norm: float
    mean: float
    std: float
    """Over all elements (not of a sample)."""
    low: float
    high: float


@dataclass(frozen=True)
class Description:
    """One checkpoint."""

    where: str
    kind: str
    """step folder, release or Hugging Face folder."""
    identity: dict[str, Any]
    """name (of a release), step, tokens, weights (SHA-256), permanent or ephemeral, parent, ..."""
    architecture: dict[str, Any]
    """Fields of the model's config, dotted; those that are None left out."""
    parameters: dict[str, int]
    """total, active."""
    parameters_by_kind: dict[str, int]
    dtypes: dict[str, int]
    """Tensors of each number format."""
    training: dict[str, Any]
    """Facts of the run at this step; empty if no run is known."""
    data: dict[str, Any]
    """Where in the data it stands; empty if no run is known."""
    evaluations: list[Evaluation]
    """Of this step."""
    has_optimizer: bool
    files: dict[str, int]
    """Bytes by path."""
    tensors: list[TensorStats] | None
    """None: not asked for."""


def describe(checkpoint: Checkpoint, with_tensors: bool = False) -> Description:
    """Gather everything; `with_tensors` reads the weights, a few MiB at a time.

    Raises:
        CheckpointError: a file cannot be read.
    """
    release = read_release_folder(checkpoint.folder) if (checkpoint.folder / RELEASE).exists() else None
    counts, weights = count_params(checkpoint.model), checkpoint.weights
    kind = "release" if release is not None else "Hugging Face folder" if checkpoint.is_hf else "step folder"
    return Description(
        checkpoint.where, kind, _identity(checkpoint, release), flat(to_plain(checkpoint.model)),
        {"total": counts.total, "active": counts.active}, parameters_by_kind(checkpoint.model, dict(weights.shapes)),
        dict(Counter(DTYPE_NAMES[weights.dtype(name)] for name in weights.shapes)), _training(checkpoint), _data(checkpoint),
        _evaluations(checkpoint, release), _has_optimizer(checkpoint, release), _files(checkpoint.folder),
        of_each(lambda name: tensor_stats(checkpoint, name), list(weights.shapes)) if with_tensors else None,
    )  # fmt: skip


def tensor_stats(checkpoint: Checkpoint, name: str) -> TensorStats:
    """Of one tensor, read in pieces."""
    weights, sums = checkpoint.weights, row_stats(checkpoint.weights, name)
    shape = weights.shapes[name]
    square, mean = float(sums.square.sum()), float(sums.total.sum()) / math.prod(shape)
    variance = square / math.prod(shape) - mean**2
    return TensorStats(
        name, DTYPE_NAMES[weights.dtype(name)], shape, math.sqrt(square), mean,
        0.0 if variance < 0 else math.sqrt(variance), float(sums.low.min()), float(sums.high.max()),
    )  # fmt: skip


def parameters_by_kind(model: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Elements of each kind of matrix."""
    counts: Counter[str] = Counter()
    for name, shape in shapes.items():
        for matrix in matrices_of(name, shape, model):
            counts[matrix.kind] += math.prod(matrix.shape)
    return dict(counts)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name, without those that are None."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            out[f"{prefix}{name}"] = value
    return out


def _identity(checkpoint: Checkpoint, release: Release | None) -> dict[str, Any]:
    out: dict[str, Any] = {"step": checkpoint.step, "tokens": checkpoint.state.get("tokens")}
    if release is not None:
        out |= {"name": release.name, "run": release.run, "stage": release.stage, "step": release.step, "tokens": release.tokens}
        out |= {"parent": None if release.parent is None else release.parent.get("name"), "release_sha256": release.sha256}
        out |= {"exact weights of the run": release.is_exact}
    elif not checkpoint.is_hf:
        manifest = read_manifest(checkpoint.folder)
        out |= {"kept": manifest["kind"], "written by ranks": manifest["n_ranks"]}
    return out | {"weights_sha256": weights_identity(checkpoint)}


def _training(checkpoint: Checkpoint) -> dict[str, Any]:
    run, state = checkpoint.run, checkpoint.state
    if run is None:
        return {}
    done = state["tokens"] / run.max_tokens if run.max_tokens else None
    out = {
        "run": run.run_name, "seed": run.seed, "loss": state["loss"], "lr": state["lr"], "peak_lr": state.get("peak_lr"),
        "tokens_planned": run.max_tokens, "done_frac": done, "global_batch_size": run.data.global_batch_size,
        "seq_len": run.data.seq_len, "optimizer": "adamw" if run.optim.muon is None else "muon",
        "optimizer_steps": state.get("optimizer_steps"), "ranks": state.get("n_ranks"),
        "loaded_from": None if run.load is None else run.load.path,
    }  # fmt: skip
    starts = _provenance(checkpoint).get("starts") or []
    if starts:
        git = starts[-1].get("git") or {}
        out |= {"starts": len(starts), "command": starts[-1].get("command"), "device": starts[-1].get("device")}
        out |= {"code": git.get("commit"), "code_has_changes": git.get("has_changes")}
        out |= {"torch": (starts[-1].get("versions") or {}).get("torch")}
    return {name: value for name, value in out.items() if value is not None}


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    folder = checkpoint.folder / TRAINING if checkpoint.is_hf else checkpoint.folder
    try:
        values: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'provenance.json'} cannot be read: {error}") from error
    return values


def _data(checkpoint: Checkpoint) -> dict[str, Any]:
    position = checkpoint.state.get("data")
    if position is None or checkpoint.run is None:
        return {}
    order = position["order"]
    tokens = sum(source["tokens"] for source in order["sources"])
    out = {"next_instance": position["next_position"], "tokens_seen": checkpoint.state["tokens"]}
    out |= {"tokens_of_all_sources": tokens, "order": order["algorithm"], "order_seed": order["seed"]}
    out |= {"order_sha256": order["sha256"]}
    return out | {f"source {s['name']}": f"{s['tokens']:,} tokens, manifest {s['manifest'][:16]}" for s in order["sources"]}


def _evaluations(checkpoint: Checkpoint, release: Release | None) -> list[Evaluation]:
    if release is not None:
        return [Evaluation(release.step, **entry) for entry in release.evaluations]
    if checkpoint.is_hf:
        return []
    return [entry for entry in read_evaluations(checkpoint.folder.parent.parent) if entry.step == checkpoint.step]


def _has_optimizer(checkpoint: Checkpoint, release: Release | None) -> bool:
    if release is not None:
        return release.has_optimizer  # its files may have been left where they are
    try:
        MomentWeights.of(checkpoint)
    except ConfigError:
        return False
    return True


def _files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
