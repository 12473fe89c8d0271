"""Folders of runs and jobs as launchers, supervisors and ranks leave them, for tests of the commands that read them."""

import json
import time
from pathlib import Path
from typing import Any

from launch.attempts import Attempt
from launch.job_folder import Job, add_slurm_id, new_folder
from olmo_train.attempt import EndKind, RankEnd, log_path, write_end


def make_run(root: Path, name: str = "first", last_step: int = 100) -> Path:
    """A run that has just been configured."""
    run = root / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"max_tokens: {last_step * 4096}\ndata:\n  global_batch_size: 4096\n")
    return run


def make_job(run: Path, *slurm_ids: str) -> Path:
    """The folder of a new job of a run."""
    folder = new_folder(run / "jobs")
    Job(run.name, str(run.resolve()), "train", ["python"]).write(folder)
    if (run / "config.yaml").exists():
        (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    for job_id in slurm_ids:
        add_slurm_id(folder, job_id, time.time())
    return folder


def make_start(job: Path, *ends: tuple[int, EndKind, int, str], **more: Any) -> Path:
    """A start of a job: (rank, kind, step, message) of each rank that could say how it ended; a log of rank 0."""
    folder = new_folder(job / "attempts")
    for rank, kind, step, message in ends:
        write_end(folder, RankEnd(rank, f"node{rank + 1}", kind, 1, step, message, **more))
    log_path(folder, 0).write_text("".join(f"line {i}\n" for i in range(1, 101)))
    return folder


def end_start(start: Path, nodes: list[str], why: str = "", action: str = "again") -> None:
    """What a supervisor notes when the ranks are gone."""
    Attempt(str(start), nodes, 1, -1, started=1.0, ended=2.0, step_after=-1, action=action, why=why, failures=1).write()


def write_metrics(run: Path, steps: int, timed_every: int = 10, width: int = 0) -> None:
    """metrics.jsonl of so many steps; `width`: bytes that each line has besides."""
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            line: dict[str, Any] = {"step": step, "tokens": step * 4096, "loss": 5 - step / 100, "padding": "x" * width}
            if step % timed_every == 0:
                line |= {"tokens_per_s": 2048.0, "eta_s": (100 - step) * 2.0, "time": time.time()}
            file.write(json.dumps(line) + "\n")


def make_step(run: Path, step: int) -> None:
    """A finished step folder, as far as its name and its manifest tell."""
    folder = run / "steps" / f"step{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
