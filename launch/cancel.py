"""End a job for good: `olmo cancel RUN` lets it save first, `--now` does not."""

import argparse
import getpass
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from launch import slurm
from launch.attempts import newest_step
from launch.job_folder import attempts, slurm_ids
from launch.slurm import QueuedJob
from launch.status import find_run, is_locked, live_job, newest_job
from olmo_train.attempt import node_name, read_ends
from olmo_train.errors import EXIT_FAILED, ConfigError, run_command
from olmo_train.files import write_atomic

SIGNAL = "USR1"
POLL_S = 2.0
AGAIN_S = 30.0
"""Between signals: the first may have come before the ranks were there to hear it."""


def main(argv: list[str]) -> None:
    """Cancel the newest job of a run.

    Raises:
        ConfigError: there is no such run, or it does not run.
        SystemExit: it was asked to save and has not ended in time.
    """
    parser = argparse.ArgumentParser("olmo cancel", description=__doc__)
    parser.add_argument("run", help="name or folder of a run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default runs)")
    parser.add_argument("--now", action="store_true", help="without saving; the steps after the last save are lost")
    parser.add_argument("--wait-s", type=float, default=900.0, help="for the save (default 900)")
    args = parser.parse_args(argv)
    run = find_run(args.runs, args.run)
    folder = newest_job(run)
    with slurm.told():
        job = live_job(folder, _queued(folder)) if folder is not None else None
        if folder is None or job is None:
            if not is_locked(run):
                raise ConfigError(f"{run}: nothing of it waits or runs; see `olmo jobs {args.run}`")
            _cancel_here(run, folder, args.now, args.wait_s)
        else:
            _cancel_job(run, folder, job, args.now, args.wait_s)


def _queued(folder: Path) -> dict[str, QueuedJob]:
    return {job.id: job for job in slurm.queue([entry["id"] for entry in slurm_ids(folder)])}


def mark_cancelled(folder: Path) -> None:
    """Leave the file after which nothing starts or requeues this job."""
    write_atomic(folder / "cancelled", f"by {getpass.getuser()}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())


def _cancel_job(run: Path, folder: Path, job: QueuedJob, now: bool, wait_s: float) -> None:
    mark_cancelled(folder)
    if now or job.state == "PENDING":
        slurm.cancel(job.id)
        print(f"job {job.id} is cancelled{'' if now else ', before it started'}; {_saved(run)}")
        return
    print(f"job {job.id} was asked to save and end; waiting for it (Ctrl-C leaves it to itself)", flush=True)
    ended = _wait(run, lambda: slurm.cancel(job.id, signal=SIGNAL), lambda: live_job(folder, _queued(folder)) is None, wait_s)
    if not ended:
        print(f"job {job.id} has not ended in {wait_s:g} s and still may; `olmo cancel {run} --now` ends it; {_saved(run)}")
        raise SystemExit(EXIT_FAILED)
    print(f"job {job.id} has ended; {_saved(run)}")


def _cancel_here(run: Path, folder: Path | None, now: bool, wait_s: float) -> None:
    """A run without Slurm: its first process left its number in the lock, and is asked if it is on this machine."""
    holder = (run / ".lock").read_text().strip()
    match = re.match(r"pid (\d+) on (\S+)", holder)
    pid = int(match[1]) if match else 0
    if match is None or match[2] != node_name() or b"olmo_train" not in _command_line(pid):
        raise ConfigError(f"{run}: {holder or 'a process'}, not of this machine, trains in it; end it there")
    if now:
        raise ConfigError(f"--now is for jobs of Slurm; {run} is trained by process {pid} on this machine")
    if folder is not None:
        mark_cancelled(folder)
    print(f"process {pid} was asked to save and end; waiting for it", flush=True)
    if not _wait(run, lambda: os.kill(pid, signal.SIGUSR1), lambda: not is_locked(run), wait_s):
        print(f"process {pid} has not ended in {wait_s:g} s and still may; {_saved(run)}")
        raise SystemExit(EXIT_FAILED)
    print(f"it has ended; {_saved(run)}")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wait(run: Path, ask: Callable[[], None], has_ended: Callable[[], bool], wait_s: float) -> bool:
    """Ask until the ranks leave, and wait for the end; say when a newer step is there. Whether it came in time."""
    before, told, asked = newest_step(run), False, float("-inf")
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if newest_step(run) != before and not told:
            print(f"step {newest_step(run)} is saved", flush=True)
            told = True
        if has_ended():
            return True
        if time.monotonic() - asked > AGAIN_S and not _is_leaving(run):
            ask()
            asked = time.monotonic()
        time.sleep(POLL_S)
    return has_ended()


def _is_leaving(run: Path) -> bool:
    """Whether a rank of the newest start has left its last word; what is left of it no longer knows the signal."""
    folder = newest_job(run)
    starts = attempts(folder) if folder is not None else []
    return bool(starts) and bool(read_ends(starts[-1]))


def _saved(run: Path) -> str:
    step = newest_step(run)
    return "no step is saved" if step < 0 else f"step {step} is the newest saved in {run / 'steps'}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
