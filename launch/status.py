"""Where a run stands: its folder, the folder of its newest job, and what Slurm says of that. Read only."""

import fcntl
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch import slurm
from launch.attempts import explain, read_attempt
from launch.job_folder import Job, attempts, numbered, slurm_ids
from launch.restart import Action
from launch.slurm import QueuedJob, SlurmError
from olmo_train.attempt import RankEnd, first_failure, read_ends
from olmo_train.errors import ConfigError
from olmo_train.step_folder import MANIFEST, list_set_aside, list_steps

TAIL = 1 << 16
"""Bytes read of the end of metrics.jsonl at first; more, up to 64 times, until a line with a speed is in them."""


@dataclass
class Status:
    """One run. What is not known is None."""

    name: str
    run_dir: str
    state: str = "unknown"
    """running, pending, ... as Slurm says; training: without Slurm, on this machine; else complete, paused, stopped, cancelled,
    failed; not started; unknown: Slurm cannot be asked."""
    reason: str = ""
    """Why it waits, or how the newest start ended."""
    job_folder: str | None = None
    slurm_id: str | None = None
    nodes: list[str] = field(default_factory=list)
    start: str = ""
    """When a pending job is expected to start."""
    left_s: int | None = None
    """Of the time limit."""
    starts: int | None = None
    """Of ranks, in all jobs of the run; None: it was not launched, so nobody counted."""
    requeues: int | None = None
    """Of the newest Slurm job."""
    step: int | None = None
    last_step: int | None = None
    tokens: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    """At the newest speed."""
    metrics_age_s: float | None = None
    """Since the newest metrics were written; both clocks are the file system's and this machine's."""
    slowest: dict[str, Any] | None = None
    """The slowest rank of the newest interval, as metrics.jsonl names it."""
    saved_step: int | None = None
    saved_age_s: float | None = None
    set_aside: list[str] = field(default_factory=list)
    """Step folders that were found damaged, or suspected of corruption, and are not used."""


@dataclass
class ArrayStatus:
    """An array of data tasks (launch/tasks.py)."""

    name: str
    folder: str
    n_tasks: int
    done: int
    running: int
    waiting: int
    failed: int | None
    """Begun, not done, and not in the queue; None: Slurm cannot be asked."""


def find_arrays(root: Path) -> list[Path]:
    """Folders of arrays of tasks below `root`, the oldest first."""
    return sorted(path.parent for path in root.glob("*/tasks.json"))


def read_array(folder: Path, queued: dict[str, QueuedJob], slurm_answers: bool = True) -> ArrayStatus:
    """How far an array of tasks is.

    Raises:
        ConfigError: its job.json cannot be read.
    """
    ids = {entry["id"] for entry in slurm_ids(folder)}
    live = {job.id.split("_")[1]: job for job in queued.values() if "_" in job.id and job.id.split("_")[0] in ids}
    done = {int(path.name) for path in (folder / "done").glob("*") if path.name.isdigit()}
    begun = {int(path.stem) for path in (folder / "tasks").glob("*.log") if path.stem.isdigit()}
    known = {int(number) for number in live if number.isdigit()}
    waiting = sum(job.state == "PENDING" for job in live.values())
    return ArrayStatus(
        name=Job.read(folder).run_name,
        folder=str(folder),
        n_tasks=json.loads((folder / "tasks.json").read_text())["n_tasks"],
        done=len(done),
        running=len(live) - waiting,
        waiting=waiting,
        failed=len(begun - done - known) if slurm_answers else None,
    )


def find_runs(root: Path) -> list[Path]:
    """Folders of runs below `root`, the one that changed last at the end."""
    found = (
        [path for path in root.iterdir() if (path / "config.yaml").exists() or (path / "jobs").is_dir()] if root.is_dir() else []
    )
    return sorted(found, key=_changed)


def _changed(run: Path) -> float:
    paths = (run / "metrics.jsonl", run / "jobs", run / "config.yaml")
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


def find_run(root: Path, word: str) -> Path:
    """The folder of the run that a command line names: a path, or a name below `root`.

    Raises:
        ConfigError: there is none.
    """
    for path in (Path(word), root / word):
        if (path / "config.yaml").exists() or (path / "jobs").is_dir():
            return path
    near = ", ".join(path.name for path in find_runs(root)[-5:])
    raise ConfigError(f"RUN={word}: neither a run's folder nor a run below {root}{f' (there: {near})' if near else ''}")


def newest_job(run: Path) -> Path | None:
    """The folder of the run's newest job; None: it was never launched."""
    return max(job_folders(run), default=None)


def job_folders(run: Path) -> list[Path]:
    """Folders of the run's jobs, the oldest first."""
    return numbered(run / "jobs")


def ask_slurm(runs: Iterable[Path], arrays: Iterable[Path] = ()) -> tuple[dict[str, QueuedJob], str]:
    """(jobs of these runs and arrays that wait or run, by id; why Slurm could not be asked, or empty)."""
    folders = [*(folder for run in runs for folder in job_folders(run)[-1:]), *arrays]
    ids = [entry["id"] for folder in folders for entry in slurm_ids(folder)[-2:]]  # one that ends and the one after it
    try:
        return {job.id: job for job in slurm.queue(ids)}, ""
    except SlurmError as error:
        return {}, str(error)


def live_job(folder: Path, queued: dict[str, QueuedJob]) -> QueuedJob | None:
    """The Slurm job that runs this folder now, or will."""
    ids = [entry["id"] for entry in slurm_ids(folder)]
    live = [job for job_id in ids for job in queued.values() if job_id in (job.id, job.id.split("_")[0])]  # 12_3: a task of 12
    return live[-1] if live else None


