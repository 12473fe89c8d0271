"""Between which two checkpoints to replay, and both of them brought to this machine and verified."""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from checkpoints.catalog import find_folders
from checkpoints.opening import open_hf_folder, open_step_folder
from checkpoints.publish.file_store import FileStore
from checkpoints.publish.filling import fill
from checkpoints.publish.stores import Store
from checkpoints.release import MANIFEST, SIGNATURE, Release, parse_revision, read_release
from checkpoints.verify.release_check import Depth
from checkpoints.verify.releases import Findings, verify_revision
from checkpoints.verify.replay import End
from checkpoints.verify.steps import check_step
from checkpoints.verify.targets import ReleaseTarget, RunTarget, SeriesTarget, StepTarget, Target
from olmo_train.checkpoint import read_manifest
from olmo_train.errors import CheckpointError, ConfigError

WORKERS = 4
"""Files fetched at a time."""


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    start: str | None
    """A revision, or a step of a run; None: the newest that has a successor and the optimizer state."""
    steps: int | None
    """None: to the next checkpoint."""


def find_ends(target: Target, wanted: Wanted, depth: Depth, work: Path, findings: Findings) -> tuple[End, End, int]:
    """(start, end, the step to replay to); both verified, every problem added to `findings`.

    Raises:
        ConfigError: there is no such pair. CheckpointError: one of the two is damaged.
    """
    match target:
        case StepTarget(path):
            return _of_run(path.parent.parent, Wanted(path.name, wanted.steps), findings)
        case RunTarget(path):
            return _of_run(path, wanted, findings)
        case ReleaseTarget(store, revision):
            return _of_releases(store, Wanted(revision, wanted.steps), depth, work, findings)
        case SeriesTarget(store):
            return _of_releases(store, wanted, depth, work, findings)


# ---- step folders of a run ----------------------------------------------------------------------------------------------


def _of_run(run: Path, wanted: Wanted, findings: Findings) -> tuple[End, End, int]:
    folders = dict(find_folders(run))
    steps = sorted(folders)
    start = _chosen_step(wanted.start, steps, run) if wanted.start is not None else (steps[-2] if len(steps) > 1 else steps[-1])
    end, last = _end(start, steps, wanted.steps, str(run))
    for step in (start, end):
        line, problems = check_step(folders[step], is_quick=False)
        findings.add(str(folders[step]), line, problems)
    _stop_if_damaged(findings)
    first, second = (_opened(folders[step]) for step in (start, end))
    if not first.has_optimizer:
        raise ConfigError(f"{first.name} holds no optimizer state, so training cannot go on from it; choose another with --from")
    return first, second, last


def _opened(folder: Path) -> End:
    return End(str(folder), open_step_folder(folder), bool(read_manifest(folder)["tensors"].get("optim")))


def _chosen_step(said: str, steps: list[int], run: Path) -> int:
    digits = said.removeprefix("step")
    if not digits.isdigit() or int(digits) not in steps:
        raise ConfigError(f"--from={said} is not a saved step of {run}; saved: {', '.join(map(str, steps))}")
    return int(digits)


def _end(start: int, steps: list[int], n_steps: int | None, where: str) -> tuple[int, int]:
    """(the checkpoint to compare with, the step to replay to)."""
    last = start + n_steps if n_steps is not None else start + 1
    later = [step for step in steps if step >= last]
    if not later:
        asked = "" if n_steps is None else f" that {n_steps} steps reach or come before"
        raise ConfigError(
            f"{where}: after step {start} there is no checkpoint{asked}, so nothing to compare a replay with; "
            f"there are: {', '.join(map(str, steps))}; choose with --from, and fewer steps"
        )
    return later[0], last if n_steps is not None else later[0]


# ---- releases -----------------------------------------------------------------------------------------------------------


def _of_releases(store: Store, wanted: Wanted, depth: Depth, work: Path, findings: Findings) -> tuple[End, End, int]:
    places = {name: place for name in store.revisions() if (place := parse_revision(name)) is not None}
    if wanted.start is not None and wanted.start not in places:
        raise ConfigError(f"--from={wanted.start} is not a release of {store.where}; there are: {', '.join(places) or 'none'}")
    start = wanted.start or _newest_pair(store, list(places))
    if not _manifest(store, start).has_optimizer:
        raise ConfigError(
            f"{start} was published without the optimizer state, so training cannot go on from it; choose another with --from, "
            "or publish with the state"
        )
    stage, first, _ = places[start]
    by_step = {step: name for name, (s, step, _) in places.items() if s == stage}
    end, last = _end(first, sorted(by_step), wanted.steps, f"{store.where}, stage {stage}")
    local = _brought(store, [start, by_step[end]], work)
    releases = {name: verify_revision(local, name, depth, findings).release for name in (start, by_step[end])}
    _stop_if_damaged(findings)
    opened = (End(n, open_hf_folder(Path(local.root, n)), r is not None and r.has_optimizer) for n, r in releases.items())
    return next(opened), next(opened), last


def _stop_if_damaged(findings: Findings) -> None:
    if findings.problems:
        raise CheckpointError("\n".join([*findings.problems, "nothing was replayed: both ends must be whole first"]))


def _brought(store: Store, names: list[str], work: Path) -> FileStore:
    """A store on this machine with the releases; one that is here already is taken as it is."""
    if isinstance(store, FileStore) and Path(store.root).is_dir():
        return store
    for name in names:
        folder, text = work / "releases" / name, store.read(name, MANIFEST)
        release = read_release(text, f"{store.where}: {name}")
        files = {path: (entry["bytes"], entry["sha256"]) for path, entry in release.files.items()}
        fill(folder, files, partial(store.open, name), f"{store.where}: {name}", WORKERS, lambda n_bytes: None)
        (folder / MANIFEST).write_bytes(text)
        if SIGNATURE in store.files(name):
            (folder / SIGNATURE).write_bytes(store.read(name, SIGNATURE))
    return FileStore(str(work / "releases"))


def _newest_pair(store: Store, names: list[str]) -> str:
    pairs = [(a, b) for a, b in itertools.pairwise(names) if a.split("-")[0] == b.split("-")[0]]
    for name, _ in reversed(pairs):
        if _manifest(store, name).has_optimizer:
            return name
    raise ConfigError(
        f"{store.where}: no release with the optimizer state is followed by another of its stage, so there is nothing to replay; "
        f"there are: {', '.join(names) or 'none'}"
    )


def _manifest(store: Store, name: str) -> Release:
    return read_release(store.read(name, MANIFEST), f"{store.where}: {name}")
