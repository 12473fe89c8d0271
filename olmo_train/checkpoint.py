"""Write and read ONE step folder: complete or absent, checksummed, sharded, and without a pickle.

    steps/step00001000/
        manifest.json                         files (bytes, SHA-256) and tensors (dtype, shape, which rows in which file)
        config.yaml provenance.json state.json
        model-00000-of-00002.safetensors      this rank's rows of every parameter
        optim-00000-of-00002.safetensors      the same of every moment
        rng-00000-of-00002.safetensors

Every rank writes its files into a temporary folder and then a record of them; when all records are there, one rank writes the
manifest, syncs, and gives the folder its name. Nothing is sent between ranks, so a save can run beside training.
"""

import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from olmo_train.errors import CheckpointError
from olmo_train.files import sync_folder, write_atomic
from olmo_train.step_folder import MANIFEST, step_name

FORMAT = "olmo_train.step"
VERSION = 1
PERMANENT, EPHEMERAL = "permanent", "ephemeral"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip
"""By safetensors' names."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """Rows [start, start + len(tensor)) along dim 0 of a tensor of `shape`; the tensor is on the CPU and nobody writes to it."""

    tensor: Tensor
    start: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.tensor.dtype

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + len(self.tensor)

    def pieces(self) -> Iterable[Tensor]:
        """The tensor in one."""
        return [self.tensor]


@dataclass(frozen=True)
class StreamedShard:
    """A shard that is read only while it is written, so that memory holds a piece of one tensor."""

    dtype: torch.dtype
    start: int
    stop: int
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]
    """Consecutive rows from `start` to `stop`."""


Groups = Mapping[str, Mapping[str, Shard | StreamedShard]]
"""Shards by name by group."""
Record = dict[str, Any]
"""What a rank wrote: `files` as in the manifest, `tensors` by group with this rank's rows."""


@dataclass(frozen=True)
class WrittenFile:
    """What a file became."""

    bytes: int
    sha256: str
    tensors: dict[str, str]
    """SHA-256 of the raw bytes of each tensor, if they were asked for."""


# ---- writing ---------------------------------------------------------------------------------------------------------


def temporary_folder(steps: Path, step: int, attempt: str) -> Path:
    """Where a save is prepared. `attempt` is the run's start, so that leftovers of a killed run are never mistaken for ours."""
    return steps / f".{step_name(step)}.tmp-{attempt}"


def write_rank(folder: Path, rank: int, n_ranks: int, groups: Groups) -> None:
    """Write one file per group ("model", "optim", "rng") with this rank's shards, then the record of them.

    Raises:
        CheckpointError: the file system refused; names the file.
    """
    write_record(folder, rank, write_files(folder, rank, n_ranks, groups))


def write_files(folder: Path, rank: int, n_ranks: int, groups: Groups) -> Record:
    """Write one file per group, synced; return the record of them, which `write_record` makes known.

    Raises:
        CheckpointError: the file system refused; names the file.
    """
    record: Record = {"files": {}, "tensors": {}}
    name = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for group, shards in groups.items():
            name = f"{group}-{rank:05d}-of-{n_ranks:05d}.safetensors"
            kept = {key: s for key, s in shards.items() if s.stop > s.start and 0 not in s.shape[1:]}
            specs = {key: (s.dtype, (s.stop - s.start, *s.shape[1:])) for key, s in kept.items()}
            written = write_safetensors(folder / name, specs, (piece for s in kept.values() for piece in s.pieces()))
            record["files"][name] = {"bytes": written.bytes, "sha256": written.sha256}
            record["tensors"][group] = {
                key: {"dtype": DTYPE_NAMES[s.dtype], "shape": list(s.shape), "file": name, "start": s.start, "stop": s.stop}
                for key, s in kept.items()
            }
    except OSError as error:
        raise refused(folder / name, error) from error
    return record


def write_record(folder: Path, rank: int, record: Record) -> None:
    """Say that a rank's files are written; their names come to disk first.

    Raises:
        CheckpointError: the file system refused.
    """
    try:
        sync_folder(folder)
        write_atomic(folder / _record_name(rank), json.dumps(record).encode())
    except OSError as error:
        raise refused(folder / _record_name(rank), error) from error


