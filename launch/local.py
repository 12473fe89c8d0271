"""Train on several ranks of this machine: `olmo launch local --ranks 2 run_name=first model=tiny_moe ...`

The config is checked here first, once and without torch, for the number of ranks; then torchrun starts `olmo_train.train`.
"""

import argparse
import os
import signal
import subprocess
import sys
from typing import Any

from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError, run_command
from olmo_train.problems import find_problems
from olmo_train.schema import load_config


def main(argv: list[str]) -> None:
    """Check, start, wait; the exit status is torchrun's."""
    parser = argparse.ArgumentParser("olmo launch local", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="processes on this machine; one per GPU")
    parser.add_argument("--dry-run", action="store_true", help="check, and print the command instead of running it")
    args, overrides = parser.parse_known_args(argv)
    if args.ranks < 1:
        raise ConfigError(f"--ranks={args.ranks} must be at least 1")
    load_config("train", TrainConfig, overrides, lambda run: find_problems(run, n_ranks=args.ranks))
    command = local_command(args.ranks, overrides)
    if args.dry_run:
        print(" ".join(command))
        return
    raise SystemExit(_run(command))


def local_command(ranks: int, overrides: list[str]) -> list[str]:
    """The torchrun command line. Rendezvous is on a free port of loopback; a rank that dies ends the others."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*torchrun, "-m", "olmo_train.train", *overrides]


def _run(command: list[str]) -> int:
    """Run and pass on the signals that ask for a stop; torchrun gives the ranks time to save."""
    # torchrun would otherwise set it to 1 with a warning of six lines; the trainer divides the cores itself.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen(command, env=environment)

    def forward(number: int, _frame: Any) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    return process.wait()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
