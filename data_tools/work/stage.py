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
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from data_tools.files import hash_of, remove_temporaries, temporary_name
from data_tools.work.claims import STALE_S, Claims
from data_tools.work.config import StageConfig, n_processes
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part, Record, Work, disk_error, n_damaged, read_record
from data_tools.work.phase import Phase
from data_tools.work.pool import Pool
from olmo_train.errors import ShardError
from olmo_train.files import write_atomic
from olmo_train.schema import to_plain

VERSION = 1
PACKAGES = (
    "tokenizers", "gigatoken", "numpy", "numba", "msgspec", "xxhash", "pyarrow", "resiliparse", "trafilatura", "py3langid",
    "fasttext-predict", "onnxruntime",
)  # fmt: skip
"""Whose versions a summary tells."""


@dataclass(frozen=True)
class Plan:
    """What a stage does. Two starts with the same plan work together; another plan in the same folder is refused."""

    name: str
    """E.g. tokenize, tag."""
    settings: dict[str, Any]
    """All that decides what is written."""
    inputs: Sequence[Path]
    """Files that are read; known by path and size, and by contents where the time stamp has changed."""


def settings_of(config: StageConfig, leave_out: Sequence[str] = ("documents", "output")) -> dict[str, Any]:
    """The fields of a config that decide what is written: all but those of StageConfig and `leave_out`."""
    skipped = {field.name for field in fields(StageConfig)} | set(leave_out)
    return {name: value for name, value in to_plain(config).items() if name not in skipped}


class Stage:
    """One stage, opened by one process. Use as a context manager."""

    def __init__(self, folder: Path, plan: Plan, config: StageConfig, stale_s: float = STALE_S) -> None:
        """`stale_s`: see Claims.

        Raises:
            ShardError: another plan was begun in this folder; says how the two differ. Or the disk refuses to be written.
        """
        self.folder, self.plan, self.config = folder, plan, config
        self.records: list[Record] = []
        """Of all phases that ran."""
        self.output_folders: set[Path] = set()
        """In which they wrote."""
        self.claims, self._began = Claims(stale_s), time.time()
        self._opened: Pool | None = None
        self._signals: dict[signal.Signals, Any] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of each input when the stage was opened."""
        self._hashes: dict[str, str] = {}
        with self._disk("it cannot be begun"):
            folder.mkdir(parents=True, exist_ok=True)
            self._agree()
        self._is_ours = not self.is_finished

    # ---- plan and summary ------------------------------------------------------------------------------------------------

    def _agree(self) -> None:
        """Write the plan, unless it is there; then compare."""
        path = self.folder / "stage.json"
        times = {}
        for file in self.plan.inputs:
            try:
                facts = file.stat()
            except OSError as error:
                raise ShardError(f"{file}: cannot be read: {error.strerror}; it was there a moment ago") from None
            self.sizes[str(file)], times[str(file)] = facts.st_size, facts.st_mtime_ns
        mine = {"stage": self.plan.name, "version": VERSION, "settings": self.plan.settings, "inputs": self.sizes}
        if not path.exists():
            temporary = temporary_name(path)
            try:
                temporary.write_text(json.dumps({**mine, "modified": times}, indent=1) + "\n")
                os.link(temporary, path)  # unlike a rename, not over the plan of another task
            except FileExistsError:
                pass
            finally:
                temporary.unlink(missing_ok=True)
        try:
            theirs = json.loads(path.read_text())
            before = theirs.pop("modified", times)
        except (ValueError, AttributeError) as error:
            raise ShardError(f"{path}: cannot be read: {error}; remove {self.folder} to begin anew") from None
        differences = _differences(theirs, json.loads(json.dumps(mine)))
        if not differences:
            differences = self._changed([name for name in times if before.get(name) != times[name]])
        if differences:
            raise ShardError(
                f"{self.folder}: was begun by another plan: {'; '.join(differences[:5])}"
                f"{f'; and {len(differences) - 5} more' if len(differences) > 5 else ''}; give the same, another output, "
                "or remove it"
            )

    def _changed(self, names: Sequence[str]) -> list[str]:
        """Of inputs of the same size but another time: those that a part has read when they held something else."""
        if not names:
            return []
        read: dict[str, str] = {}
        for path in (self.folder / "parts").glob("*/*.json"):
            record = read_record(self.folder, path)
            entries = record.inputs if record else {}
            read.update({n: entry["xxh3_128"] for n, entry in entries.items() if entry["bytes"] == self.sizes.get(n)})
        return [f"{name} was read with other contents" for name in names if name in read and hash_of(Path(name)) != read[name]]

    def note_inputs(self, record: Record, path: Path) -> None:
        """Raises:
        ShardError: an input is not what it was when the stage was opened, or when another phase read it. `path`, the record, is
        removed."""
        for name, entry in record.inputs.items():
            planned = self.sizes.get(name)
            if planned is None or n_damaged(record):
                continue
            if entry["bytes"] != planned and Path(name).stat().st_size != planned:
                told = f"had {planned:,} bytes when the stage was planned, and {entry['bytes']:,} when it was read"
            elif entry["bytes"] == planned and self._hashes.setdefault(name, entry["xxh3_128"]) != entry["xxh3_128"]:
                told = "was read twice with different contents"
            else:
                continue
            path.unlink(missing_ok=True)
            raise ShardError(f"{name}: {told}; bring it back, or remove {self.folder} and begin anew")

    @contextmanager
    def _disk(self, told: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise disk_error(f"{self.folder}: {told}", error) from error

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
        with self._disk("the summary cannot be written"):
            self._remove_leftovers()
            try:
                write_atomic(self.folder / "summary.json", (json.dumps(values, indent=1) + "\n").encode())
            except FileNotFoundError:
                if not self.is_finished:  # by another task, which then cleaned up
                    raise
            self._is_ours = False
            remove_temporaries(self.folder)
        self.clean(remove)
        return values

    def _remove_leftovers(self) -> None:
        """Of processes that were killed."""
        records = [path for path in (self.folder / "parts").iterdir() if path.is_dir()] if self.records else []
        for folder in self.output_folders.union(records) - {self.folder}:  # there another task may just write its summary
            with suppress(FileNotFoundError):
                remove_temporaries(folder)
        for folder in records:
            for claim in folder.glob("*.claim"):
                claim.unlink(missing_ok=True)

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
        with self._disk(phase):
            records = Phase(self, phase, parts, work, shared).run()
        self.records += records
        self.check_limits()
        return records

    @property
    def name(self) -> str:
        """Of the plan."""
        return self.plan.name

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
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._signals[number] = signal.signal(number, _end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._signals[number] = signal.signal(number, signal.SIG_IGN) or self._signals.get(number, signal.SIG_DFL)
        try:
            if self._opened is not None:
                self._opened.close(at_once=kind is not None)
            self.claims.release_all()
        finally:
            for each, before in self._signals.items():
                signal.signal(each, signal.SIG_DFL if before == _end else before)
        if isinstance(error, KeyboardInterrupt | _Ended):
            print(f"{self.plan.name}: interrupted; the same command goes on where it ended", file=sys.stderr)
            raise SystemExit(error.code if isinstance(error, _Ended) else 128 + signal.SIGINT) from None
        if isinstance(error, OSError | ShardError) and self._is_ours and self.is_finished:
            print(f"{self.folder}: was finished meanwhile by another task", file=sys.stderr)
            raise SystemExit(0) from None


class _Ended(SystemExit):
    """A signal asked this process to end."""


def _end(number: int, _: Any) -> NoReturn:
    raise _Ended(128 + number)


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
