"""What the ranks of one start of a run leave behind for whoever started them: how each ended, and where it stood.

    attempts/0003/
        rank-00001.log          what this rank printed (written by the launcher)
        rank-00001.end.json     how it ended: `RankEnd`
        rank-00001.stacks.txt   where its threads stood when the watchdog ended it
        attempt.json            what the launcher made of it

A launcher names the folder in the environment variable `OLMO_ATTEMPT_DIR`; without it nothing is written.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from olmo_train.errors import (
    EXIT_CORRUPT,
    EXIT_FAILED,
    EXIT_STOPPED,
    EXIT_UNHEALTHY,
    EXIT_USAGE,
    CheckpointError,
    ConfigError,
    CorruptionError,
    PeerError,
    RendezvousError,
    ShardError,
    StoppedBySignal,
    TrainingError,
    UnhealthyError,
    run_command,
)
from olmo_train.files import write_atomic

ATTEMPT_DIR = "OLMO_ATTEMPT_DIR"
"""Environment variable: the folder of this attempt, on a file system that all ranks share."""


class EndKind(StrEnum):
    """How a rank ended."""

    COMPLETE = "complete"
    """The run's last step is saved."""
    PAUSED = "paused"
    """`stop_at_step` is reached and saved."""
    STOPPED = "stopped"
    """A signal asked for it; the step is saved."""
    CONFIG = "config"
    """Wrong input: config, shards. Starting again would end alike."""
    FAILED = "failed"
    """TrainingError or CheckpointError."""
    EXCEPTION = "exception"
    """Any other exception."""
    HUNG = "hung"
    """Ended by the watchdog."""
    PEER = "peer"
    """Another rank ended first, and this one had to."""
    UNHEALTHY = "unhealthy"
    """The health check found a device or a link that computes wrongly."""
    CORRUPT = "corrupt"
    """Replicas, or a step taken twice, differed."""


PATIENCE_S = 5.0
"""For a file system that refuses a rank's last word."""
ECHOES = (EndKind.PEER, EndKind.HUNG)
"""Ends that follow from another rank's, where there is another."""


@dataclass
class RankEnd:
    """How one rank ended."""

    rank: int
    node: str
    kind: EndKind
    exit_status: int
    step: int
    """The last step that this rank finished."""
    message: str = ""
    """What its user should read first; empty for a good end."""
    traceback: str = ""
    order: int | None = None
    """1 for the first rank that failed, counted by the ranks' rendezvous and so by one clock; None: it could not be asked."""
    time: float = 0.0
    """Unix time on this rank's node; not to be compared between nodes."""
    bad_nodes: list[str] = field(default_factory=list)
    """Nodes that should not be used for the next attempt."""


def attempt_folder() -> Path | None:
    """The folder of this attempt, or None without a launcher that wants to know."""
    text = os.environ.get(ATTEMPT_DIR)
    return Path(text) if text else None


