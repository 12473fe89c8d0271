"""torchrun for ranks that save when asked to stop: `python -m olmo_train.parallel.torchrun --nproc-per-node 2 -m MODULE ...`

Two differences from torchrun itself. SIGTERM, SIGINT and SIGUSR1 are passed on to the ranks and then waited for; torchrun would
kill them after 30 seconds and end with a traceback of its own. And the exit status is that of the first rank that failed, where
torchrun's is always 1. Options, rendezvous and environment are torchrun's.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: list[str]) -> int:
    """Run torchrun's command line `argv`; return the exit status."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said what was wrong
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _pass_on)
    try:
        run.main(["--signals-to-handle=SIGQUIT", *argv])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"error: rank {rank} was ended by {name}; the other ranks were stopped", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


def _pass_on(number: int, _frame: Any) -> None:
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                os.kill(int(pid), number)
            except ProcessLookupError:
                continue  # it ended just now


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
