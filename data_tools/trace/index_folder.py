"""THE format of an index: writer and reader of its folder.

    index.json            what it is of: the manifest's fingerprint, the parts; written last, when every part is there
    ranks.idx             uint32 (vocab_size,): the order of ids that suffixes are sorted by; a permutation of 1 .. vocab_size
    unigrams.idx          int64 (vocab_size,): how often each id stands in training documents
    part-00000.json       record of a part: range, sums; written last of the part's files
    part-00000.train.sa   uint32 (suffixes,): tokens from the beginning of the part, of training documents, in order of suffixes
    part-00000.train.top  ranks of the first KEY tokens of every STRIDE-th suffix: uint16 if they fit, else uint32 (n, KEY)
    part-00000.heldout.sa, .top   the same of held-out documents
    part-00000.unigrams.idx       int64 (vocab_size,)

A *part* is a run of whole documents of one token file. Tokens are not copied: a suffix is read from the shards. A suffix ends
with its document; what ends comes before what goes on. Arrays are raw little-endian, memory-mapped.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from olmo_train.errors import ShardError
from olmo_train.files import write_atomic

FORMAT = "olmo_train.trace"
VERSION = 1
NAME = "index.json"
STRIDE = 256
KEY = 8
SPLITS = ("train", "heldout")


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


def part_path(folder: Path, number: int, what: str) -> Path:
    """A file of a part: `what` is train.sa, heldout.top, json, ..."""
    return folder / f"part-{number:05d}.{what}"


def write_index_manifest(folder: Path, manifest: IndexManifest) -> None:
    """Whole or not at all."""
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    write_atomic(folder / NAME, (json.dumps(values, indent=1) + "\n").encode())


def read_index_manifest(folder: Path) -> IndexManifest:
    """Raises:
    ShardError: there is no finished index, or it is of another format."""
    path = folder / NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or (values.pop("format", None), values.pop("version", None)) != (FORMAT, VERSION):
            raise ValueError(f"it is not of format {FORMAT} version {VERSION}")
        return IndexManifest(**{**values, "parts": [PartRecord(**part) for part in values["parts"]]})
    except FileNotFoundError:
        raise ShardError(f"{path} does not exist; build an index with `olmo trace index shards=FOLDER`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} cannot be used: {error}; build it again with `olmo trace index`") from error


def write_part_record(folder: Path, record: PartRecord) -> None:
    """Whole or not at all."""
    write_atomic(part_path(folder, record.number, "json"), (json.dumps(asdict(record)) + "\n").encode())


def read_part_record(folder: Path, number: int) -> PartRecord | None:
    """None: the part is not finished."""
    try:
        return PartRecord(**json.loads(part_path(folder, number, "json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(f"{part_path(folder, number, 'json')} cannot be used: {error}; remove it and build again") from error


def top_dtype(vocab_size: int) -> np.dtype:
    """Of `.top`: ranks go up to vocab_size."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


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
