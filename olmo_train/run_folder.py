"""The folder of one run: who may write in it, what is in it, and what one start of the run adds."""

import fcntl
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import IO, Any

from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic
from olmo_train.parallel.collectives import from_main, gather_to_all
from olmo_train.parallel.mesh import Layout
from olmo_train.resume import changed_config
from olmo_train.schema import to_yaml

LOCK_WAIT_S = 10.0
"""A killed run's last process may take a moment to die."""


class RunFolder:
    """`runs/<run_name>/`: locked by rank 0 while the run is alive."""

    def __init__(self, run: TrainConfig, layout: Layout) -> None:
        """Raises:
        ConfigError: another process trains here, the config is another run's, or the ranks do not see the same folder.
        """
        self.path = Path(run.run_dir)
        self.steps = self.path / "steps"
        self.attempt: str = from_main(layout, secrets.token_hex(4) if layout.is_main else None)
        self._lock: IO[str] | None = None
        problems = self._enter(run) if layout.is_main else []
        problems = from_main(layout, problems)
        if problems:
            raise ConfigError(problems)
        self._check_shared(layout)

    def _enter(self, run: TrainConfig) -> list[str]:
        try:
            self.steps.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held for the life of the process
        except OSError as error:
            return [f"run_dir={self.path}: cannot be written: {error.strerror}; give another run_dir"]
        if not _locked(self._lock):
            return [f"run_dir={self.path} is in use by another process; wait for it, or give another run_name"]
        saved = self.path / "config.yaml"
        try:
            problems = changed_config(run, saved) if saved.exists() else []
        except ConfigError as error:
            problems = error.problems
        if not problems:
            for leftover in [*self.steps.glob(".step*.tmp-*"), *self.steps.glob(".step*.deleted-*")]:
                shutil.rmtree(leftover, ignore_errors=True)  # of a start that was killed while saving or pruning
            write_atomic(saved, to_yaml(run).encode())
            write_atomic(self.path / ".attempt", self.attempt.encode())
        return problems

    def _check_shared(self, layout: Layout) -> None:
        seen = ""
        deadline = time.monotonic() + LOCK_WAIT_S
        while seen != self.attempt and time.monotonic() < deadline:  # a network file system may show it late
            try:
                seen = (self.path / ".attempt").read_text()
            except OSError:
                time.sleep(0.1)
        blind = [rank for rank, ok in enumerate(gather_to_all(layout, seen == self.attempt)) if not ok]
        if blind:
            raise ConfigError(
                f"run_dir={self.path} is not the same folder on rank 0 and rank {blind[0]}; put it on a file "
                "system all ranks share"
            )

    def add_start(self, facts: dict[str, Any]) -> str:
        """Append one start of the run to provenance.json (rank 0) and return the text."""
        starts = [*self.starts(), {"attempt": self.attempt, "time": time.time(), **facts}]
        text = json.dumps({"starts": starts}, indent=1)
        write_atomic(self.path / "provenance.json", text.encode())
        return text

    def starts(self) -> list[dict[str, Any]]:
        """What `add_start` wrote so far, the oldest first."""
        path = self.path / "provenance.json"
        return json.loads(path.read_text())["starts"] if path.exists() else []

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            self._lock.close()


def _locked(file: IO[str]) -> bool:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
