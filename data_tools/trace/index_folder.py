"""THE format of an index: writer and reader of its folder.

    plan.json             what is being built: the manifest's fingerprint and the size of parts; written first
    index.json            what it is of: the manifest's fingerprint, the parts; written last, when every part is there
    ranks.idx             uint32 (vocab_size,): the order of ids that suffixes are sorted by; a permutation of 1 .. vocab_size
    unigrams.idx          int64 (vocab_size,): how often each id stands in training documents
    part-00000.json       record of a part: range, sums; written last of the part's files
    part-00000.train.sa   uint32 (suffixes,): tokens from the beginning of the part, of training documents, in order of suffixes
    part-00000.train.top  ranks of the first KEY tokens of every STRIDE-th suffix: uint16 if they fit, else uint32 (n, KEY)
    part-00000.heldout.sa, .top   the same of held-out documents
    part-00000.unigrams.zz        zlib: int64 (vocab_size,)
    metadata*             what documents say of themselves (metadata.py), if it was asked for

A *part* is a run of whole documents of one token file. Tokens are not copied: a suffix is read from the shards. A suffix ends
with its document; what ends comes before what goes on. Arrays are raw little-endian, memory-mapped. Every file is written under
another name and renamed when it is whole.
"""

import hashlib
import json
import os
import time
import uuid
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from olmo_train.data.manifest import BLOCK_BYTES
from olmo_train.errors import ShardError

FORMAT = "olmo_train.trace"
VERSION = 1
NAME = "index.json"
PLAN = "plan.json"
STRIDE = 256
KEY = 8
SPLITS = ("train", "heldout")
OF_PART = ("train.sa", "train.top", "heldout.sa", "heldout.top", "unigrams.zz")
SUMMED = ("ranks.idx", "unigrams.idx")


@dataclass(frozen=True)
class PartRange:
    """Tokens [start, end) of a token file: whole documents."""

    number: int
    file: int
    start: int
    end: int


@dataclass(frozen=True)
class PartRecord:
    """A finished part."""

    number: int
    file: int
    start: int
    end: int
    train: int
    """Suffixes, that is tokens of training documents."""
    heldout: int
    separated: bool
    """Every document ends in end-of-text: then no match can cross an end, for texts have no such token."""
    sha256: dict[str, str]
    """Of each file of the part, by what follows `part-00000.`."""
    block_crc32: dict[str, str] = field(default_factory=dict)
    """Eight hex digits per 4 MiB of each file, so that a look at a few blocks finds damage."""


@dataclass(frozen=True)
class IndexManifest:
    """A finished index."""

    shards: str
    """Folder of the manifest, relative to the index if it lies beside or around it."""
    fingerprint: str
    """Of the manifest."""
    vocab_size: int
    parts: list[PartRecord]
    sha256: dict[str, str]
    """Of ranks.idx and unigrams.idx."""
    documents_sha256: list[str] = field(default_factory=list)
    """Of what the shards say of the documents of each token file: their places and ids. Empty: built without."""


def part_path(folder: Path, number: int, what: str) -> Path:
    """A file of a part: `what` is train.sa, heldout.top, json, ..."""
    return folder / f"part-{number:05d}.{what}"


@dataclass(frozen=True)
class Plan:
    """What all who build an index together must agree on."""

    fingerprint: str
    """Of the shards' manifest."""
    max_tokens: int
    """Of a part."""
    max_bytes: int
    """Of memory that sorting a part may take."""


@dataclass(frozen=True)
class Sums:
    """Of a file that was written."""

    sha256: str
    block_crc32: str


