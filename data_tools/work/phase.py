"""One phase of a stage, seen from one process: parts are claimed, done here or in a pool, and those of others waited for."""

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from data_tools.work.claims import Claims
from data_tools.work.config import StageConfig
from data_tools.work.part import Part, PartContext, Record, Work, do_part, n_damaged, read_record
from data_tools.work.pool import Pool, do_in_worker
from data_tools.work.progress import Progress, say_time
from olmo_train.errors import ShardError

POLL_S = 0.2
"""Between two looks at what others do."""
SHARE = 20
"""Looks at what others do take at most 1 / SHARE of the time: each lists the folder of the records, which may be long."""
FEW = 100
"""Parts that are looked for one by one."""


class _Stage(Protocol):
    """What a phase needs of its stage."""

    folder: Path
    config: StageConfig
    claims: Claims
    records: list[Record]
    output_folders: set[Path]

    @property
    def name(self) -> str: ...
    @property
    def is_finished(self) -> bool: ...
    @property
    def n_processes(self) -> int: ...
    def pool(self) -> Pool: ...
    def note_inputs(self, record: Record, path: Path) -> None: ...
    def check_limits(self) -> None: ...


class Phase:
    """Used by Stage.run."""

    def __init__(self, stage: _Stage, name: str, parts: Sequence[Part], work: Work, shared: Any) -> None:
        self.stage, self.name, self.parts, self.work, self.shared = stage, name, parts, work, shared
        self.folder = stage.folder / "parts" / name
        self.done: dict[str, Record] = {}
        self.flying: dict[Future[Record], Part] = {}
        self.elsewhere = self.here = 0
        self.n_damaged = sum(n_damaged(record) for record in stage.records)
        self.todo: deque[Part] = deque()
        self.held_by_others: list[Part] = []
        self.next_look = 0.0
        assert len({part.name for part in parts}) == len(parts), f"{name}: parts of one name"

    def run(self) -> list[Record]:
        """Returns when every part is done, in the order of the parts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        todo = self._left(self.parts)
        todo_here = len(todo)
        config, began = self.stage.config, time.monotonic()
        todo.sort(key=lambda part: -part.size)  # the longest first, so that all processes end about together
        first = len(todo) * (config.task or 0) // config.n_tasks
        self.todo.extend(todo[first:] + todo[:first])  # tasks begin at different places, and so rarely ask for the same part
        self.pool = self.stage.pool() if self.stage.n_processes > 1 and len(todo) > 1 else None
        if self.pool:
            self.handed = self.pool.share(self.shared)
        self.before = self.pool.bytes_done() if self.pool else 0
        total = sum(part.size for part in self.parts)
        name = f"{self.stage.name} {self.name}"
        with Progress(name, len(self.parts), total, self._standing) as progress:
            while self.todo or self.held_by_others or self.flying:
                self._take()
                self._wait()
                self._look()
            line = progress.line()
        if todo_here:
            print(f"{line}, {say_time(time.monotonic() - began)}", file=sys.stderr)
        return [self.done[part.name] for part in self.parts]

    def _standing(self) -> tuple[int, int]:
        pooled = self.pool.bytes_done() - self.before if self.pool else 0
        return len(self.done), self.elsewhere + self.here + pooled

    def _record_path(self, part: Part) -> Path:
        return self.folder / f"{part.name}.json"

    def _claim(self, part: Part) -> Path:
        return self.folder / f"{part.name}.claim"

    # ---- what others do --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Note what others have done, and let their parts be asked for again."""
        began = time.monotonic()
        if began < self.next_look:
            return
        left = self._left([*self.todo, *self.held_by_others])
        self.todo, self.held_by_others = deque(left), []
        now = time.monotonic()
        self.next_look = now + max(POLL_S, SHARE * (now - began))

    def _left(self, parts: Sequence[Part]) -> list[Part]:
        """Parts without a record; those that others did are noted."""
        if len(parts) > FEW:
            there = set(os.listdir(self.folder))
            parts, candidates = [], parts
            for part in candidates:
                if f"{part.name}.json" not in there or not self._is_done_elsewhere(part):
                    parts.append(part)
            return parts
        return [part for part in parts if not self._is_done_elsewhere(part)]

    def _is_done_elsewhere(self, part: Part) -> bool:
        record = read_record(self.stage.folder, self._record_path(part))
        if record is None:
            return False
        self._note(part, record)
        self.elsewhere += part.size
        return True

    def _note(self, part: Part, record: Record) -> None:
        """Keep what the summary needs; names of files stay in the record on disk: those of many parts fill the memory."""
        self.stage.note_inputs(record, self._record_path(part))
        self.stage.output_folders.update((self.stage.folder / name).parent for name in record.outputs)
        record.outputs, record.inputs = {}, {}
        self.done[part.name] = record
        self.n_damaged += n_damaged(record)
        if self.n_damaged > self.stage.config.max_damaged_files:
            self.stage.records += self.done.values()
            self.stage.check_limits()  # at once: a day of work for a result that nobody takes helps nobody

    # ---- what is done here -----------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Claim parts and begin them, as many as there are processes."""
        room = self.pool.processes - len(self.flying) if self.pool else 1
        while room and self.todo:
            part = self.todo.popleft()
            if not self.stage.claims.take(self._claim(part)):
                self.held_by_others.append(part)
            elif self._is_done_elsewhere(part):  # since we looked
                self.stage.claims.release(self._claim(part))
            else:
                self._begin(part)
                room -= 1

    def _begin(self, part: Part) -> None:
        stage = self.stage
        if stage.is_finished:  # by another task, while we waited: what this part wrote has been removed since
            raise ShardError(
                f"{stage.folder}: {part.name} of {self.name} is gone though the stage is finished; remove summary.json"
            )
        memory, record_path = stage.config.memory_mb, self._record_path(part)
        if self.pool is not None:
            arguments = (self.work, stage.folder, self.name, part, memory, self.handed, record_path)
            try:
                self.flying[self.pool.submit(do_in_worker, *arguments)] = part
            except BrokenProcessPool:
                self._killed()
            return
        record = do_part(self.work, PartContext(stage.folder, self.name, part, self._tick, memory), self.shared, record_path)
        self._finished(part, record)

    def _tick(self, size: int) -> None:
        self.here += size

    def _finished(self, part: Part, record: Record) -> None:
        self.stage.claims.release(self._claim(part))
        self._note(part, record)

    def _wait(self) -> None:
        """For a part of ours; or, where others have the rest, for them."""
        if self.flying:
            finished, _ = wait(self.flying, timeout=POLL_S * 5, return_when=FIRST_COMPLETED)
            for future in finished:
                part = self.flying.pop(future)
                try:
                    record = future.result()
                except BrokenProcessPool:
                    self._killed()
                self._finished(part, record)
        elif self.held_by_others and not self.todo:
            time.sleep(max(self.next_look - time.monotonic(), 0))

    def _killed(self) -> None:
        config = self.stage.config
        raise ShardError(
            f"{self.stage.folder}: a process was killed, for want of memory perhaps; finished parts stay, the same command goes "
            f"on: give fewer processes (now {self.stage.n_processes}) or less memory_mb (now {config.memory_mb})"
        ) from None
