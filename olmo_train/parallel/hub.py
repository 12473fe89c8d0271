"""Rank 0's place where all ranks meet, say what they run, show that they live, and hear why a run ends. A thread and plain TCP.

One line of JSON is one message. A rank says `ping` (for clocks), `hello`, `beat`, `where`, `failed`, `bye`; the hub answers
`pong`, `ack`, `order`, and tells all: `go`, `refuse`, `report` (say where you stand), `end` (all ends now, and why), `closed`.
A process that dies closes its connection, so its death is known at once; a node that is gone says nothing, so silence is timed.
"""

import contextlib
import json
import resource
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from olmo_train.config.faults import FaultsConfig
from olmo_train.parallel.judgement import AwakeClock, RankState, Trouble, find_trouble, knock, tell_hang

TICK_S = 0.25
REPORT_S = 4.0
"""How long ranks have to say where they stand before the run is ended without their word."""

LONGEST = 2**24
"""Bytes of a line: more is no rank of ours, and must not fill rank 0's memory."""


@dataclass
class _Link:
    """One connection."""

    sock: socket.socket
    buffer: bytes = b""
    rank: int | None = None


@dataclass
class _Meeting:
    """What the ranks said of themselves."""

    facts: dict[int, dict[str, Any]] = field(default_factory=dict)
    is_open: bool = True


