"""What the ranks of one start of a run leave behind for whoever started them: how each ended, and where it stood.

    attempts/0003/
        rank-00001.log          what this rank printed (written by the launcher)
        rank-00001.end.json     how it ended: `RankEnd`
        rank-00001.stacks.txt   where its threads stood when the watchdog ended it
        attempt.json            what the launcher made of it

A launcher names the folder in the environment variable `OLMO_ATTEMPT_DIR`; without it nothing is written.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

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
    """Leave word of how a rank ended; the first word stays."""
    path = folder / f"rank-{end.rank:05d}.end.json"
    if not path.exists():
        write_atomic(path, json.dumps({**asdict(end), "time": end.time or time.time()}).encode())


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
