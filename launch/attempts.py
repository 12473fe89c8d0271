"""What a supervisor notes of each attempt (attempt.json), and how it tells the end of one."""

import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.job_folder import attempts
from olmo_train.attempt import ECHOES, EndKind, RankEnd, first_failure, log_path, stacks_path
from olmo_train.files import write_atomic
from olmo_train.step_folder import list_steps

BLOCK = 1 << 16
"""Bytes of a log that are read at a time, from its end."""
GOOD = (EndKind.COMPLETE, EndKind.PAUSED, EndKind.STOPPED)


@dataclass
class Attempt:
    """One start of the ranks: attempt.json."""

    folder: str
    nodes: list[str]
    ranks_per_node: int
    step_before: int
    """Newest step saved when it began; -1: none."""
    started: float = field(default_factory=time.time)
    """Unix time of the supervisor's node, as `ended`."""
    slurm_id: str | None = None
    ended: float | None = None
    """None: it runs, or its supervisor was lost with it."""
    step_after: int | None = None
    action: str = ""
    """What followed: restart.Action."""
    why: str = ""
    failures: int = 0
    """Attempts in a row up to this one that failed without a newer step saved."""
    bad_nodes: list[str] = field(default_factory=list)
    """Nodes that ranks named, or of whose ranks nothing was heard; used again only if others do not suffice and they answer."""
    sick_nodes: list[str] = field(default_factory=list)
    """Nodes that compute wrongly, as a health check or a comparison of replicas found; not used again by this job."""

    @property
    def number(self) -> int:
        """1 for the first of a job."""
        return int(Path(self.folder).name)

    @property
    def n_ranks(self) -> int:
        """Ranks that were started."""
        return len(self.nodes) * self.ranks_per_node

    def node_of(self, rank: int) -> str:
        """The node of a rank: ranks are dealt out in blocks."""
        return self.nodes[rank // self.ranks_per_node]

    def write(self) -> None:
        """Write attempt.json."""
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_atomic(Path(self.folder) / "attempt.json", json.dumps(values, indent=1).encode())


def read_attempt(folder: Path) -> Attempt | None:
    """What `write` wrote; None if there is nothing that can be read."""
    try:
        return Attempt(folder=str(folder), **json.loads((folder / "attempt.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def history(job_folder: Path) -> list[Attempt]:
    """The attempts of a job so far, the oldest first."""
    return [attempt for folder in attempts(job_folder) if (attempt := read_attempt(folder))]


def newest_step(run_dir: Path) -> int:
    """The newest step saved, -1 if there is none. Whether it is whole, ranks find out when they load it."""
    return max((step for step, _ in list_steps(run_dir / "steps")), default=-1)


def is_over(attempt: Attempt, ends: list[RankEnd], reported: set[int], lost: Iterable[str] = ()) -> bool:
    """Whether nothing more can come: each rank has left its word, or the launcher has told its end, or its node is lost."""
    silent = {*lost, *(node for end in ends for node in end.bad_nodes)}
    failed = any(end.kind not in GOOD for end in ends)
    missing = without_a_word(attempt, ends, reported)
    return bool(ends) and all(failed and attempt.node_of(rank) in silent for rank in missing)


def without_a_word(attempt: Attempt, ends: list[RankEnd], reported: set[int]) -> list[int]:
    """Ranks of which nothing is known."""
    known = {end.rank for end in ends} | reported
    return [rank for rank in range(attempt.n_ranks) if rank not in known]


def reported_ends(srun_said: list[str]) -> set[int]:
    """The ranks whose end srun tells, which only a node that lives makes known: `srun: error: node2: tasks 1,4-5: Killed`."""
    found: set[int] = set()
    for line in srun_said:
        match = re.search(r"^srun: error: \S+: tasks? ([\d,-]+):", line)
        for piece in match[1].split(",") if match else []:
            first, _, last = piece.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def sick(ends: list[RankEnd]) -> set[str]:
    """Nodes that compute wrongly."""
    return {node for end in ends if end.kind in (EndKind.UNHEALTHY, EndKind.CORRUPT) for node in end.bad_nodes}


def explain(attempt: Attempt, ends: list[RankEnd], srun_said: list[str]) -> list[str]:
    """Lines that say how the ranks ended: the first error on top, with what it left behind."""
    failure = first_failure(ends)
    told = {end.rank for end in ends}
    silent = [rank for rank in range(attempt.n_ranks) if rank not in told]
    lines = []
    if failure is not None and failure.kind not in ECHOES:
        lines += _first_error(attempt, failure)
    if silent and (failure is not None or len(silent) == attempt.n_ranks):
        lines += _without_a_word(attempt, silent, srun_said, in_full=not lines)
    if failure is not None and failure.kind in ECHOES:
        lines += _first_error(attempt, failure, title="first to notice" if silent else "FIRST ERROR")
    others = [end for end in ends if end is not failure and end.kind not in GOOD]
    if others:
        kinds = ", ".join(f"{sum(end.kind is kind for end in others)} {kind}" for kind in {end.kind: 0 for end in others})
        lines.append(f"the other ranks that ended badly: {kinds}")
    paths = [stacks_path(Path(attempt.folder), rank) for rank in range(attempt.n_ranks)]
    written = [path for path in paths if path.exists() and path.stat().st_size]
    if written:
        lines.append(f"stacks of {len(written)} ranks: {Path(attempt.folder)}/rank-*.stacks.txt")
    return lines


def _first_error(attempt: Attempt, end: RankEnd, title: str = "FIRST ERROR") -> list[str]:
    head, *rest = end.message.splitlines() or ["(it left no message)"]
    lines = [f"{title}: rank {end.rank} on {end.node}, at step {end.step}, {end.kind}: {head}"]
    lines += [f"    {line}" for line in rest]
    if end.kind is EndKind.EXCEPTION:  # of the others the message says all; their logs have it
        lines += [f"    {line}" for line in end.traceback.splitlines()]
    return [*lines, f"its log: {log_path(Path(attempt.folder), end.rank)}"]


def _without_a_word(attempt: Attempt, ranks: list[int], srun_said: list[str], in_full: bool) -> list[str]:
    where = ", ".join(f"{rank} ({attempt.node_of(rank)})" for rank in ranks[:8]) + (", ..." if len(ranks) > 8 else "")
    title = "FIRST ERROR: " if in_full else ""
    exited = reported_ends([line for line in srun_said if "Exited with exit code" in line])
    left = in_full and bool(exited & set(ranks)) and not (reported_ends(srun_said) - exited) & set(ranks)
    why = "left, and could write no word: see their logs" if left else "killed, or the node is lost"
    lines = [f"{title}ended without a word ({why}): rank{'s' * (len(ranks) > 1)} {where}"]
    lines += [f"    {line}" for line in srun_said if "error:" in line or "task" not in line][:12]
    if in_full:
        lines += [f"    {line}" for line in last_lines(log_path(Path(attempt.folder), ranks[0]), 12)]
        lines.append(f"its log: {log_path(Path(attempt.folder), ranks[0])}")
    return lines


def last_lines(path: Path, n: int) -> list[str]:
    """The last `n` lines of a text that may be large or absent; of a line that a progress bar rewrote, what it showed last."""
    text = b""
    try:
        with open(path, "rb") as file:
            at = file.seek(0, os.SEEK_END)
            while at > 0 and text.count(b"\n") <= n:
                step = min(BLOCK, at)
                at -= step
                file.seek(at)
                text = file.read(step) + text
    except OSError:
        return []
    lines = text.decode(errors="replace").split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines[-n:]]