def node_name() -> str:
    """The name of this machine for the scheduler, else its host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def stacks_path(folder: Path, rank: int) -> Path:
    """Where the watchdog writes the stacks of a rank."""
    return folder / f"rank-{rank:05d}.stacks.txt"


def log_path(folder: Path, rank: int) -> Path:
    """Where a launcher writes what a rank prints."""
    return folder / f"rank-{rank:05d}.log"


def write_end(folder: Path, end: RankEnd) -> None:
    """Leave word of how a rank ended; the first word stays. A full disk has room again once a failed save is taken away.

    Raises:
        OSError: the file system refused for `PATIENCE_S`.
    """
    path = folder / f"rank-{end.rank:05d}.end.json"
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        try:
            write_atomic(path, json.dumps({**asdict(end), "time": end.time or time.time()}).encode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def read_ends(folder: Path) -> list[RankEnd]:
    """How the ranks ended that could still say so, in rank order; a file cut short is passed over."""
    ends = []
    for path in sorted(folder.glob("rank-*.end.json")):
        try:
            values = json.loads(path.read_text())
            ends.append(RankEnd(**{**values, "kind": EndKind(values["kind"])}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return ends


def first_failure(ends: list[RankEnd]) -> RankEnd | None:
    """The end that explains the others: no echo of another's if there is one, then the first by the ranks' own count."""
    bad = [end for end in ends if end.kind not in (EndKind.COMPLETE, EndKind.PAUSED, EndKind.STOPPED)]
    return min(bad, key=lambda end: (end.kind in ECHOES, end.order is None, end.order or 0, end.rank), default=None)


def blamed_nodes(ends: list[RankEnd]) -> list[str]:
    """Nodes that should not be used again. A node that was cut off blames the others, and they blame it: the more voices count.

    Of as many voices, that of the lowest rank does. Who is found to be at fault has no voice.
    """
    voices = {(end.rank, end.node, node) for end in ends for node in end.bad_nodes}
    blamed: list[str] = []
    while voices:
        nodes = sorted({node for _, _, node in voices})
        worst = max(
            nodes, key=lambda node: (len({r for r, _, n in voices if n == node}), -min(r for r, _, n in voices if n == node))
        )
        blamed.append(worst)
        voices = {(rank, by, node) for rank, by, node in voices if node != worst and by != worst}
    return sorted(blamed)


# ---- a rank's main ---------------------------------------------------------------------------------------------------------


def run_rank(main: Callable[[list[str]], None]) -> int:
    """Run a rank's `main` as `run_command` does; record an error of it, and let nothing hang after one.

    Returns the exit status of a good end; with an error the process ends here, because taking down process groups whose other
    members are gone may wait for ever.
    """
    open_standard_files()
    if attempt_folder() is not None:
        stop_when_asked()

    def recorded(argv: list[str]) -> None:
        try:
            main(argv)
        except BaseException as error:
            end_undisturbed()
            record(error)
            raise

    try:
        status = run_command(recorded)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else EXIT_FAILED
    except BaseException:
        traceback.print_exc()
        status = EXIT_FAILED
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return 0


def stop_when_asked() -> None:
    """Until training begins there is nothing to save: a signal that asks for a stop ends this rank with `StoppedBySignal`."""

    def stop(_number: int, _frame: Any) -> None:
        raise StoppedBySignal

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


def end_undisturbed() -> None:
    """A rank that ends with an error takes seconds at most; a launcher's signal must not turn that into a stop."""
    if attempt_folder() is not None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def open_standard_files() -> None:
    """Put /dev/null where stdin, stdout or stderr are closed; else the first file that is opened would take the place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def end_of(error: BaseException) -> tuple[EndKind, int]:
    """How a rank ends that ends with `error`, and its exit status."""
    match error:
        case StoppedBySignal():
            return EndKind.STOPPED, EXIT_STOPPED
        case ConfigError() | ShardError():
            return EndKind.CONFIG, EXIT_USAGE
        case PeerError():
            return EndKind.PEER, EXIT_FAILED
        case CheckpointError() | TrainingError() | RendezvousError():
            return EndKind.FAILED, EXIT_FAILED
        case UnhealthyError():
            return EndKind.UNHEALTHY, EXIT_UNHEALTHY
        case CorruptionError():
            return EndKind.CORRUPT, EXIT_CORRUPT
    return EndKind.EXCEPTION, EXIT_FAILED


def make_end(error: BaseException, rank: int, step: int = 0) -> RankEnd:
    """The end of `rank` on this node by `error`."""
    kind, status = end_of(error)
    is_known = kind not in (EndKind.EXCEPTION, EndKind.STOPPED)
    message = str(error) if is_known else "" if kind == EndKind.STOPPED else f"{type(error).__name__}: {error}"
    text = "" if kind in (EndKind.STOPPED, EndKind.CONFIG) else "".join(traceback.format_exception(error))
    return RankEnd(rank, node_name(), kind, status, step, message, text, bad_nodes=list(getattr(error, "nodes", [])))


def record(error: BaseException) -> None:
    """Write how this rank ends, if a launcher wants to know and nobody has done it."""
    folder = attempt_folder()
    if folder is not None:
        with contextlib.suppress(OSError):  # the error itself is told on stderr
            write_end(folder, make_end(error, int(os.environ.get("RANK", "0"))))
