"""The step folders of a run: every byte against their manifests, none twice, none missing, and the run's own records."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from checkpoints.verify.ledger import Ledger, data_values, metrics_values, read_ledger
from checkpoints.weights import StepWeights
from olmo_train.checkpoint import read_manifest, read_state, verify_files
from olmo_train.config.train import TrainConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.saver import is_due
from olmo_train.schema import read_yaml
from olmo_train.step_folder import list_steps, step_name

MUST_DIFFER = "embedding.weight"
"""Trained at every step; idle experts may stay the same for a while."""
MOST_EQUAL = 0.5
"""Share of equal tensors from which two steps count as one and the same."""
REMEDY = "train it again from the step before, or take it from a copy"


def check_step(folder: Path, is_quick: bool) -> tuple[str, list[str]]:
    """(a line about a step folder, its problems); `is_quick`: sizes instead of contents."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return f"{folder}: DAMAGED, its manifest cannot be used", [str(error)]
    found = wrong_sizes(folder, manifest) if is_quick else verify_files(folder, manifest)
    if not found:
        found = list(_contradictions(folder, manifest))
    found += missing_rows(folder, manifest)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    how = "DAMAGED" if found else "sizes as they should be" if is_quick else "whole"
    return f"{folder}: {how}, {len(manifest['files'])} files, {size / 2**20:,.1f} MiB", found


def wrong_sizes(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files that are missing or have another size."""
    problems = []
    for name, entry in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            problems.append(f"{folder / name}: {error.strerror}")
            continue
        if size != entry["bytes"]:
            problems.append(f"{folder / name}: {size} bytes, the manifest says {entry['bytes']}")
    return problems


def missing_rows(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Tensors whose shards do not cover them from the first row to the last."""
    problems = []
    for group, tensors in manifest["tensors"].items():
        for name, entry in tensors.items():
            at = 0
            for shard in sorted(entry["shards"], key=lambda s: int(s["start"])):
                at = shard["stop"] if shard["start"] == at else at
            if entry["shape"] and at != entry["shape"][0]:
                problems.append(f"{folder}: {group} tensor {name!r} has rows up to {at} of {entry['shape'][0]}")
    return problems


def _contradictions(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    try:
        state, run = read_state(folder), read_yaml(folder / "config.yaml", TrainConfig)
    except (CheckpointError, ConfigError) as error:
        yield str(error)
        return
    step = manifest["step"]
    if folder.name.startswith("step") and folder.name != step_name(step):
        yield f"{folder}: its manifest is that of step {step}, which is called {step_name(step)}; give the folder its name back"
    wanted = {"step": step, "tokens": step * run.data.global_batch_size}
    for name, value in wanted.items():
        if state.get(name) != value:
            yield f"{folder / 'state.json'}: {name}={state.get(name)}, must be {value} at step {step}; {REMEDY}"


# ---- the run ------------------------------------------------------------------------------------------------------------


def run_problems(run: Path, whole: set[int], is_quick: bool) -> list[str]:
    """Problems of a run as a whole; `whole` are the steps in which `check_step` found none of its own.

    Raises:
        ConfigError: the config of the run cannot be used.
    """
    config, folders = read_yaml(run / "config.yaml", TrainConfig), dict(list_steps(run / "steps"))
    good = {step: folder for step, folder in folders.items() if step in whole}
    batch = config.data.global_batch_size
    metrics = _read(run / "metrics.jsonl", metrics_values(batch), good)
    data = _read(run / "data.jsonl", data_values(batch // config.data.seq_len), good)
    return [
        *_twins(good, metrics.skipped, is_quick),
        *_gaps(run, folders, config),
        *_ledger(run / "metrics.jsonl", metrics, folders),
        *_losses(run / "metrics.jsonl", metrics, good),
        *_ledger(run / "data.jsonl", data, folders),
    ]


def _twins(folders: dict[int, Path], skipped: set[int], is_quick: bool) -> Iterator[str]:
    seen: dict[tuple[str, str], list[int]] = defaultdict(list)  # tensor and digest -> steps
    totals = {}
    for step, folder in folders.items():
        digests = _file_digests(folder) if is_quick else _tensor_digests(folder)
        totals[step] = len(digests)
        for name, digest in digests.items():
            seen[name, digest].append(step)
    common: dict[tuple[int, int], list[str]] = defaultdict(list)
    for (name, _), steps in seen.items():
        for pair in pairwise(steps):
            common[pair].append(name)
    what = "files of weights" if is_quick else "tensors"
    for (a, b), names in common.items():
        is_twin = MUST_DIFFER in names or len(names) > MOST_EQUAL * totals[b]
        if is_twin and not skipped.issuperset(range(a + 1, b + 1)):
            said = f"{len(names)} of {totals[b]} {what} equal those of step {a}"
            yield f"{folders[b]}: {said}; one was copied over the other: {REMEDY}"


def _file_digests(folder: Path) -> dict[str, str]:
    files = read_manifest(folder)["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.startswith("model-")}


def _tensor_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the rows of every tensor, however many ranks wrote them; memory holds one tensor."""
    weights = StepWeights(folder)
    return {name: _sha256(weights, name) for name in weights.shapes}


def _sha256(weights: StepWeights, name: str) -> str:
    return hashlib.sha256(weights.read(name).contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def _gaps(run: Path, folders: dict[int, Path], config: TrainConfig) -> Iterator[str]:
    """Steps that should have been saved. Intervals may change between starts: a step is judged by the config saved next."""
    if not folders:
        return
    missing, at = [], 0
    for step, folder in folders.items():
        try:
            saved = read_yaml(folder / "config.yaml", TrainConfig)
        except ConfigError:
            saved = config
        total = saved.max_tokens // saved.data.global_batch_size
        missing += [n for n in range(at, step) if is_due(saved.checkpoint, n, total) == "permanent"]
        at = step + 1
    if missing:
        said = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        yield f"{run / 'steps'}: no step folder of step {said}, which checkpoint.save_every asks for; {REMEDY}"


def _losses(file: Path, metrics: Ledger, folders: dict[int, Path]) -> Iterator[str]:
    for step, line in metrics.kept.items():
        loss = read_state(folders[step]).get("loss")
        if step > 0 and loss != line.get("loss"):
            yield (
                f"{file}: loss {line.get('loss')} at step {step}, {folders[step] / 'state.json'} says {loss}; one of them is of "
                "another run: take both from one copy"
            )


def _read(file: Path, expected: Any, folders: dict[int, Path]) -> Ledger:
    """A last line without an end is being written, or was cut where the run was killed; its next start drops it."""
    try:
        with open(file, "rb") as lines:
            whole = (line[:-1] for line in lines if line.endswith(b"\n"))
            return read_ledger(whole, expected, lambda step: step in folders)
    except OSError as error:
        return Ledger(problems=[str(error.strerror)])


def _ledger(file: Path, ledger: Ledger, folders: dict[int, Path]) -> Iterator[str]:
    for problem in ledger.problems:
        yield f"{file}: {problem}; restore it from a release or a copy: what was trained cannot be told without it"
    newest = max(folders, default=0)
    if ledger.last_step < newest and not ledger.problems:
        yield f"{file}: ends at step {ledger.last_step}, step {newest} is saved; restore it from a release or a copy"
