"""Whether a run that looks stuck is: pure decisions on what rank 0 heard of all ranks, by rank 0's clock alone."""

import errno
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from olmo_train.config.faults import FaultsConfig

PHASES = ("start", "data", "step", "metrics", "eval", "save", "end")
QUICK = ("data", "step", "metrics")
"""Phases of steady training. The others may take long: they get `hang_at_start_s`."""
STEPS_OF_START = 2
"""Steps of a start that may compile; the second may compile again for what the first one did not see."""
STEPS_OF_PATIENCE = 5
"""A step may take this many times as long as the longest before, whatever the limits say: a slow machine is no hang."""
PROBE_S = 2.0


class AwakeClock:
    """Seconds that this process could see pass: a suspended laptop, a stopped job, a machine without a free core age nobody."""

    def __init__(self, silent_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`now` is called every half second when all is well; a longer gap counts as 2 s, and never as most of `silent_s`."""
        self._most = max(0.6, min(2.0, silent_s / 4))
        self._clock, self._last, self._now = clock, clock(), 0.0

    def now(self) -> float:
        """Seconds since this clock was made, without the gaps."""
        last, self._last = self._last, self._clock()
        self._now += min(self._last - last, self._most)
        return self._now


@dataclass
class RankState:
    """What rank 0 knows of a rank; times are rank 0's."""

    rank: int
    node: str
    probe: tuple[str, int] = ("", 0)
    """Address and port at which the rank's kernel answers, whatever the rank itself does."""
    heard: float = 0.0
    """Last sign of life."""
    since: float = 0.0
    """Last progress."""
    phase: str = "start"
    step: int = 0
    count: int = 0
    steps_done: int = 0
    """Steps since this start, as far as heartbeats saw them."""
    step_began: float = 0.0
    longest_s: float = 0.0
    """The longest of the steps that cannot have been compiling."""
    clock_offset_s: float = 0.0
    """Its clock minus rank 0's."""
    where: str = ""
    """Where the training thread stood when asked."""
    waits: bool = False
    """It stood in a collective, waiting for others."""
    ended: bool = False

    @property
    def name(self) -> str:
        """How a message names it."""
        return f"rank {self.rank} on {self.node}"

    @property
    def is_quick(self) -> bool:
        """It is in the middle of training, where nothing takes long."""
        return self.phase in QUICK and self.steps_done > STEPS_OF_START

    def progress(self, phase: str, step: int, count: int, now: float) -> None:
        """Take in a heartbeat."""
        if count == self.count:
            return
        if phase == "step" and (self.phase, self.step) != (phase, step):
            self.steps_done += 1
            if self.steps_done > STEPS_OF_START + 1:
                self.longest_s = max(self.longest_s, now - self.step_began)
            self.step_began = now
        self.phase, self.step, self.count, self.since = phase, step, count, now

    def hang_limit(self, faults: FaultsConfig) -> float:
        """Seconds without progress that are no hang."""
        usual = self._usual_limit(faults)
        return usual if self.is_quick else max(usual, faults.hang_at_start_s)

    def stall_limit(self, faults: FaultsConfig) -> float:
        """Seconds without a sign of life of a process that is there. Compiling or reading a slow disk with the interpreter's
        lock held is no hang, but nothing holds it for as long as an evaluation may take.
        """
        return faults.silent_s if self.is_quick else max(faults.silent_s, self._usual_limit(faults))

    def _usual_limit(self, faults: FaultsConfig) -> float:
        return max(faults.hang_s, STEPS_OF_PATIENCE * self.longest_s)


@dataclass
class Trouble:
    """Why a run has to end: `lost` (a process died), `failed`, `stopped`, `silent` or `hung`."""

    kind: str
    ranks: list[int]
    message: str
    nodes_gone: tuple[str, ...] = ()

    def bad_nodes(self, states: list[RankState]) -> list[str]:
        """Nodes that do not answer and hold no rank that does."""
        living = {state.node for state in states if state.rank not in self.ranks and not state.ended}
        return sorted(set(self.nodes_gone) - living)


def find_trouble(
    states: list[RankState], now: float, faults: FaultsConfig, answers: Callable[[list[RankState]], list[str]]
) -> Trouble | None:
    """The trouble that the ranks which have not ended are in; None for a run that goes on, however slowly.

    `answers` tells what stands behind the silence of some ranks: `knock`.
    """
    quiet = [state for state in states if now - state.heard > faults.silent_s]
    silent = list(zip(quiet, answers(quiet), strict=True)) if quiet else []
    silent = [(s, answer) for s, answer in silent if answer != "stalled" or now - s.heard > s.stall_limit(faults)]
    if silent:
        told = "; ".join(f"{state.name} {SILENCE[answer]}" for state, answer in silent[:8])
        more = f" and {len(silent) - 8} more" if len(silent) > 8 else ""
        gone = tuple(state.node for state, answer in silent if answer != "refused")
        message = f"no sign of life for {faults.silent_s:g} s (faults.silent_s): {told}{more}"
        return Trouble("silent", [state.rank for state, _ in silent], message, gone)
    stuck = [state for state in states if now - state.since > state.hang_limit(faults)]
    if not stuck or len(stuck) < len(states):  # one rank that goes on will be waited for, or waits for the others soon
        return None
    limit = max(state.hang_limit(faults) for state in stuck)
    name = "hang_s" if all(state.is_quick for state in stuck) else "hang_at_start_s"
    step = min(state.step for state in stuck)
    return Trouble("hung", [state.rank for state in states], f"no progress for {limit:g} s (faults.{name}) around step {step}")


ANSWERS = {0: "stalled", errno.ECONNREFUSED: "refused", errno.ECONNRESET: "refused"}
SILENCE = {
    "stalled": "is there but does nothing (stopped, out of memory and swapping, or holding Python's lock)",
    "refused": "is gone; its node answers",
    "unreachable": "is gone; its node does not answer",
}


def knock(states: list[RankState]) -> list[str]:
    """Ask the kernels of ranks' nodes: `stalled` if the process is there, `refused` if it is not, else `unreachable`."""
    poll, answers = select.poll(), {}
    socks = [socket.socket() for _ in states]
    for i, (sock, state) in enumerate(zip(socks, states, strict=True)):
        sock.setblocking(False)
        if sock.connect_ex(state.probe) not in (0, errno.EINPROGRESS):
            answers[i] = "unreachable"
            continue
        poll.register(sock, select.POLLOUT)
    numbers = {sock.fileno(): i for i, sock in enumerate(socks)}
    deadline = time.monotonic() + PROBE_S
    while len(answers) < len(states) and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(1000 * left):
            poll.unregister(descriptor)
            error = socks[numbers[descriptor]].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            answers[numbers[descriptor]] = ANSWERS.get(error, "unreachable")
    for sock in socks:
        sock.close()
    return [answers.get(i, "unreachable") for i in range(len(states))]


def tell_hang(trouble: Trouble, states: list[RankState]) -> str:
    """The trouble, and whom the ranks' last words make suspect."""
    words = [trouble.message]
    silent = set(trouble.ranks) if trouble.kind == "silent" else set()
    alive = [state for state in states if state.rank not in silent and not state.ended]
    if alive and trouble.kind == "hung":
        steps = Counter(state.step for state in alive)
        furthest = max(steps)
        behind = [state for state in alive if state.step < furthest]
        idle = [state for state in alive if state.where and not state.waits]
        mute = [state for state in alive if not state.where]
        words += [f"suspect: {s.name} is behind, at step {s.step} of {furthest}, in {s.phase}" for s in behind[:4]]
        if len(idle) < len(alive):  # else all do the same, and nobody stands out
            words += [f"suspect: {s.name} does not wait for others, in {s.phase} at {s.where}" for s in idle[:4]]
        words += [f"suspect: {s.name} could not say where it stands" for s in mute[:4]]
        if not (behind or idle or mute):
            words.append("every rank waits for the others: a link, or a collective that they do not all take part in")
    places = Counter(state.where for state in alive if state.where)
    words += [f"{count} of {len(states)} ranks at {where}" for where, count in places.most_common(4)]
    return "; ".join(words)
