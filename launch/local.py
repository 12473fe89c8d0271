"""Train on several ranks of this machine: `olmo launch local --ranks 2 run_name=first model=tiny_moe ...`

The config and the manifests of its data are checked here first, once and without torch, for the number of ranks; then this
process becomes torchrun, which starts `olmo_train.train`. With `--restarts K` it stays, and starts the ranks again where they
fail, as loop.py does under Slurm too: up to K times in a row without a newer step saved.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.attempts import Attempt
from launch.job_folder import Job, new_folder
from launch.loop import Story, Supervisor
from olmo_train.attempt import ATTEMPT_DIR, log_path, node_name
from olmo_train.config.train import TrainConfig
from olmo_train.data.checks import find_data_problems
from olmo_train.errors import ConfigError, run_command
from olmo_train.model.shapes import vocab_rows
from olmo_train.problems import find_problems
from olmo_train.schema import load_config


def main(argv: list[str]) -> None:
    """Check, and start; does not return. The exit status is that of the first rank that failed, or 0."""
    parser = argparse.ArgumentParser("olmo launch local", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="processes on this machine; one per GPU")
    parser.add_argument("--restarts", type=int, default=0, help="start again after failures: this often in a row at most")
    parser.add_argument("--dry-run", action="store_true", help="check, and print the command instead of running it")
    args, overrides = parser.parse_known_args(argv)
    if args.ranks < 1:
        raise ConfigError(f"--ranks={args.ranks} must be at least 1")
    if args.restarts < 0:
        raise ConfigError(f"--restarts={args.restarts} must be at least 0; 0 never starts again")

    def check(run: TrainConfig) -> list[str]:
        data_problems = find_data_problems(run.data, vocab_rows(run.model), run.eval.needs_heldout)
        return find_problems(run, n_ranks=args.ranks) + data_problems

    run = load_config("train", TrainConfig, overrides, check)
    command = local_command(args.ranks, overrides)
    if args.dry_run:
        print(shlex.join(command))
        return
    if args.restarts:
        raise SystemExit(run_again_and_again(run, args.ranks, args.restarts, command))
    sys.stdout.flush()
    # torchrun would otherwise set OMP_NUM_THREADS to 1 with a warning of six lines; the trainer divides the cores itself.
    os.execve(command[0], command, {"OMP_NUM_THREADS": "1", **os.environ})


def local_command(ranks: int, overrides: list[str]) -> list[str]:
    """The command line. Rendezvous is on a free port of loopback; a rank that dies ends the others."""
    torchrun = [sys.executable, "-m", "olmo_train.parallel.torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    return [*torchrun, "-m", "olmo_train.train", *overrides]


def run_again_and_again(run: TrainConfig, ranks: int, restarts: int, command: list[str]) -> int:
    """Run `command` until the run is complete or too much has failed; the story goes to the terminal and to job-local.log."""
    run_dir = Path(run.run_dir).absolute()
    folder = new_folder(run_dir / "jobs")
    job = Job(
        run_name=run.run_name, run_dir=str(run_dir), kind="train", command=command, ranks_per_node=ranks,
        max_failures=restarts, silent_s=run.faults.silent_s, requeue=False,
    )  # fmt: skip
    job.write(folder)
    site = Here(job)
    supervisor = Supervisor(folder, job, site, Story(folder / "job-local.log"))

    def pass_on(number: int, _frame: Any) -> None:
        supervisor.told_to_end = True
        site.pass_on(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    _, why, status = supervisor.run()
    supervisor.tell(f"the end{f', exit status {status}' if status else ''}: {why}")
    return status


@dataclass
class Here:
    """This machine as the place where a supervisor runs ranks: one node, no queue."""

    job: Job
    process: "subprocess.Popen[bytes] | None" = None

    can_requeue = False

    def look(self) -> tuple[list[str], float | None]:
        """This machine, without a time limit."""
        return [node_name()], None

    def start(self, attempt: Attempt) -> "subprocess.Popen[bytes]":
        """Start torchrun; what all ranks print goes to the terminal and to the log of rank 0."""
        environment = {"OMP_NUM_THREADS": "1", **os.environ, ATTEMPT_DIR: attempt.folder}
        self.process = subprocess.Popen(
            self.job.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        threading.Thread(target=_copy, args=(self.process, log_path(Path(attempt.folder), 0)), daemon=True).start()
        return self.process

    def said(self, attempt: Attempt) -> list[str]:
        """Nothing: torchrun's words are in the log."""
        return []

    def probe(self, nodes: list[str], enough: int) -> list[str]:
        """This machine answers."""
        return nodes

    def steps(self) -> list[str]:
        """Ranks that were started from here; none of an earlier supervisor's."""
        return ["torchrun"] if self.process is not None and self.process.poll() is None else []

    def stop(self, process: "subprocess.Popen[bytes] | None") -> None:
        """Kill what is left of torchrun and its ranks."""
        process = process or self.process
        if process is not None:
            for pid in [*_descendants(process.pid), process.pid] if process.poll() is None else []:
                _send(pid, signal.SIGKILL)
            process.wait()

    def pass_on(self, number: int) -> None:
        """Send a signal to torchrun, which passes it on to the ranks."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def _copy(process: "subprocess.Popen[bytes]", path: Path) -> None:
    assert process.stdout is not None
    with open(path, "ab") as log:
        for line in process.stdout:
            with contextlib.suppress(OSError):  # a full disk; who reads no more would stop the ranks
                log.write(line)
                log.flush()
            sys.stderr.buffer.write(line)
            sys.stderr.flush()


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended just now


if __name__ == "__main__":
    raise SystemExit(run_command(main))