def write_index_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Whole or not at all."""
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    write_file(folder / NAME, [(json.dumps(values, indent=1) + "\n").encode()])


def read_index_manifest(folder: Path) -> IndexManifest:
    """Raises:
    ShardError: there is no finished index, or it is of another format."""
    path = folder / NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or (values.pop("format", None), values.pop("version", None)) != (FORMAT, VERSION):
            raise ValueError(f"it is not of format {FORMAT} version {VERSION}")
        manifest = IndexManifest(**{**values, "parts": [PartRecord(**part) for part in values["parts"]]})
        _check_values(manifest)
        return manifest
    except FileNotFoundError:
        raise ShardError(f"{path} does not exist; build an index with `olmo trace index shards=FOLDER`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} cannot be used: {error}; build it again with `olmo trace index`") from error


def _check_values(manifest: IndexManifest) -> None:
    """Raises ValueError where a value of index.json is not of its kind."""
    _check_value("shards", manifest.shards, isinstance(manifest.shards, str))
    _check_value("fingerprint", manifest.fingerprint, isinstance(manifest.fingerprint, str))
    _check_value("vocab_size", manifest.vocab_size, type(manifest.vocab_size) is int and manifest.vocab_size > 0)
    _check_value("sha256", manifest.sha256, _is_by_name(manifest.sha256, SUMMED))
    _check_value("documents_sha256", manifest.documents_sha256, isinstance(manifest.documents_sha256, list))
    for number, part in enumerate(manifest.parts):
        for name in ("number", "file", "start", "end", "train", "heldout"):
            value = getattr(part, name)
            _check_value(f"parts[{number}].{name}", value, type(value) is int and value >= 0)
        _check_value(f"parts[{number}].number", part.number, part.number == number)
        _check_value(f"parts[{number}].end", part.end, part.train + part.heldout == part.end - part.start > 0)
        _check_value(f"parts[{number}].separated", part.separated, type(part.separated) is bool)
        _check_value(f"parts[{number}].sha256", part.sha256, _is_by_name(part.sha256, OF_PART))
        _check_value(f"parts[{number}].block_crc32", part.block_crc32, _is_by_name(part.block_crc32, OF_PART))


def _check_value(name: str, value: Any, is_right: bool) -> None:
    if not is_right:
        raise ValueError(f"{name}={value!r} cannot be")


def _is_by_name(sums: Any, names: tuple[str, ...]) -> bool:
    return isinstance(sums, dict) and sorted(sums) == sorted(names) and all(isinstance(text, str) for text in sums.values())


def write_part_record(folder: Path, record: PartRecord) -> None:
    """Whole or not at all."""
    write_file(part_path(folder, record.number, "json"), [(json.dumps(asdict(record)) + "\n").encode()])


def read_part_record(folder: Path, number: int) -> PartRecord | None:
    """None: the part is not finished."""
    path = part_path(folder, number, "json")
    try:
        return PartRecord(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(f"{path} cannot be used: {error}; remove it and build again") from error


def agree_on_plan(folder: Path, plan: Plan) -> Plan:
    """Write the plan of an index unless there is one; return what stands there: the first of several builders decides.

    Were two to write different ones in the same moment, the records of their parts would not fit the plan that stays.
    """
    path = folder / PLAN
    if not path.exists():
        write_file(path, [(json.dumps(asdict(plan)) + "\n").encode()])
    found = read_plan(folder)
    assert found is not None, path
    return found


def read_plan(folder: Path) -> Plan | None:
    """None: nothing was begun.

    Raises:
        ShardError: it cannot be read.
    """
    path = folder / PLAN
    try:
        return Plan(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(f"{path} cannot be used: {error}; remove {folder} and build again") from error


def write_file(path: Path, chunks: Iterable[Any]) -> Sums:
    """Write pieces (bytes or contiguous arrays) one after the other: whole, on disk and under its name, or not at all.

    Raises:
        ShardError: the disk is full, or writing fails otherwise. FileNotFoundError: another builder, done, removed the leftovers.
    """
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            sums = _write_chunks(file, chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ShardError(
            f"{path} cannot be written: {error.strerror}; nothing half is left there. Make room, or give another output=; "
            "the same command goes on with what is finished"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return sums


def _write_chunks(file: Any, chunks: Iterable[Any]) -> Sums:
    whole, blocks, crc, filled = hashlib.sha256(), [], 0, 0
    for chunk in chunks:
        data = memoryview(chunk).cast("B") if len(chunk) else memoryview(b"")
        file.write(data)
        whole.update(data)
        while len(data):
            piece = data[: BLOCK_BYTES - filled]
            crc, filled, data = zlib.crc32(piece, crc), filled + len(piece), data[len(piece) :]
            if filled == BLOCK_BYTES:
                blocks.append(f"{crc:08x}")
                crc = filled = 0
    return Sums(whole.hexdigest(), "".join([*blocks, f"{crc:08x}"] if filled else blocks))


def remove_leftovers(folder: Path, older_than_s: float) -> None:
    """Remove files under temporary names that nobody wrote to for so long: their builders died."""
    for path in folder.glob(".*.tmp-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def top_dtype(vocab_size: int) -> np.dtype:
    """Of `.top`: ranks go up to vocab_size."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


def top_shape(n_suffixes: int) -> tuple[int, int]:
    """Of `.top`."""
    return -(-n_suffixes // STRIDE), KEY


def map_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A raw array, memory-mapped.

    Raises:
        ShardError: it is missing, or not of this size.
    """
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; part of the index: build it again with `olmo trace index`") from error
    if found != n_bytes:
        raise ShardError(f"{path}: {found} bytes, the index says {n_bytes}; build it again with `olmo trace index`")
    return np.memmap(path, dtype, "r", shape=shape) if n_bytes else np.zeros(shape, dtype)
