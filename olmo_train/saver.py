"""When and how a run saves: snapshot, background writing, agreement about failures, retention. The format is checkpoint.py's."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from olmo_train import checkpoint
from olmo_train.checkpoint import Shard
from olmo_train.config.train import CheckpointConfig
from olmo_train.errors import CheckpointError
from olmo_train.fence import Fence, SupersededError
from olmo_train.staging import Stage
from olmo_train.step_folder import list_steps, step_name

log = logging.getLogger(__name__)
TOLD_WAIT_S = 10.0
"""A wait for the save before that is told."""


@dataclass(frozen=True)
class LocalPart:
    """This rank's rows of one tensor, still live; `is_mine` is False where a replica writes them."""

    tensor: Tensor
    start: int
    shape: tuple[int, ...]
    is_mine: bool = True


def is_due(config: CheckpointConfig, step: int, last_step: int) -> str | None:
    """PERMANENT, EPHEMERAL or None: what to save after `step`."""
    log_spaced = config.save_log_spaced and step <= config.save_every and (step & (step - 1)) == 0
    if step % config.save_every == 0 or step == last_step or log_spaced:
        return checkpoint.PERMANENT if step > 0 or config.save_log_spaced else None
    if config.ephemeral_every is not None and step % config.ephemeral_every == 0:
        return checkpoint.EPHEMERAL
    return None


class Saver:
    """Saves one step at a time. All ranks call every method at the same step."""

    def __init__(
        self,
        steps: Path,
        config: CheckpointConfig,
        rank: tuple[int, int],
        fence: Fence,
        any_rank: Callable[[bool], bool],
        sync_metrics: Callable[[], None],
    ) -> None:
        """`rank`: (rank, ranks). `any_rank`: whether a flag is set on some rank (a collective).

        `sync_metrics`: brings the metrics of all steps so far to disk; called on rank 0 before a step counts as saved.
        """
        self.steps, self.config, self.fence, self._any_rank, self._sync_metrics = steps, config, fence, any_rank, sync_metrics
        self.rank, self.n_ranks = rank
        self._stage = Stage(config.stage_dir, steps, fence.attempt, self.rank) if config.stage_dir is not None else None
        if self._stage is not None:
            self._stage.clear()
        self._staged: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._written, self._cancelled = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._pending_step = 0
        self.failures = 0

    @property
    def is_busy(self) -> bool:
        """Whether a save is being written by this rank."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, kind: str, parts: Mapping[str, Mapping[str, LocalPart]], texts: Mapping[str, str]) -> None:
        """Take a snapshot of `parts` (by group) and write it; returns before the disk is done if saves are asynchronous.

        Raises:
            CheckpointError: too many saves in a row have failed.
        """
        self.settle()
        groups = {group: self._snapshot(group, members) for group, members in parts.items()}
        self._written.clear()
        self._cancelled.clear()
        self._error, self._pending_step = None, step
        self._thread = threading.Thread(target=self._write, args=(step, kind, groups, dict(texts)), name="saver")
        self._thread.start()
        if not self.config.async_save:
            self.settle()

    def settle(self, is_last: bool = False) -> None:
        """Wait until the save in progress is finished on all ranks, and agree on whether it succeeded.

        Raises:
            CheckpointError: too many saves in a row have failed, or this one and no other follows (`is_last`), or a later start
                has taken the run over (SupersededError).
        """
        if self._thread is not None:
            self._await_and_agree(self._thread)
        if isinstance(self._error, SupersededError):
            raise self._error
        if self.failures >= (1 if is_last else self.config.max_failures):
            raise CheckpointError(
                f"{self.failures} saves in a row failed, the last at step {self._pending_step}: "
                f"{self._error or 'on another rank'}; the same command continues from the newest step saved"
            )

    def _await_and_agree(self, thread: threading.Thread) -> None:
        began = time.monotonic()
        self._written.wait()
        if self._any_rank(self._error is not None):
            self._cancelled.set()  # rank 0 must not wait for the records of a rank that failed
        thread.join()
        self._thread = None
        waited = time.monotonic() - began
        if waited > TOLD_WAIT_S and self.rank == 0:
            log.warning(
                "training waited %.0f s until step %d was written; where saves are too frequent for the file system, raise "
                "checkpoint.save_every or ephemeral_every", waited, self._pending_step,
            )  # fmt: skip
        if not self._any_rank(self._error is not None):
            self.failures = 0
            return
        self.failures += 1
        if self.rank == 0:  # all ranks have stopped writing; what is half written must not fill the disk
            shutil.rmtree(self._temporary(self._pending_step), ignore_errors=True)
        reason = self._error or "on another rank"
        log.error("checkpoint of step %d failed (%d in a row): %s", self._pending_step, self.failures, reason)

    def _snapshot(self, group: str, members: Mapping[str, LocalPart]) -> dict[str, Shard]:
        """Copies on the CPU, in buffers kept from save to save (pinned for a GPU): a save costs a copy and no allocation."""
        shards = {}
        for name, part in members.items():
            if not part.is_mine:
                continue
            key = f"{group}/{name}"
            on_gpu = part.tensor.device.type == "cuda"
            if key not in self._staged or self._staged[key].shape != part.tensor.shape:
                self._staged[key] = torch.empty(part.tensor.shape, dtype=part.tensor.dtype, pin_memory=on_gpu)
            self._staged[key].copy_(part.tensor.detach(), non_blocking=on_gpu)
            shards[name] = Shard(self._staged[key], part.start, part.shape)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return shards

    def _write(self, step: int, kind: str, groups: checkpoint.Groups, texts: Mapping[str, str]) -> None:
        folder = self._temporary(step)
        try:
            if self._stage is not None:
                self._stage.write_rank(folder, self.n_ranks, groups)
            else:
                checkpoint.write_rank(folder, self.rank, self.n_ranks, groups)
            self._written.set()
            if self.rank == 0:
                self._commit(folder, step, kind, texts)
        except Exception as error:  # carried to the training thread, which reports and counts it in `settle`
            self._error = error
            log.error("saving step %d failed: %s", step, error)  # training may go on for hours before it asks
        finally:
            self._written.set()

    def _commit(self, folder: Path, step: int, kind: str, texts: Mapping[str, str]) -> None:
        self._sync_metrics()  # or a power failure after the rename would leave a step whose lines are missing
        info: dict[str, Any] = {"step": step, "kind": kind, "n_ranks": self.n_ranks}
        final = self.steps / step_name(step)
        if checkpoint.commit(folder, final, self.n_ranks, info, texts, self._cancelled, self.fence.check):
            self._prune()

    def _temporary(self, step: int) -> Path:
        return checkpoint.temporary_folder(self.steps, step, self.fence.attempt)

    def _prune(self) -> None:
        """Delete all but the newest ephemeral steps. Permanent ones are never touched; what fails here is no failed save."""
        ephemeral = []
        for _, folder in list_steps(self.steps):
            try:
                if checkpoint.read_manifest(folder)["kind"] == checkpoint.EPHEMERAL:
                    ephemeral.append(folder)
            except CheckpointError as error:
                log.warning("not looked at when old steps were deleted: %s", error)
        for folder in ephemeral[: max(len(ephemeral) - self.config.keep_ephemeral, 0)]:
            try:
                self.fence.check()
                checkpoint.remove_step(folder)
            except OSError as error:
                log.warning("%s could not be deleted: %s", folder, error.strerror)
