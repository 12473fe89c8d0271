"""A stage of data work: phases of parts, done by any number of processes and machines, interrupted and continued at will.

The folder of a stage:

    stage.json                 what it does: name, settings, inputs. Another plan is refused, the same one goes on
    parts/<phase>/<part>.json  record of a finished part; <part>.claim beside it while somebody works on it
    quarantine/, dropped/      what was rejected, and what does not go on, with place and reason
    summary.json               written last: the totals of a stage that is finished
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from data_tools.files import remove_temporaries, temporary_name
from data_tools.work.claims import Claims
from data_tools.work.config import StageConfig, n_processes
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part, PartContext, Record, Work, do_part, n_damaged, read_record
from data_tools.work.pool import Pool, do_in_worker
from data_tools.work.progress import Progress, say_time
from olmo_train.errors import ShardError
from olmo_train.files import write_atomic
from olmo_train.schema import to_plain

VERSION = 1
POLL_S = 0.2
"""Between two looks at what others do."""
PACKAGES = ("tokenizers", "gigatoken", "numpy", "numba", "msgspec", "xxhash", "pyarrow", "resiliparse", "trafilatura")
"""Whose versions a summary tells."""


@dataclass(frozen=True)
class Plan:
    """What a stage does. Two starts with the same plan work together; another plan in the same folder is refused."""

    name: str
    """E.g. tokenize, tag."""
    settings: dict[str, Any]
    """All that decides what is written."""
    inputs: Sequence[Path]
    """Files that are read; known by path and size."""


def settings_of(config: StageConfig, leave_out: Sequence[str] = ("documents", "output")) -> dict[str, Any]:
    """The fields of a config that decide what is written: all but those of StageConfig and `leave_out`."""
    skipped = {field.name for field in fields(StageConfig)} | set(leave_out)
    return {name: value for name, value in to_plain(config).items() if name not in skipped}


class Stage:
    """One stage, opened by one process. Use as a context manager."""

    def __init__(self, folder: Path, plan: Plan, config: StageConfig) -> None:
        """Raises:
        ShardError: another plan was begun in this folder; says how the two differ."""
        self.folder, self.plan, self.config = folder, plan, config
        self.records: list[Record] = []
        """Of all phases that ran."""
        self._claims, self._began = Claims(), time.time()
        self._opened: Pool | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._agree()

    # ---- plan and summary ------------------------------------------------------------------------------------------------

    def _agree(self) -> None:
        """Write the plan, unless it is there; then compare."""
        path = self.folder / "stage.json"
        inputs = {str(file): file.stat().st_size for file in self.plan.inputs}
        mine = {"stage": self.plan.name, "version": VERSION, "settings": self.plan.settings, "inputs": inputs}
        if not path.exists():
            temporary = temporary_name(path)
            temporary.write_text(json.dumps(mine, indent=1) + "\n")
            try:
                os.link(temporary, path)  # unlike a rename, not over the plan of another task
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        try:
            theirs = json.loads(path.read_text())
        except ValueError as error:
            raise ShardError(f"{path}: cannot be read: {error}; remove {self.folder} to begin anew") from None
        differences = _differences(theirs, json.loads(json.dumps(mine)))
        if differences:
            raise ShardError(
                f"{self.folder}: was begun by another plan: {'; '.join(differences[:5])}"
                f"{f'; and {len(differences) - 5} more' if len(differences) > 5 else ''}; give the same, another output, "
                "or remove it"
            )

    @property
    def is_finished(self) -> bool:
        """Whether `finish` has returned once."""
        return (self.folder / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """Of a finished stage."""
        return read_summary(self.folder)

    def finish(self, totals: Counts, remove: Sequence[str] = ()) -> dict[str, Any]:
        """Write the summary and remove what only the stage itself needed (`remove`: names in its folder).

        Raises:
            ShardError: more was rejected than the limits allow; everything written stays, and a higher limit lets the same
                command finish.
        """
        self.check_limits()
        rejected: Counts = {}
        repaired: Counts = {}
        for record in self.records:
            add_counts(rejected, record.rejected)
            add_counts(repaired, record.repaired)
        values = {
            "stage": self.plan.name,
            "settings": self.plan.settings,
            "lines": sum(record.lines for record in self.records),
            "rejected": rejected,
            "repaired": repaired,
            "totals": totals,
            "seconds": round(time.time() - self._began, 1),
            "versions": _versions(),
        }
        for folder in {(self.folder / name).parent for record in self.records for name in record.outputs}:
            remove_temporaries(folder)
        write_atomic(self.folder / "summary.json", (json.dumps(values, indent=1) + "\n").encode())
        self.clean(remove)
        return values

    def clean(self, names: Sequence[str]) -> None:
        """Remove folders and files of the stage that nobody needs any more."""
        for name in names:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def check_limits(self) -> None:
        """Raises:
        ShardError: too many lines were rejected, or too many files are damaged; says where they are told."""
        rejected: Counts = {}
        for record in self.records:
            add_counts(rejected, record.rejected)
        number, of = sum(rejected.values()), sum(record.lines for record in self.records)
        damaged = sum(n_damaged(record) for record in self.records)
        told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(rejected.items()))
        where = f"each with place and reason in {self.folder / 'quarantine'}"
        if damaged > self.config.max_damaged_files:
            raise ShardError(
                f"{self.plan.name}: {damaged:,} damaged files, max_damaged_files={self.config.max_damaged_files}; {where}; get "
                "them again, or raise the limit: the same command then goes on without what they lack"
            )
        if number > self.config.max_rejected_frac * of:
            raise ShardError(
                f"{self.plan.name}: {number:,} of {of:,} lines are no documents ({told}), more than "
                f"max_rejected_frac={self.config.max_rejected_frac}; {where}; mend them, or raise the limit: the same command "
                "then goes on without them"
            )

    # ---- phases ----------------------------------------------------------------------------------------------------------

    def run(self, phase: str, parts: Sequence[Part], work: Work, shared: Any = None) -> list[Record]:
        """Do what is not done of a phase, together with every process that has the same plan; returns when all is done.

        `work` is called with a PartContext and `shared`, in this process or another. Records come in the order of `parts`.

        Raises:
            ShardError: what `work` raised, a process was killed, or the limits are exceeded; finished parts stay.
        """
        records = _Phase(self, phase, parts, work, shared).run()
        self.records += records
        self.check_limits()
        return records

    @property
    def claims(self) -> Claims:
        """Of this process."""
        return self._claims

    @cached_property
    def n_processes(self) -> int:
        """That work on parts here."""
        return n_processes(self.config)

    def pool(self) -> Pool:
        """Opened once, for all phases: its processes keep what they have loaded and compiled."""
        if self._opened is None:
            self._opened = Pool(self.n_processes)
        return self._opened

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._opened is not None:
            self._opened.close(at_once=kind is not None)
        self._claims.release_all()


class _Phase:
    """One phase, seen from one process."""

    def __init__(self, stage: Stage, name: str, parts: Sequence[Part], work: Work, shared: Any) -> None:
        self.stage, self.name, self.parts, self.work, self.shared = stage, name, parts, work, shared
        self.folder = stage.folder / "parts" / name
        self.done: dict[str, Record] = {}
        self.flying: dict[Future[Record], Part] = {}
        self.elsewhere = self.here = 0
        assert len({part.name for part in parts}) == len(parts), f"{name}: parts of one name"

    def run(self) -> list[Record]:
        self.folder.mkdir(parents=True, exist_ok=True)
        todo = self._left(list(self.parts))
        config, began = self.stage.config, time.monotonic()
        todo.sort(key=lambda part: -part.size)  # the longest first, so that all processes end about together
        first = len(todo) * (config.task or 0) // config.n_tasks
        todo = todo[first:] + todo[:first]  # tasks begin at different places, and so rarely ask for the same part
        self.pool = self.stage.pool() if self.stage.n_processes > 1 and len(todo) > 1 else None
        self.before = self.pool.bytes_done() if self.pool else 0
        total = sum(part.size for part in self.parts)
        name = f"{self.stage.plan.name} {self.name}"
        with Progress(name, len(self.parts), total, self._standing) as progress:
            while todo or self.flying:
                todo = self._take(todo)
                self._wait(bool(todo))
                todo = self._left(todo)
            line = progress.line()
        if self.here or self.flying:
            print(f"{line}, {say_time(time.monotonic() - began)}", file=sys.stderr)
        return [self.done[part.name] for part in self.parts]

    def _standing(self) -> tuple[int, int]:
        pooled = self.pool.bytes_done() - self.before if self.pool else 0
        return len(self.done), self.elsewhere + self.here + pooled

    def _record_path(self, part: Part) -> Path:
        return self.folder / f"{part.name}.json"

    def _left(self, parts: list[Part]) -> list[Part]:
        """Parts without a record; those that others did are noted."""
        there = set(os.listdir(self.folder))
        left = []
        for part in parts:
            record = read_record(self.stage.folder, self._record_path(part)) if f"{part.name}.json" in there else None
            if record is None:
                left.append(part)
            else:
                self._note(part, record)
                self.elsewhere += part.size
        return left

    def _note(self, part: Part, record: Record) -> None:
        self.done[part.name] = record
        damaged = sum(n_damaged(each) for each in [*self.stage.records, *self.done.values()])
        if damaged > self.stage.config.max_damaged_files:
            self.stage.records += self.done.values()
            self.stage.check_limits()  # at once: a day of work for a result that nobody takes helps nobody

    def _take(self, todo: list[Part]) -> list[Part]:
        """Claim parts and begin them, as many as there are processes; returns the rest."""
        room = self.pool.processes - len(self.flying) if self.pool else 1
        rest = []
        for part in todo:
            claim = self.folder / f"{part.name}.claim"
            if room and self.stage.claims.take(claim):
                record = read_record(self.stage.folder, self._record_path(part))  # done since we looked
                if record is not None:
                    self.stage.claims.release(claim)
                    self._note(part, record)
                    self.elsewhere += part.size
                    continue
                room -= 1
                self._begin(part, claim)
            else:
                rest.append(part)
        return rest

    def _begin(self, part: Part, claim: Path) -> None:
        arguments = (
            self.work,
            self.stage.folder,
            self.name,
            part,
            self.stage.config.memory_mb,
            self.shared,
            self._record_path(part),
        )
        if self.pool is not None:
            try:
                self.flying[self.pool.submit(do_in_worker, *arguments)] = part
            except BrokenProcessPool:
                self._killed()
            return
        context = PartContext(self.stage.folder, self.name, part, self._tick, self.stage.config.memory_mb)
        record = do_part(self.work, context, self.shared, self._record_path(part))
        self.stage.claims.release(claim)
        self._note(part, record)

    def _tick(self, size: int) -> None:
        self.here += size

    def _wait(self, is_more: bool) -> None:
        """For a part of ours; or, where others have the rest, for them."""
        if self.flying:
            finished, _ = wait(self.flying, timeout=POLL_S * 5, return_when=FIRST_COMPLETED)
            for future in finished:
                part = self.flying.pop(future)
                try:
                    record = future.result()
                except BrokenProcessPool:
                    self._killed()
                self.stage.claims.release(self.folder / f"{part.name}.claim")
                self._note(part, record)
        elif (is_more and self.pool is not None) or (is_more and not self._is_any_free()):
            time.sleep(POLL_S)

    def _is_any_free(self) -> bool:
        """Without a pool parts are done where they are taken, and the next is taken at once."""
        return any(not (self.folder / f"{part.name}.claim").exists() for part in self.parts if part.name not in self.done)

    def _killed(self) -> None:
        config = self.stage.config
        raise ShardError(
            f"{self.stage.folder}: a process was killed, for want of memory perhaps; finished parts stay, the same command goes "
            f"on: give fewer processes (now {self.stage.n_processes}) or less memory_mb (now {config.memory_mb})"
        ) from None


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: there X, here Y` of every difference of two plans."""
    found = []
    for name in dict.fromkeys([*theirs, *mine]):
        one, other = theirs.get(name), mine.get(name)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{prefix}{name}: " if prefix or name == "inputs" else f"{name}.")
        elif prefix.startswith("inputs") and (one is None or other is None):
            found.append(f"{name} {'was not there' if one is None else 'is gone'}")
        else:
            found.append(f"{prefix}{name} was {json.dumps(one)}, now {json.dumps(other)}")
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """Of a finished stage.

    Raises:
        ShardError: it is not finished, or the file is damaged.
    """
    path = folder / "summary.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ShardError(f"{folder}: not finished; the command that began it goes on where it ended") from None
    except ValueError as error:
        raise ShardError(f"{path}: cannot be read: {error}; remove it and run the stage's command again") from None
    return values
