"""One part of a phase: its outputs, counts, rejects and records appear together when it is done, or not at all."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from data_tools.documents import Line, Reason, Reject, read_lines
from data_tools.files import InputFile, LineWriter, Tick, hash_of, temporary_name
from data_tools.work.counts import Counts, count
from olmo_train.errors import ShardError
from olmo_train.files import write_atomic

MOST_RAW = 2**20
"""Bytes of a rejected line that quarantine keeps; all of them lie at the place it names."""


@dataclass(frozen=True)
class Part:
    """What one call does. `payload` is whatever the phase's function understands; it is sent to other processes."""

    name: str
    """A file name, unique in its phase."""
    payload: Any
    size: int = 0
    """Bytes of input, for the progress."""


@dataclass
class Record:
    """What a finished part leaves in `parts/<phase>/<name>.json`."""

    name: str
    lines: int = 0
    """Documents, or records, that were looked at, good and bad."""
    counts: Counts = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path of each file read to the end: bytes, xxh3_128."""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path of each file written, relative to the folder of the stage: bytes, xxh3_128."""
    size: int = 0


class PartContext:
    """What a phase's function works with. Made for one call."""

    def __init__(self, folder: Path, phase: str, part: Part, tick: Tick, memory_mb: int = 300) -> None:
        self.folder, self.phase, self.part, self.memory_mb = folder, phase, part, memory_mb
        """`folder`: of the stage."""
        self._tick, self._ticked = tick, 0
        self.record = Record(part.name, size=part.size)
        self._outputs: list[tuple[Path, Path]] = []
        self._writers: dict[str, LineWriter] = {}

    @property
    def counts(self) -> Counts:
        """To be filled by the function."""
        return self.record.counts

    def tick(self, size: int) -> None:
        """Tell of bytes of input that were worked through."""
        size = min(size, self.part.size - self._ticked)
        self._ticked += size
        self._tick(size)

    def read(self, path: Path) -> Iterator[Line]:
        """Documents of a file; what is none goes to quarantine, what was repaired is counted, progress and hash are kept."""
        file, before = _open(path, self.tick), _stamp(path)
        for line in read_lines(path, self.reject, self.repaired, file):
            self.record.lines += 1
            yield line
            del line  # as in read_lines
        if _stamp(path) != before:
            raise ShardError(f"{path}: was changed while it was read; run the same command when nobody writes to it any more")
        self.note_input(path, file)

    def note_input(self, path: Path, file: InputFile) -> None:
        """Of a file that was read to its end by other means than `read`."""
        self.record.inputs[str(path)] = {"bytes": file.size, "xxh3_128": file.hexdigest()}

    def reject(self, reject: Reject) -> None:
        """Count, and keep in `quarantine/<part>.jsonl.zst`."""
        self.record.lines += 1
        count(self.record.rejected, reject.reason.value)
        values = asdict(reject)
        raw = values.pop("raw")
        values["bytes"] = len(raw)
        try:
            values["raw"] = raw[:MOST_RAW].decode("utf-8")
        except UnicodeDecodeError:
            values["raw_base64"] = raw[:MOST_RAW]
        self.write_line("quarantine", values)

    def repaired(self, name: str) -> None:
        """Count a repair."""
        count(self.record.repaired, name)

    def drop(self, line: Line, reason: str, **facts: Any) -> None:
        """Say in `dropped/<part>.jsonl.zst` that a document does not go on, and why."""
        values = {"id": line.id, "source": line.source, "path": line.path, "line": line.line, "reason": reason, **facts}
        self.write_line("dropped", values)

    def write_line(self, kind: str, values: Any) -> None:
        """One line of JSON in `<kind>/<phase>-<part>.jsonl.zst` of the stage's folder; appears when the part is done."""
        if kind not in self._writers:
            path = self.output(self.folder / kind / f"{self.phase}-{self.part.name}.jsonl.zst", make=False)
            self._writers[kind] = LineWriter(path)
        self._writers[kind].write(msgspec.json.encode(values))

    def output(self, path: Path, make: bool = True) -> Path:
        """A file to write: returns a temporary name beside it, with the same ending; it becomes `path` when the part is done."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        if make:
            temporary.touch()
        self._outputs.append((temporary, path))
        return temporary

    def finish(self, record_path: Path) -> Record:
        """Sync and rename the outputs, then write the record."""
        for writer in self._writers.values():
            writer.close()
        for temporary, path in self._outputs:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            entry = {"bytes": temporary.stat().st_size, "xxh3_128": hash_of(temporary)}
            os.replace(temporary, path)
            self.record.outputs[os.path.relpath(path, self.folder)] = entry
        write_atomic(record_path, (json.dumps(asdict(self.record)) + "\n").encode())
        self.tick(self.part.size)
        return self.record

    def discard(self) -> None:
        """Remove what was written."""
        for writer in self._writers.values():
            with suppress(OSError):
                writer.discard()
        for temporary, _ in self._outputs:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _open(path: Path, tick: Tick) -> InputFile:
    try:
        return InputFile(path, tick)
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened: {error.strerror}; it was there when the stage was planned") from error


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


Work = Callable[[PartContext, Any], None]
"""A function of a module, so that other processes find it: (context, shared) -> None. It must be deterministic."""


def do_part(work: Work, context: PartContext, shared: Any, record_path: Path) -> Record:
    """Do one part, whole or not at all."""
    try:
        work(context, shared)
        return context.finish(record_path)
    except (OSError, ShardError) as error:
        context.discard()
        record = read_record(context.folder, record_path)  # another, who took us for dead, was quicker and has cleaned up
        if record is not None:
            return record
        if isinstance(error, ShardError | FileNotFoundError):
            raise
        raise disk_error(f"{context.folder}: part {context.part.name} of {context.phase}", error) from error
    except BaseException:
        context.discard()
        raise


def disk_error(where: str, error: OSError) -> ShardError:
    """What a disk refused, and what to do."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            remedy = "make room"
        case errno.EFBIG:
            remedy = "allow larger files (ulimit -f)"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            remedy = "make it writable, or give another folder"
        case errno.ENAMETOOLONG:
            remedy = "shorten the name"
        case errno.EMFILE | errno.ENFILE:
            remedy = "allow more open files (ulimit -n)"
        case _:
            remedy = "mend that"
    name = f" ({error.filename})" if error.filename else ""
    return ShardError(f"{where}: {error.strerror or error}{name}; finished parts stay: {remedy}, and the same command goes on")


def read_record(folder: Path, path: Path) -> Record | None:
    """Of a finished part; None: not done, or a file it wrote is gone or has another size."""
    try:
        record = Record(**json.loads(path.read_text()))
        for name, entry in record.outputs.items():
            if (folder / name).stat().st_size != entry["bytes"]:
                return None
    except (OSError, ValueError, TypeError):
        return None
    return record


def n_damaged(record: Record) -> int:
    """Files of a part that ended too early."""
    return record.rejected.get(Reason.CUT_SHORT.value, 0)