def refused(path: Path, error: OSError) -> CheckpointError:
    """The error for a file of a save that could not be written."""
    return CheckpointError(
        f"{path}: {error.strerror or error}; free space or mend the file system, the run's other checkpoints are untouched"
    )


def commit(
    folder: Path,
    final: Path,
    n_ranks: int,
    info: Mapping[str, Any],
    texts: Mapping[str, str],
    cancelled: threading.Event,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Wait for the records of all ranks, write the texts and the manifest, and rename `folder` to `final`. False if cancelled.

    Args:
        check: whether the run is still ours to write, asked last, just before the rename; it raises if not (Fence.check).

    Raises:
        CheckpointError: the file system refused, another rank's file is not there as that rank wrote it, or `final` exists.
    """
    try:
        if not _await_records(folder, n_ranks, cancelled):
            return False
        files: dict[str, Any] = {}
        tensors: dict[str, dict[str, Any]] = {}
        for rank in range(n_ranks):
            record = json.loads((folder / _record_name(rank)).read_text())
            files |= record["files"]
            for group, entries in record["tensors"].items():
                _merge(tensors.setdefault(group, {}), entries)
        _check_sizes(folder, files)
        for name, text in texts.items():
            data = text.encode()
            write_atomic(folder / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **info,
            "files": dict(sorted(files.items())),
            "tensors": tensors,
        }
        write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        for rank in range(n_ranks):
            (folder / _record_name(rank)).unlink()
        sync_folder(folder)
        if final.exists():
            raise CheckpointError(f"{final} exists already; a step folder is never overwritten: move it away")
        check()
        os.rename(folder, final)
        sync_folder(final.parent)
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror or error}; the step was not saved") from error
    return True


def remove_step(folder: Path) -> None:
    """Delete a step folder. It loses its name first, so that no half-deleted folder looks complete."""
    doomed = folder.with_name(f".{folder.name}.deleted-{time.time_ns()}")
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _record_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _await_records(folder: Path, n_ranks: int, cancelled: threading.Event) -> bool:
    """Wait until every rank has left its record; False if cancelled before.

    One listing asks for all of them (a thousand ranks' files asked for one by one burden a metadata server), and network file
    systems answer a listing with what there is now, where they remember for a while that a single file was missing.
    """
    wanted, pause = {_record_name(rank) for rank in range(n_ranks)}, 0.02
    while not wanted <= set(os.listdir(folder)):
        if cancelled.wait(pause):
            return False
        pause = min(pause * 1.2, 0.5)
    return True


def _check_sizes(folder: Path, files: Mapping[str, Any]) -> None:
    """Every rank's files as this rank sees them: a rank that writes into another folder of the same name is found out here."""
    for name, entry in files.items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{folder / name}: {size} bytes, the rank that wrote it says {entry['bytes']}; the step was not saved; look "
                "after the file system"
            )


def _merge(tensors: dict[str, Any], entries: Mapping[str, Any]) -> None:
    for key, entry in entries.items():
        whole = tensors.setdefault(key, {"dtype": entry["dtype"], "shape": entry["shape"], "shards": []})
        whole["shards"].append({name: entry[name] for name in ("file", "start", "stop")})


def write_safetensors(
    path: Path,
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    pieces: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
    hash_tensors: bool = False,
) -> WrittenFile:
    """Write a safetensors file, hashing on the way. (The library's writer wants all tensors in memory and hashes nothing.)

    Args:
        specs: dtype and shape of each tensor, known before any is read.
        pieces: consecutive rows of the first tensor until it is whole, then of the next; an iterator may go on for another file.
        hash_tensors: also hash each tensor by itself.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for key, (dtype, shape) in specs.items():
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, tensors, source = hashlib.sha256(), {}, iter(pieces)
    with open(path, "wb") as file:
        for data in (len(text).to_bytes(8, "little"), text):
            file.write(data)
            digest.update(data)
        for key, (dtype, shape) in specs.items():
            own = hashlib.sha256()
            for data in _buffers(source, key, dtype, math.prod(shape) * dtype.itemsize):
                file.write(data)
                digest.update(data)
                if hash_tensors:
                    own.update(data)
            tensors[key] = own.hexdigest()
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(8 + len(text) + offset, digest.hexdigest(), tensors if hash_tensors else {})


def _buffers(source: Iterator[Tensor], key: str, dtype: torch.dtype, size: int) -> Iterator[Any]:
    """The memory of the pieces of one tensor."""
    while size > 0:
        piece = next(source)
        size -= piece.numel() * piece.element_size()
        assert piece.dtype == dtype, f"{key}: {piece.dtype}, announced as {dtype}"
        assert size >= 0, f"{key}: its pieces are longer than announced"
        yield _bytes(piece)


def _bytes(tensor: Tensor) -> Any:
    """The memory of a tensor, as a buffer, without a copy."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of a step folder; `name`: of a copy of it elsewhere.

    Raises:
        CheckpointError: there is none (the save never finished), or it is not ours.
    """
    try:
        manifest = json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {name}: not a finished step folder; see the finished ones with `olmo checkpoints list`"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise CheckpointError(f"{folder / name} is not of format {FORMAT} version {VERSION}")
    return manifest


def manifest_identity(folder: Path) -> dict[str, Any]:
    """What names a step folder wherever it lies: its step, and the SHA-256 of its manifest, which names every byte in it."""
    return {"step": read_manifest(folder)["step"], "sha256": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}


def verify_files(folder: Path, manifest: Mapping[str, Any], names: Iterable[str] | None = None) -> list[str]:
    """Problems of the named files (all of them by default): missing, wrong size, wrong SHA-256."""
    problems = []
    for name in manifest["files"] if names is None else names:
        entry, path = manifest["files"][name], folder / name
        try:
            if path.stat().st_size != entry["bytes"]:
                problems.append(f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
                continue
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                problems.append(f"{path}: SHA-256 {found}, the manifest says {entry['sha256']}: its content changed")
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
    return problems


def read_state(folder: Path) -> dict[str, Any]:
    """The small values of a run at that step (`state.json`)."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be read: {error}") from error
    return state


