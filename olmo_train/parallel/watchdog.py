"""Every rank's watch over itself and the others: signs of life to rank 0, and an end with its story if a run cannot go on.

A run that is only slow is never ended: a limit counts only time in which the watching processes themselves could run, a process
whose kernel still answers is given the limit of the phase it is in, and compiling, evaluating and saving have the long limit.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch.distributed as dist

from olmo_train.attempt import EndKind, RankEnd, attempt_folder, end_undisturbed, make_end, node_name, stacks_path, write_end
from olmo_train.config.faults import FaultsConfig
from olmo_train.errors import EXIT_FAILED, EXIT_HUNG, EXIT_STOPPED, PeerError, StoppedBySignal
from olmo_train.parallel.judgement import QUICK, AwakeClock, RankState, knock
from olmo_train.parallel.rendezvous import CLOCK_WARNING_S, Meeting

GRACE_S = 3.0
"""For a rank's own error to be told when another's ends the run: often all find the same."""
LINGER_S = 8.0
"""How long rank 0, which holds the hub, waits at most for the others to hear of its own error and end."""
WAITING = ("torch/distributed/", "torch/autograd/", "parallel/collectives.py", "multiprocessing/connection.py")
"""Files in which a training thread stands that waits for other ranks."""


class Watchdog:
    """Watches from `__enter__` to `close`; of one rank alone without a launcher it does nothing."""

    def __init__(self, faults: FaultsConfig, meeting: Meeting | None) -> None:
        self.faults, self.meeting = faults, meeting
        self.folder: Path | None = attempt_folder()
        self._progress: tuple[str, int, int] = ("start", 0, 0)
        self._main_thread = threading.get_ident()
        self._closed, self._failing, self._peer = threading.Event(), threading.Event(), threading.Event()
        self._one_ends = threading.Lock()
        self._is_echo = False
        self._order: int | None = None
        self._ordered = threading.Event()
        self._verdict: dict[str, Any] = {}
        self._stacks: IO[str] | None = None

    # ---- for the training thread ---------------------------------------------------------------------------------------

    def beat(self, phase: str, step: int) -> None:
        """Tell where the training thread stands: start, data, step, metrics, eval, save or end. Costs one assignment."""
        self._progress = (phase, step, self._progress[2] + 1)

    def facts(self) -> dict[str, Any]:
        """For provenance.json, of rank 0: by node, its clock minus rank 0's."""
        hub = self.meeting.hub if self.meeting else None
        return {"clock_offsets_s": hub.clock_offsets()} if hub is not None else {}

    def finish(self, kind: EndKind) -> None:
        """Record a good end and stop watching."""
        if self.folder is not None:
            rank = self.meeting.rank if self.meeting else 0
            write_end(self.folder, RankEnd(rank, node_name(), kind, 0, self._last_step()))
        self.close()

    def close(self) -> None:
        """Stop watching: what is left to do may be slow and is no hang."""
        if self.meeting is None or self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(OSError):
            self.meeting.wire.send({"bye": True})
        self._thread.join(5)
        faulthandler.cancel_dump_traceback_later()
        if self.meeting.hub is not None:
            self._linger(self.meeting)
            self.meeting.hub.close()
        self.meeting.wire.close()
        self.meeting.probe.close()
        self._close_stacks()

    def __enter__(self) -> "Watchdog":
        if self.meeting is not None:
            self._warn_of_clock(self.meeting)
            self._stacks = self._open_stacks(self.meeting.rank)
            self._thread = threading.Thread(target=self._watch, args=(self.meeting,), name="watchdog", daemon=True)
            self._thread.start()
        if self.folder is not None:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._on_stop)
        return self

    def _on_stop(self, _number: int, _frame: Any) -> None:
        """Outside the training loop, which answers signals itself: before it nothing is lost, after it all is nearly done."""
        if self._progress[0] != "end":
            raise StoppedBySignal

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        end_undisturbed()
        if error is not None:
            self._fail(error)
        self.close()
        if error is not None and self._is_echo:
            raise PeerError(self._verdict["message"]) from None

    def _last_step(self) -> int:
        """The last step that the training thread finished."""
        phase, step, _ = self._progress
        return max(0, step - 1) if phase in ("data", "step") else step

    # ---- an error on this rank -----------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Tell the others, and record it: as an echo, if it is only that another rank cannot be reached any more."""
        with self._one_ends:
            self._failing.set()
        rank = self.meeting.rank if self.meeting else 0
        end = make_end(error, rank, self._last_step())
        if self.meeting is not None:
            is_early_stop = (
                end.kind == EndKind.STOPPED and self._progress[0] != "end"
            )  # a launcher also stops those that are left
            may_be_echo = is_early_stop or (end.kind == EndKind.EXCEPTION and is_of_communication(error))
            if may_be_echo and self._peer.wait(GRACE_S + 2) and self._verdict["kind"] != "stopped":
                self._is_echo = True
                end.kind, end.message, end.bad_nodes = EndKind.PEER, self._verdict["message"], self._verdict["bad_nodes"]
            else:
                end.order = self._tell(end)
        if self.folder is not None:
            with contextlib.suppress(OSError):  # the error itself is told on stderr, and must not give way to this one
                write_end(self.folder, end)

    def _tell(self, end: RankEnd) -> int | None:
        assert self.meeting is not None
        with contextlib.suppress(OSError):
            self.meeting.wire.send({"failed": {"kind": end.kind, "message": end.message[:2000]}})
            self._ordered.wait(GRACE_S)
        return self._order

    def _linger(self, meeting: Meeting) -> None:
        assert meeting.hub is not None
        deadline = time.monotonic() + LINGER_S
        while time.monotonic() < deadline and not meeting.hub.others_are_gone():
            time.sleep(0.05)

    # ---- the thread ----------------------------------------------------------------------------------------------------

    def _watch(self, meeting: Meeting) -> None:
        period = max(0.05, min(self.faults.silent_s / 8, 5.0 if meeting.n_ranks <= 256 else 10.0))
        clock = AwakeClock(self.faults.silent_s)
        next_beat, heard = 0.0, 0.0
        while not self._closed.is_set():
            now = clock.now()
            if now >= next_beat:
                next_beat = now + period
                self._give_sign(meeting)
            message = meeting.wire.poll(max(0.02, min(next_beat - now, 0.5)))
            if message is not None:
                heard = clock.now()
                self._hear(meeting, message)
            elif meeting.wire.is_closed:
                self._main_is_gone(meeting, f"rank 0 on {meeting.main_node} ended without a word: killed, or out of memory", [])
                return
            elif clock.now() - heard > self.faults.silent_s:
                heard = self._doubt_main(meeting, heard, clock.now())

    def _give_sign(self, meeting: Meeting) -> None:
        # Re-armed by this thread: if it cannot run, because a call holds Python's lock, the stacks are written without the lock.
        if self._stacks is not None:
            faulthandler.dump_traceback_later(0.7 * self.faults.silent_s, file=self._stacks)
        with contextlib.suppress(OSError):  # a lost connection is seen when it is read
            meeting.wire.send({"beat": self._progress})

    def _hear(self, meeting: Meeting, message: dict[str, Any]) -> None:
        if "order" in message:
            self._order = message["order"]
            self._ordered.set()
        elif "report" in message:
            where, waits = self._write_stacks(message["report"])
            with contextlib.suppress(OSError):
                meeting.wire.send({"where": where, "waits": waits})
        elif "end" in message:
            self._end(meeting, message["end"])
        elif "closed" in message:
            self._closed.set()

    def _doubt_main(self, meeting: Meeting, heard: float, now: float) -> float:
        """Rank 0 does not answer; give it longer where long silence may be work, else end. Returns when it counts as heard."""
        answer = knock([RankState(0, meeting.main_node, meeting.wire.peer)])[0]
        if answer == "stalled" and self._progress[0] not in QUICK and now - heard < self.faults.hang_s:
            return heard
        told = {
            "stalled": "is there but does nothing (stopped, or holding Python's lock)",
            "refused": "is gone; its node answers",
        }
        state = told.get(answer, "is gone; its node does not answer")
        self._write_stacks("rank 0 gives no sign of life")
        message = f"no sign of life for {self.faults.silent_s:g} s (faults.silent_s): rank 0 on {meeting.main_node} {state}"
        self._main_is_gone(meeting, message, [] if answer == "refused" else [meeting.main_node], "silent")
        return now

    def _main_is_gone(self, meeting: Meeting, message: str, bad_nodes: list[str], kind: str = "lost") -> None:
        self._end(meeting, {"kind": kind, "ranks": [0], "message": message, "bad_nodes": bad_nodes})

    # ---- ending --------------------------------------------------------------------------------------------------------

    def _end(self, meeting: Meeting, verdict: dict[str, Any]) -> None:
        """End this process, unless its training thread ends by itself in a moment or has stopped watching."""
        self._verdict = verdict
        self._peer.set()
        is_hang = verdict["kind"] in ("hung", "silent")
        if not is_hang and (self._failing.wait(GRACE_S) or self._closed.is_set()):
            return
        self._one_ends.acquire()  # never released: a training thread that fails now waits here for the end of the process
        if self._closed.is_set() or self._failing.is_set():
            self._one_ends.release()
            return
        faulthandler.cancel_dump_traceback_later()
        kind = EndKind.HUNG if is_hang else EndKind.STOPPED if verdict["kind"] == "stopped" else EndKind.PEER
        status = {EndKind.HUNG: EXIT_HUNG, EndKind.STOPPED: EXIT_STOPPED}.get(kind, EXIT_FAILED)
        end = RankEnd(meeting.rank, node_name(), kind, status, self._last_step(), verdict["message"])
        end.bad_nodes = verdict["bad_nodes"]
        with contextlib.suppress(OSError):
            if self.folder is not None:
                write_end(self.folder, end)
        print(f"rank {meeting.rank} ends: {verdict['message']}", file=sys.stderr, flush=True)
        if meeting.hub is not None:
            self._linger(meeting)
        self._close_stacks()
        sys.stdout.flush()
        os._exit(status)

    def _write_stacks(self, reason: str) -> tuple[str, bool]:
        """Write every thread's stack; return where the training thread stands, and whether it waits for others there."""
        file = self._stacks or sys.stderr
        with contextlib.suppress(OSError, ValueError):
            rank = self.meeting.rank if self.meeting else 0
            file.write(f"---- {time.strftime('%F %T')} rank {rank} on {node_name()}: {reason}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        return where_it_stands(sys._current_frames().get(self._main_thread))

    def _open_stacks(self, rank: int) -> IO[str] | None:
        if self.folder is None:
            return None
        try:
            return open(stacks_path(self.folder, rank), "a")
        except OSError:
            return None

    def _close_stacks(self) -> None:
        if self._stacks is None:
            return
        path = Path(self._stacks.name)
        self._stacks.close()
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()

    def _warn_of_clock(self, meeting: Meeting) -> None:
        offset = meeting.clock_offset_s
        if abs(offset) > CLOCK_WARNING_S:
            print(
                f"warning: the clock of {node_name()} differs by {offset:+.1f} s from that of {meeting.main_node} (rank 0); "
                "training does not depend on it, but times in logs do: is its time service running?",
                file=sys.stderr,
                flush=True,
            )


def where_it_stands(frame: Any) -> tuple[str, bool]:
    """`file.py:line function` of the innermost frame that is ours, and whether the innermost of all waits for other ranks."""
    stack = []
    while frame is not None:
        stack.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    if not stack:
        return "no Python frame", False
    if any(name == __file__ for name, _, _ in stack):
        return "its own end, after an error", True
    ours = [entry for entry in stack if "olmo_train" in entry[0]] or stack
    place = [
        f"{'/'.join(Path(name).parts[-2:])}:{line} {function}"
        for name, line, function in ([stack[0]] if stack[0] == ours[0] else [stack[0], ours[0]])
    ]
    return " called by ".join(place), any(part in stack[0][0] for part in WAITING)


def is_of_communication(error: BaseException) -> bool:
    """Whether `error` may be only the echo of another rank's end."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError | ConnectionError) and any(
        word in text for word in ("gloo", "NCCL", "Connection", "Broken pipe", "Socket", "Timed out", "timed out")
    )