class Hub:
    """Listens on a free port; every method but `close` runs in its thread."""

    def __init__(
        self, n_ranks: int, faults: FaultsConfig, token: str, compare: Callable[[dict[int, dict[str, Any]]], list[str]]
    ) -> None:
        """`compare` finds problems in what all ranks said in their `hello`."""
        _allow_files(n_ranks + 256)
        self.n_ranks, self.faults, self.token, self._compare = n_ranks, faults, token, compare
        self._listener = socket.create_server(("", 0), backlog=max(128, n_ranks), family=socket.AF_INET)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waker, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ)
        self._clock = AwakeClock(faults.silent_s)
        self._meeting = _Meeting()
        self.ranks: dict[int, RankState] = {}
        self._links: dict[int, _Link] = {}
        self._failures = 0
        self._trouble: Trouble | None = None
        self._trouble_since = 0.0
        self._told_end = False
        self._end: dict[str, Any] = {}
        self._next_judgement = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="hub", daemon=True)
        self._thread.start()

    def arrived(self) -> dict[int, str]:
        """Ranks that said hello, and their nodes."""
        return {rank: state.node for rank, state in list(self.ranks.items())}

    def clock_offsets(self) -> dict[str, float]:
        """By node, its clock minus rank 0's, in seconds."""
        return {state.node: round(state.clock_offset_s, 3) for state in self.ranks.values()}

    def others_are_gone(self) -> bool:
        """No rank but 0 is connected, of those that can hear."""
        trouble = self._trouble
        deaf = trouble.ranks if trouble is not None and trouble.kind == "silent" else []
        return not [rank for rank in list(self._links) if rank != 0 and rank not in deaf]

    def close(self) -> None:
        """Tell all ranks that nobody watches any more, and stop."""
        self._closing.set()
        self._waker.close()  # the selector wakes
        self._thread.join(5)

    # ---- the thread ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(TICK_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data is not None:
                    self._read(key.data)
            self._judge(self._clock.now())
        self._tell_all({"closed": True})
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, _Link(sock))

    def _read(self, link: _Link) -> None:
        try:
            data = link.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(link)
            return
        *lines, link.buffer = (link.buffer + data).split(b"\n")
        try:
            if len(link.buffer) > LONGEST:
                raise ValueError("no end of a line")
            for line in lines:
                self._hear(link, json.loads(line))
        except Exception:  # a port scanner, or a rank of another run: whatever a stranger says, the hub must live
            self._drop(link)

    def _drop(self, link: _Link) -> None:
        """A connection closed: a rank that has not said goodbye has died."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.sock)
        link.sock.close()
        if link.rank is None or self._links.pop(link.rank, None) is None:
            return
        state = self.ranks[link.rank]
        if not state.ended:
            state.ended = True
            self._raise(Trouble("lost", [link.rank], f"{state.name} ended without a word: killed, or out of memory"))

    def _hear(self, link: _Link, message: dict[str, Any]) -> None:
        now = self._clock.now()
        if "ping" in message:
            self._send(link, {"pong": message["ping"], "token": self.token, "time": time.time()})
            return
        if "hello" in message:
            self._welcome(link, message["hello"], now)
            return
        state = self.ranks[link.rank]  # type: ignore[index]  # KeyError: it has not said hello, and is dropped
        state.heard = now
        if "beat" in message:
            phase, step, count = message["beat"]
            state.progress(phase, step, count, now)
            self._send(link, {"ack": True})
        elif "where" in message:
            state.where, state.waits = message["where"], message["waits"]
        elif "failed" in message:
            state.ended = True
            self._failures += 1
            self._send(link, {"order": self._failures})
            failed = message["failed"]
            kind = "stopped" if failed["kind"] == "stopped" else "failed"
            self._raise(Trouble(kind, [state.rank], f"{state.name} failed: {failed['message']}"))
        elif "bye" in message:
            state.ended = True
            self._send(link, {"closed": True})

    def _welcome(self, link: _Link, hello: dict[str, Any], now: float) -> None:
        if hello["token"] != self.token or hello["rank"] in self.ranks:
            self._send(link, {"stranger": True})
            raise ValueError("another run's rank")
        state = RankState(int(hello["rank"]), hello["node"], tuple(hello["probe"]), heard=now, since=now)
        state.clock_offset_s = float(hello["clock_offset_s"])
        self._meeting.facts[state.rank] = {"node": hello["node"], **hello["facts"]}
        link.rank = state.rank  # from here on it counts: all of its word was understood
        self._links[state.rank], self.ranks[state.rank] = link, state
        self._send(link, {"welcome": True})
        if self._told_end:
            self._send(link, self._end)
        if self._meeting.is_open and len(self.ranks) == self.n_ranks:
            self._meeting.is_open = False
            for state in self.ranks.values():
                state.heard = state.since = now  # those that came early have waited
            problems = self._compare(self._meeting.facts)
            self._tell_all({"refuse": problems} if problems else {"go": True})

    # ---- judging -------------------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> None:
        if self._trouble is None:
            if self._meeting.is_open or now < self._next_judgement:
                return
            self._next_judgement = now + min(1.0, self.faults.silent_s / 4)
            trouble = find_trouble([s for s in self.ranks.values() if not s.ended], now, self.faults, knock)
            if trouble is not None:
                self._raise(trouble)
        elif not self._told_end:
            asked = [self.ranks[rank] for rank in self._links if rank not in self._trouble.ranks or self._trouble.kind == "hung"]
            if now - self._trouble_since > REPORT_S or all(state.where or state.ended for state in asked):
                self._tell_end(self._trouble)

    def _raise(self, trouble: Trouble) -> None:
        """The first trouble decides why the run ends; a hang is asked about before it ends."""
        if self._trouble is not None or self._closing.is_set():
            return
        self._trouble, self._trouble_since = trouble, self._clock.now()
        if trouble.kind in ("hung", "silent"):
            self._tell_all({"report": trouble.message})
        else:
            self._tell_end(trouble)

    def _tell_end(self, trouble: Trouble) -> None:
        self._told_end = True
        message = tell_hang(trouble, list(self.ranks.values())) if trouble.kind in ("hung", "silent") else trouble.message
        nodes = trouble.bad_nodes(list(self.ranks.values()))
        self._end = {"end": {"kind": trouble.kind, "ranks": trouble.ranks, "message": message, "bad_nodes": nodes}}
        self._tell_all(self._end)

    # ---- sending -------------------------------------------------------------------------------------------------------

    def _tell_all(self, message: dict[str, Any]) -> None:
        for link in list(self._links.values()):
            self._send(link, message)

    def _send(self, link: _Link, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a closed connection is seen when it is read
            link.sock.send(json.dumps(message).encode() + b"\n")


def _allow_files(wanted: int) -> None:
    """One connection per rank: the usual soft limit of 1024 open files would end a run of as many ranks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
