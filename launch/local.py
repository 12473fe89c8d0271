"""Train on several ranks of this machine: `olmo launch local --ranks 2 run_name=first model=tiny_moe ...`

The config and the manifests of its data are checked here first, once and without torch, for the number of ranks; then this
process becomes torchrun, which starts `olmo_train.train`.
"""

import argparse
import os
import shlex
import sys

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
    parser.add_argument("--dry-run", action="store_true", help="check, and print the command instead of running it")
    args, overrides = parser.parse_known_args(argv)
    if args.ranks < 1:
        raise ConfigError(f"--ranks={args.ranks} must be at least 1")

    def check(run: TrainConfig) -> list[str]:
        data_problems = find_data_problems(run.data, vocab_rows(run.model), run.eval.needs_heldout)
        return find_problems(run, n_ranks=args.ranks) + data_problems

    load_config("train", TrainConfig, overrides, check)
    command = local_command(args.ranks, overrides)
    if args.dry_run:
        print(shlex.join(command))
        return
    sys.stdout.flush()
    # torchrun would otherwise set OMP_NUM_THREADS to 1 with a warning of six lines; the trainer divides the cores itself.
    os.execve(command[0], command, {"OMP_NUM_THREADS": "1", **os.environ})


def local_command(ranks: int, overrides: list[str]) -> list[str]:
    """The command line. Rendezvous is on a free port of loopback; a rank that dies ends the others."""
    torchrun = [sys.executable, "-m", "olmo_train.parallel.torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    return [*torchrun, "-m", "olmo_train.train", *overrides]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
