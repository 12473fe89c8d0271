"""C code on hostile input, in a process of its own: if it crashes, hangs or eats memory, a page is lost and no stage.

The limit of time is of CPU time and set in the kernel, so that a busy machine loses no pages and no code can ignore it.
There and back takes 0.1 ms for a small page and 0.25 ms for one of 100 KB, whose extraction takes 15 ms (on a busy machine).
"""

import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

Function = Callable[[bytes], bytes]
WALL = 30
"""Seconds of clock for one second of CPU time, after which a process that does nothing at all is ended."""
_guards: dict[tuple[object, ...], "Guard"] = {}


class FailedError(Exception):
    """The function raised, crashed, or went beyond a limit; says which."""


class Guard:
    """Calls one function of a module in a child process, which is replaced when it dies."""

    def __init__(self, function: Function, cpu_s: int, memory_mb: int) -> None:
        """cpu_s, memory_mb: of one call; memory of the process beyond what it begins with."""
        self._function, self._cpu_s, self._memory_mb = function, cpu_s, memory_mb
        self._child: tuple[BaseProcess, Connection] | None = None

    def __call__(self, data: bytes) -> bytes:
        """Raises:
        FailedError: no result."""
        process, connection = self._child = self._child or self._start()
        try:
            connection.send_bytes(data)
            if not connection.poll(self._cpu_s * WALL):
                process.kill()
            answer = connection.recv_bytes()
        except (EOFError, OSError):
            raise FailedError(self._end()) from None
        if answer[:1] == b"\1":
            return answer[1:]
        raise FailedError(answer[1:].decode("utf-8", "replace"))

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function, self._cpu_s, self._memory_mb), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def _end(self) -> str:
        """Take the dead child away; returns why it died."""
        assert self._child is not None
        process, connection = self._child
        connection.close()
        process.join()
        self._child = None
        if process.exitcode == -signal.SIGPROF:
            return f"took more than {self._cpu_s} s of CPU time"
        if process.exitcode == -signal.SIGKILL:
            return f"was killed, or did nothing for {self._cpu_s * WALL} s"
        code = process.exitcode or 0
        return f"crashed ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child[0].kill()
            self._end()


def guard_of(function: Function, cpu_s: int, memory_mb: int) -> Guard:
    """One for each function and limits, for as long as this process lives."""
    key = (repr(function), cpu_s, memory_mb)
    if key not in _guards:
        _guards[key] = Guard(function, cpu_s, memory_mb)
    return _guards[key]


def _serve(connection: Connection, function: Function, cpu_s: int, memory_mb: int) -> None:
    """In the child: answer until the parent is gone."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(Exception):  # it fails again, and tells it, when it is asked
        function(b"")  # imports what it needs, so that this is not counted
    limit = _data_bytes() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    while True:
        try:
            data = connection.recv_bytes()
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            answer = b"\1" + function(data)
        except MemoryError:
            answer = b"\0" + f"needed more than {memory_mb} MB of memory".encode()
        except Exception as error:
            answer = b"\0" + f"{type(error).__name__}: {error}"[:500].encode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(answer)


def _data_bytes() -> int:
    """Of this process, as RLIMIT_DATA counts them; 0 where there is no /proc."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
    except (OSError, StopIteration):
        return 0
