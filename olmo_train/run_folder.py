"""The folder of one run: who may write in it, what is in it, and what one start of the run adds."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import IO, Any

from olmo_train.attempt import attempt_folder, node_name
from olmo_train.changes import changed_config
from olmo_train.config.train import TrainConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.fence import Fence
from olmo_train.files import sync_folder, write_atomic
from olmo_train.parallel.collectives import from_main, gather_to_all
from olmo_train.parallel.mesh import Layout
from olmo_train.schema import to_yaml

log = logging.getLogger(__name__)
LOCK_WAIT_S = 10.0
"""A killed run's last process may take a moment to die."""
CUT_OFF_WAIT_S = 30.0
"""Under a launcher, beyond `faults.silent_s`, after which a rank 0 that is cut off has ended itself."""
PERMANENT_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR)
"""Of file systems that starting again will not change; a full or failing one may be mended meanwhile."""


class RunFolder:
    """`runs/<run_name>/`: locked by rank 0 while the run is alive; where locks do not reach, `fence` keeps starts apart."""

    def __init__(self, run: TrainConfig, layout: Layout) -> None:
        """Raises:
        ConfigError: another process trains here, the config is another run's, or the ranks do not see the same folder.
        CheckpointError: the file system fails, or under a launcher the start before never ended.
        """
        self.path = Path(run.run_dir)
        self.steps = self.path / "steps"
        self.attempt: str = from_main(layout, secrets.token_hex(4) if layout.is_main else None)
        self.fence = Fence(self.path, self.attempt)
        self._lock: IO[str] | None = None
        entered = from_main(layout, self._try_to_enter(run) if layout.is_main else None)
        if isinstance(entered, str):
            raise CheckpointError(entered)
        if entered:
            raise ConfigError(entered)
        self._check_shared(layout)

    def _try_to_enter(self, run: TrainConfig) -> list[str] | str:
        """Problems of the config, or the one of a file system that may be mended."""
        try:
            return self._enter(run)
        except OSError as error:
            place = f"{error.filename or self.path}: {error.strerror}"
            if error.errno in PERMANENT_ERRORS:
                return [f"run_dir={self.path}: cannot be written: {place}; give another run_dir"]
            return f"run_dir={self.path} cannot be written: {place}; free space or mend the file system, then start again"
        except CheckpointError as error:
            return str(error)

    def _enter(self, run: TrainConfig) -> list[str]:
        self.steps.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held for the life of the process
        launched = attempt_folder() is not None
        holder = _lock(self._lock, run.faults.silent_s + CUT_OFF_WAIT_S if launched else LOCK_WAIT_S)
        if holder is not None:
            text = f"run_dir={self.path} is in use by another process{holder}; wait for it, or give another run_name"
            if launched:  # of this very run, so that trying again makes sense
                raise CheckpointError(text)
            return [text]
        saved = self.path / "config.yaml"
        try:
            problems = changed_config(run, saved) if saved.exists() else []
        except ConfigError as error:
            problems = error.problems
        if not problems:
            self._take_over()
            write_atomic(saved, to_yaml(run).encode())
            sync_folder(self.path)
        return problems

    def _take_over(self) -> None:
        """Fence off earlier starts: first our name, then theirs away (olmo_train/fence.py says why in this order)."""
        write_atomic(self.fence.path, self.attempt.encode())
        sync_folder(self.path)
        for leftover in self.steps.glob(".step*.tmp-*"):  # of a start that was killed, or is cut off, while saving
            with contextlib.suppress(FileNotFoundError):  # the save was finished at this moment, and counts
                os.rename(leftover, leftover.with_name(f"{leftover.name.split('.tmp-')[0]}.deleted-{time.time_ns()}"))
        for leftover in self.steps.glob(".step*.deleted-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _check_shared(self, layout: Layout) -> None:
        seen = ""
        deadline = time.monotonic() + LOCK_WAIT_S
        while seen != self.attempt and time.monotonic() < deadline:  # a network file system may show it late
            with contextlib.suppress(OSError):
                seen = self.fence.path.read_text()
            if seen != self.attempt:
                time.sleep(0.1)
        blind = [rank for rank, ok in enumerate(gather_to_all(layout, seen == self.attempt)) if not ok]
        if blind:
            raise ConfigError(
                f"run_dir={self.path} is not the same folder on rank 0 and rank {blind[0]}; put it on a file "
                "system all ranks share"
            )

    def add_start(self, facts: dict[str, Any]) -> str:
        """Append one start of the run to provenance.json (rank 0) and return the text.

        Raises:
            CheckpointError: the file system refuses.
        """
        path = self.path / "provenance.json"
        try:
            starts = [*self.starts(), {"attempt": self.attempt, "time": time.time(), **facts}]
            text = json.dumps({"starts": starts}, indent=1)
            write_atomic(path, text.encode())
        except (OSError, ValueError, KeyError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"not as it was written ({error})"
            raise CheckpointError(f"{path}: {reason}; free space, mend the file system or move the file away") from error
        return text

    def starts(self) -> list[dict[str, Any]]:
        """What `add_start` wrote so far, the oldest first."""
        path = self.path / "provenance.json"
        return json.loads(path.read_text())["starts"] if path.exists() else []

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            self._lock.close()


def _lock(file: IO[str], wait_s: float) -> str | None:
    """Take the lock, or say who holds it: " (pid 12 on node1, ...)"."""
    deadline, is_told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = _holder(file)
            if time.monotonic() > deadline:
                return holder
            if not is_told and wait_s > LOCK_WAIT_S:
                log.warning("the run folder is in use%s: waiting up to %.0f s for it, as the start before may not have ended yet",
                            holder, wait_s)  # fmt: skip
                is_told = True
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            log.warning("this file system has no locks (%s): two starts of a run at a time are told apart only when they save, "
                        "and the earlier one ends then", error.strerror)  # fmt: skip
            break
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {node_name()}\n")
    file.flush()
    return None


def _holder(file: IO[str]) -> str:
    file.seek(0)
    text = file.read().strip()
    return f" ({text})" if text else ""
