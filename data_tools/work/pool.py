"""Processes that end with the one that started them."""

import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from data_tools.work.part import Part, PartContext, Record, Work, do_part

PATIENCE_S = 1.0
"""For a process that is told to end, before it is killed."""
_slot: list[Any] = []
"""Of a worker: (shared array of bytes done, number of this worker)."""
_is_busy = threading.Event()
"""Of a worker: a part is being done."""


class Pool:
    """Spawned processes (the parent may have threads), which tell how many bytes they have done."""

    def __init__(self, processes: int) -> None:
        context = get_context("spawn")
        self.processes = processes
        self._done = context.RawArray("Q", processes)
        self._executor = ProcessPoolExecutor(processes, context, start_worker, (os.getpid(), self._done, context.Value("i", 0)))
        self._folder = tempfile.TemporaryDirectory(prefix="olmo-work-", ignore_cleanup_errors=True)
        self._n_shared = 0

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Raises:
        BrokenProcessPool: a process was killed."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for us: who is started here never sees it
        try:
            return self._executor.submit(work, *arguments)
        except (OSError, ValueError, RuntimeError) as error:  # one was killed while another was being started
            raise BrokenProcessPool(str(error)) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def share(self, value: Any) -> Path:
        """What many calls are told, written once: sent with every part it may be as long as the list of parts."""
        self._n_shared += 1
        path = Path(self._folder.name, f"{self._n_shared}.pickle")
        path.write_bytes(pickle.dumps(value))
        return path

    def bytes_done(self) -> int:
        """By all processes so far."""
        return sum(self._done)

    def close(self, at_once: bool = False) -> None:
        """End the processes; `at_once`: in the middle of their work."""
        if at_once:
            children = active_children()  # a broken pool waits for ever for one that it started while it was breaking
            for child in children:
                child.terminate()
            until = time.monotonic() + PATIENCE_S
            for child in children:
                child.join(max(until - time.monotonic(), 0))
                child.kill()
        self._executor.shutdown(wait=not at_once, cancel_futures=True)
        self._folder.cleanup()


def start_worker(parent: int, done: Any, counter: Any) -> None:
    """Let this process end when its parent does: killed work must not go on in the background."""
    signal.signal(signal.SIGTERM, _end)
    with counter.get_lock():
        _slot[:] = [done, counter.value]
        counter.value += 1
    end_with(parent)


def _end(number: int, _: Any) -> None:
    """Told to end: what was being written goes first."""
    if not _is_busy.is_set():
        os._exit(128 + number)
    raise SystemExit(128 + number)


def tick(size: int) -> None:
    """In a worker: tell of bytes done."""
    done, number = _slot
    done[number % len(done)] += size


@lru_cache(maxsize=1)
def _shared(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def do_in_worker(work: Work, folder: Path, phase: str, part: Part, memory_mb: int, shared: Path, record_path: Path) -> Record:
    """`do_part`, in a process of a pool; `shared` is what `Pool.share` returned."""
    _is_busy.set()
    try:
        return do_part(work, PartContext(folder, phase, part, tick, memory_mb), _shared(shared), record_path)
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except Exception as error:
        if _can_travel(error):
            raise
        raise RuntimeError(f"{type(error).__module__}.{type(error).__qualname__}: {error}") from error
    finally:
        _is_busy.clear()


def _can_travel(error: Exception) -> bool:
    """Whether it arrives at another process as it is; one that does not would look as if this process had been killed."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return type(again) is type(error) and str(again) == str(error)


def end_with(parent: int) -> None:
    """End this process soon after its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