def read_status(run: Path, queued: dict[str, QueuedJob], slurm_answers: bool = True) -> Status:
    """Everything known of one run."""
    folder = newest_job(run)
    status = Status(run.name, str(run), job_folder=str(folder) if folder else None)
    _read_progress(status, run, folder)
    _read_saved(status, run)
    if folder is not None:
        status.starts = sum(len(attempts(job)) for job in job_folders(run))
    job = live_job(folder, queued) if folder is not None else None
    if job is not None:
        status.state, status.reason, status.slurm_id, status.nodes = job.state.lower(), job.reason, job.id, job.nodes
        status.left_s, status.requeues, status.start = job.left_s, job.restarts, job.start if job.state == "PENDING" else ""
        return status
    ids = slurm_ids(folder) if folder is not None else []
    status.slurm_id = ids[-1]["id"] if ids else None
    status.state, status.reason = _ended(status, run, folder, knows_queue=slurm_answers or not ids)
    return status


def _ended(status: Status, run: Path, folder: Path | None, knows_queue: bool) -> tuple[str, str]:
    """(state, reason) of a run that Slurm does not run."""
    starts = attempts(folder) if folder is not None else []
    said = describe_end(starts[-1]) if starts else ""
    if is_locked(run):
        return "training", ""
    if status.saved_step is not None and status.last_step is not None and status.saved_step >= status.last_step:
        return "complete", ""
    noted = read_attempt(starts[-1]) if starts else None
    if not knows_queue and (noted is None or noted.action not in (Action.FINISHED, Action.END)):
        return "unknown", said
    if folder is not None and (folder / "cancelled").exists():
        return "cancelled", said
    if not starts:
        has_job = folder is not None and status.step is None
        return ("not started", "its job left the queue before any rank started; see the job log") if has_job else ("ended", "")
    ends = read_ends(starts[-1])
    if not ends:
        return "ended", said or "no rank could say how it ended"
    return ("failed" if first_failure(ends) else ends[0].kind.value), said


def describe_end(start: Path) -> str:
    """One line: how a start ended and what followed; empty if it runs, or nobody could say."""
    attempt, ends = read_attempt(start), read_ends(start)
    if first_failure(ends) is None and ends:
        return f"{ends[0].kind.value} after step {max(end.step for end in ends)}"
    if attempt is None or attempt.ended is None:
        return _describe_failure(ends)
    lines = explain(attempt, ends, [])
    said = lines[0].removeprefix("FIRST ERROR: ") if lines else ""
    if said.endswith(":"):  # of several problems, the first
        said = f"{said} {lines[1].strip()}"
    return "; ".join(part for part in (said, attempt.why) if part)


def _describe_failure(ends: list[RankEnd]) -> str:
    """Of a start that no supervisor has judged."""
    end = first_failure(ends)
    if end is None:
        return ""
    first = end.message.strip().splitlines()[0] if end.message.strip() else "no message"
    return f"{end.kind.value} on rank {end.rank}, {end.node}, after step {end.step}: {first}"


def is_locked(run: Path) -> bool:
    """Whether a process trains in this run folder, as far as the file system's locks tell."""
    try:
        with open(run / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a trainer that asks in this very moment asks again
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read_saved(status: Status, run: Path) -> None:
    steps = list_steps(run / "steps")
    status.set_aside = list_set_aside(run / "steps")
    if steps:
        status.saved_step = steps[-1][0]
        try:
            status.saved_age_s = max(time.time() - (steps[-1][1] / MANIFEST).stat().st_mtime, 0.0)
        except OSError:  # pruned at this moment
            status.saved_age_s = None


def _read_progress(status: Status, run: Path, folder: Path | None) -> None:
    status.last_step = _last_step(run, folder)
    lines = last_lines(run / "metrics.jsonl")
    if not lines:
        return
    newest = lines[-1]
    status.step, status.tokens, status.loss = newest["step"], newest.get("tokens"), newest.get("loss")
    timed = next((line for line in reversed(lines) if "tokens_per_s" in line), None)
    if timed is not None:
        status.tokens_per_s = timed["tokens_per_s"]
        status.slowest = (timed.get("ranks") or {}).get("slowest")
        if status.last_step is not None and timed.get("eta_s") is not None and timed["step"] < status.last_step:
            status.eta_s = timed["eta_s"] * (status.last_step - status.step) / (status.last_step - timed["step"])
    try:
        status.metrics_age_s = max(time.time() - (run / "metrics.jsonl").stat().st_mtime, 0.0)
    except OSError:
        status.metrics_age_s = None


def _last_step(run: Path, folder: Path | None) -> int | None:
    """By the newest config: the job's, which the run's follows once it starts."""
    for path in [*([folder / "config.yaml"] if folder else []), run / "config.yaml"]:
        try:
            config = OmegaConf.load(path)
            return int(config.max_tokens // config.data.global_batch_size)
        except (OSError, AttributeError, TypeError, ValueError, OmegaConfBaseException):
            continue
    return None


def last_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines at the end of metrics.jsonl, up to one with a speed if it is near; the file may be large."""
    lines: list[dict[str, Any]] = []
    for n_bytes in (TAIL, 8 * TAIL, 64 * TAIL):
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(size - n_bytes, 0))
                text = file.read()
        except OSError:
            return []
        parts = text.split(b"\n")
        if n_bytes < size:
            del parts[0]  # its beginning is not in the tail
        lines = [line for part in parts if (line := _parse(part)) is not None]
        if n_bytes >= size or any("tokens_per_s" in line for line in lines):
            break
    return lines


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "step" in line else None
