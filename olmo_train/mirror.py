"""Keep a run's mirror by a process beside rank 0, so that nothing that happens to it can stop or fail training.

The process is `olmo checkpoints mirror` (another package, known here by its command line only).
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from olmo_train.changes import changed_config
from olmo_train.config.train import CheckpointConfig, TrainConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.parallel.collectives import from_main
from olmo_train.parallel.mesh import Layout
from olmo_train.step_folder import list_steps

log = logging.getLogger(__name__)
MODULE = "checkpoints.mirror.command"
RESTARTS = 5
"""Of a mirror that ends unasked, before it is given up."""
LOOK_S = 10.0
"""How long ranks wait between two looks at a process of rank 0."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Meant for training; a scheduler sends them to every process of a job. The mirror ends when its stdin closes."""


class MirrorProcess:
    """`olmo checkpoints mirror --follow`, started again if it dies."""

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        assert config.mirror is not None
        more = [] if config.keep_local is None else ["--keep-local", str(config.keep_local)]
        self._words = [str(run_dir), config.mirror, "--follow", "--until-stdin-closes", *more]
        self._is_ending, self._restarts = threading.Event(), 0
        self._process = _start(self._words)
        threading.Thread(target=self._watch, name="mirror", daemon=True).start()

    def end(self, wait_s: float) -> bool:
        """Ask for a last round; whether the process has ended within `wait_s`."""
        self._is_ending.set()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        if self._process.returncode != 0:
            log.error("the mirror is not complete; `olmo checkpoints mirror %s %s` goes on with it", *self._words[:2])
        return True

    def _watch(self) -> None:
        while self._restarts < RESTARTS:
            status = self._process.wait()
            if self._is_ending.is_set():
                return
            self._restarts += 1
            log.error("the mirror ended with status %d, start %d of %d more; training goes on", status, self._restarts, RESTARTS)
            if not self._is_ending.wait(5.0 * self._restarts):
                self._process = _start(self._words)
        log.error("the mirror is given up; `olmo checkpoints mirror %s %s` goes on with it", *self._words[:2])


def start_mirror(run: TrainConfig, layout: Layout) -> MirrorProcess | None:
    """The mirror of a run that wants one, on rank 0."""
    if run.checkpoint.mirror is None or not layout.is_main:
        return None
    return MirrorProcess(Path(run.run_dir), run.checkpoint)


def end_mirror(run: TrainConfig, layout: Layout, mirror: MirrorProcess | None, beat: Callable[[], None]) -> None:
    """At a complete end, let the mirror finish. All ranks wait together: a launcher ends those that are left alone too long.

    `beat`: tells whoever watches for hangs that this is none.
    """
    if run.checkpoint.mirror is None:
        return
    while not from_main(layout, mirror is None or mirror.end(LOOK_S)):
        beat()


def restore_from_mirror(run: TrainConfig, layout: Layout, beat: Callable[[], None]) -> bool:
    """Bring the newest whole step of the mirror into a run folder without steps; whether there was one.

    Raises:
        CheckpointError: the mirror cannot be asked: to begin anew then would silently lose what it holds.
        ConfigError: it holds a run of another config.
    """
    run_dir = Path(run.run_dir)
    process = _start([str(run_dir), str(run.checkpoint.mirror), "--restore"]) if layout.is_main else None
    while (status := from_main(layout, _status(process))) is None:
        beat()
    if status != 0:
        raise CheckpointError(
            f"checkpoint.mirror={run.checkpoint.mirror}: a run without steps asks its mirror for them, and that failed (see the "
            "lines before); mend it, or begin from nothing with checkpoint.mirror=null"
        )
    problems: list[str] = from_main(layout, _problems(run, run_dir / "steps") if layout.is_main else None)
    if problems:
        raise ConfigError([f"checkpoint.mirror={run.checkpoint.mirror} holds another run: {problem}" for problem in problems])
    return bool(from_main(layout, bool(list_steps(run_dir / "steps")) if layout.is_main else None))


def _problems(run: TrainConfig, steps: Path) -> list[str]:
    for _, folder in list_steps(steps):
        try:
            return changed_config(run, folder / "config.yaml")
        except ConfigError as error:
            return error.problems
    return []


def _status(process: "subprocess.Popen[bytes] | None") -> int | None:
    if process is None:
        return None
    try:
        return process.wait(LOOK_S)
    except subprocess.TimeoutExpired:
        return None


def _start(words: list[str]) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a child begins with its parent's mask
    try:
        return subprocess.Popen([sys.executable, "-m", MODULE, *words], stdin=subprocess.PIPE, env=environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
