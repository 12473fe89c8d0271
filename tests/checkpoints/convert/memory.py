"""How much memory a conversion takes: what it asks for at a time, and what the process holds."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.weights import Weights


class Watched:
    """Weights that remember the largest part anyone read of them."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.largest = weights, 0

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.weights.shapes

    def dtype(self, name: str) -> torch.dtype:
        return self.weights.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        out = self.weights.read(name, rows)
        self.largest = max(self.largest, out.numel() * out.element_size())
        return out


def most_memory(work: Callable[[], object]) -> int:
    """Bytes this process held during `work` at most, beyond what it held before. Pages of mapped files do not count."""
    before, most, done = _anonymous(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.0005):
            most = max(most, _anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    work()
    done.set()
    thread.join()
    return most - before


def _anonymous() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
