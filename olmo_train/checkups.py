"""Checks of the hardware in the middle of training (`faults.*_check_every`), and word for the next start where one fails."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Rows
from olmo_train.errors import CorruptionError
from olmo_train.files import write_atomic
from olmo_train.parallel.replay import check_replay
from olmo_train.parallel.replicas import check_replicas
from olmo_train.resume import Live
from olmo_train.step_folder import SUSPECT
from olmo_train.train_step import TrainStep


class Checkups:
    """Knows which checks are due, and the last step whose state each has found right."""

    def __init__(self, run: TrainConfig, live: Live, train_step: TrainStep, step: int) -> None:
        """`step`: where the run is. What an earlier start has checked and saved is taken as right."""
        self._faults, self._live, self._train_step = run.faults, live, train_step
        self._note = Path(run.run_dir) / SUSPECT
        self._replicas_agreed_at = self._replay_agreed_at = step

    def are_replicas_due(self, step: int, is_saved: bool) -> bool:
        """Whether replicas are compared after `step`: at the interval, and before it is saved, for nobody could tell later."""
        every = self._faults.replica_check_every
        return every is not None and self._live.layout.has_replicas and (is_saved or step % every == 0)

    def is_replay_due(self, step: int) -> bool:
        """Whether a micro-step of `step` is taken twice before it."""
        every = self._faults.replay_check_every
        return every is not None and step % every == 0

    def check_replicas(self, step: int) -> None:
        """Compare weights, moments and buffers after `step`.

        Raises:
            CorruptionError: they differ.
        """
        live = self._live
        weights = {name: weight.tensor for name, weight in live.weights.items()}
        tensors = {**weights, **live.optimizer.moments(), **dict(live.model.named_buffers())}
        with self._marking_suspects(self._replicas_agreed_at):
            check_replicas(live.layout, tensors, f"after step {step}")
        self._replicas_agreed_at = step

    def check_replay(self, step: int, rows: Rows) -> None:
        """Take the first micro-batch of `step` twice; weights and moments stay as they are.

        Raises:
            CorruptionError: the two differ.
        """
        live, tolerance = self._live, self._faults.replay_tolerance
        with self._marking_suspects(self._replay_agreed_at):
            check_replay(live.layout, live.model.embedding, lambda: self._train_step.rehearse(rows), tolerance, step)
        self._replay_agreed_at = step - 1

    @contextmanager
    def _marking_suspects(self, agreed_at: int) -> Iterator[None]:
        """Where a check fails, the next start shall not resume from a step saved after `agreed_at`."""
        try:
            yield
        except CorruptionError:
            if self._live.layout.is_main:
                write_atomic(self._note, json.dumps({"after_step": agreed_at}).encode())
            raise