def load_rows(
    folder: Path, manifest: Mapping[str, Any], group: str, wanted: Mapping[str, tuple[int, int] | None]
) -> dict[str, Tensor]:
    """Rows [start, stop) of each wanted tensor of a group, from however many files they lie in; None: the whole tensor.

    Raises:
        CheckpointError: a tensor is not in the folder, or its rows do not cover what is wanted.
    """
    entries = manifest["tensors"].get(group, {})
    missing = [key for key in wanted if key not in entries]
    if missing:
        raise CheckpointError(
            f"{folder}: no {group} tensor {missing[0]!r} (and {len(missing) - 1} more); it was written by another model"
        )
    opened: dict[str, Any] = {}
    out = {}
    try:
        for key, rows in wanted.items():
            entry = entries[key]
            start, stop = rows if rows is not None else (0, entry["shape"][0])
            parts, at = [], start
            for shard in sorted(entry["shards"], key=lambda s: int(s["start"])):
                a, b = max(at, shard["start"]), min(stop, shard["stop"])
                if a == at and a < b:  # beyond `at` there would be a hole
                    file = opened.setdefault(shard["file"], None) or safe_open(str(folder / shard["file"]), "pt")
                    opened[shard["file"]] = file
                    parts.append(file.get_slice(key)[a - shard["start"] : b - shard["start"]])
                    at = b
            if at < stop:
                raise CheckpointError(f"{folder}: {group} tensor {key!r} has no rows from {at} on, wanted up to {stop}")
            out[key] = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else _empty(entry)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors raises its own class, which is no subclass of anything useful
        raise CheckpointError(
            f"{folder}: the {group} file cannot be read: {error}; check it with `olmo checkpoints verify {folder}`"
        ) from error
    return out


def _empty(entry: Mapping[str, Any]) -> Tensor:
    return torch.empty((0, *entry["shape"][1:]), dtype=DTYPES[entry["dtype"]])
