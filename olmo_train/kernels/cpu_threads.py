"""Run independent pieces of work on the CPU's threads, each piece on one thread.

A matmul of one expert is small; splitting each over all threads makes every one of them wait for the slowest thread (measured:
docs/performance.md). Here threads take whole experts and meet once, at the end. Each piece is computed alike whatever thread
takes it, so which one does changes no bit of the result.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def run_each(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Call `work` on every item, in any order, on torch.get_num_threads() threads; gradients are off in there."""
    n_threads = min(torch.get_num_threads(), len(items))
    if n_threads <= 1:
        for item in items:
            work(item)
        return
    left = iter(items)

    def drain() -> None:
        for item in left:  # taking the next item of a list iterator is atomic
            work(item)

    for future in [_workers().submit(drain) for _ in range(n_threads)]:
        future.result()


def _workers() -> ThreadPoolExecutor:
    """One pool for the process, as large as torch's own; made anew when that changes."""
    global _pool, _pool_size
    size = torch.get_num_threads()
    with _lock:
        if _pool is None or _pool_size != size:
            if _pool is not None:
                _pool.shutdown()
            barrier = threading.Barrier(size + 1)
            _pool, _pool_size = ThreadPoolExecutor(size, "experts", _enter_worker), size
            for _ in range(size):
                _pool.submit(barrier.wait)  # so that every worker has entered
            barrier.wait()
            # set_num_threads in a worker also set the default of the process; put it back.
            torch.set_num_threads(size)
    return _pool


def _enter_worker() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
