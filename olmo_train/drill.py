"""Faults on purpose (`faults.drill`): at their step a rank is killed, hangs, computes NaN; said beforehand in its log."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from olmo_train.attempt import node_name
from olmo_train.config.faults import DrillConfig, DrillKind, FaultsConfig
from olmo_train.parallel.weights import Weight

log = logging.getLogger(__name__)

LOSS_FACTORS = {DrillKind.NAN: float("nan"), DrillKind.SPIKE: 1000.0}
FLIPPED_BIT = 1 << 4
"""Of the last byte but one of a number: in the mantissa of float32 and of bfloat16, so that it stays finite."""


class DrillError(RuntimeError):
    """The exception that a drill of kind `exception` raises."""


class Drill:
    """The faults that this rank has to cause.

    Those that shall happen once and did are lines of `drill.jsonl` in the run folder, on the disk before the fault itself: a
    restart goes on without it.
    """

    def __init__(self, faults: FaultsConfig, rank: int, n_ranks: int, run_dir: Path) -> None:
        self._rank, self._node, self._path = rank, node_name(), run_dir / "drill.jsonl"
        done = self._done()
        self._todo = [
            (key, drill)
            for key, drill in ((_key(i, drill), drill) for i, drill in enumerate(faults.drill))
            if (drill.rank == rank if drill.node is None else drill.node == self._node) and key not in done
        ]
        self._slow_s = 0.0
        if rank == 0:
            for i, drill in enumerate(faults.drill):
                if drill.node is None and drill.rank is not None and drill.rank >= n_ranks:
                    log.warning("faults.drill[%d].rank=%d: there are %d ranks now, so it does not happen", i, drill.rank, n_ranks)

    def is_sick(self) -> bool:
        """Whether this rank's device shall fail the health check."""
        sick = [(key, drill) for key, drill in self._todo if drill.kind == DrillKind.SICK]
        for key, drill in sick:
            self._take(key, drill)
        return bool(sick)

    def begin_step(self, step: int, weights: Mapping[str, Weight]) -> float | None:
        """Cause what is due at the beginning of `step`; return what to multiply the loss of its first micro-batch by, or None.

        Raises:
            DrillError: kind `exception`.
        """
        factor = None
        for key, drill in list(self._todo):
            if drill.kind == DrillKind.SICK or step < drill.step or (step > drill.step and drill.kind != DrillKind.SLOW):
                continue
            self._take(key, drill)
            if drill.kind in LOSS_FACTORS:
                factor = LOSS_FACTORS[drill.kind]
            elif drill.kind == DrillKind.SLOW:
                self._slow_s += drill.seconds
            else:
                _cause(drill.kind, step, weights)
        time.sleep(self._slow_s)
        return factor

    def _take(self, key: str, drill: DrillConfig) -> None:
        """Say it, and remember it if it happens once."""
        at = "the start" if drill.kind == DrillKind.SICK else f"step {drill.step}"
        log.warning("drill: %s on rank %d, node %s, at %s", drill.kind, self._rank, self._node, at)
        self._todo.remove((key, drill))
        if drill.once:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as file:  # appended in one write: ranks of a node do this at the same time
                file.write(json.dumps({"drill": key, "rank": self._rank, "node": self._node}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _done(self) -> set[str]:
        done = set()
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                done.add(json.loads(line)["drill"])
            except ValueError:
                continue  # cut short
        return done


def _key(index: int, drill: DrillConfig) -> str:
    """What tells one drill of a config from another, and from one of another config."""
    return json.dumps([index, asdict(drill)])


def _cause(kind: DrillKind, step: int, weights: Mapping[str, Weight]) -> None:
    match kind:
        case DrillKind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case DrillKind.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case DrillKind.HANG:
            threading.Event().wait()
        case DrillKind.EXCEPTION:
            raise DrillError(f"drill: exception at step {step}")
        case DrillKind.FLIP:
            flip_one_bit(weights)


@torch.no_grad()
def flip_one_bit(weights: Mapping[str, Weight]) -> None:
    """Change one bit of one element, in the middle of the largest part of a weight that this rank holds."""
    tensor = max((weight.tensor for weight in weights.values()), key=torch.Tensor.numel)
    data = tensor.view(-1).view(torch.uint8)
    place = tensor.numel() // 2 * tensor.itemsize + tensor.itemsize - 2
    data[place] ^= FLIPPED_BIT
