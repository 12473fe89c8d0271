"""One part of an index: tokens of the shards in, its files and its record out."""

import hashlib
import zlib
from pathlib import Path

import numpy as np

from data_tools.trace.index_folder import (
    SPLITS,
    PartRange,
    PartRecord,
    part_path,
    read_part_record,
    top_dtype,
    write_file,
    write_part_record,
)
from data_tools.trace.suffixes import CHUNK, leading_ranks, part_ends, sort_part, suffix_chunks
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError


def documents_sha256(file: ShardFile) -> str:
    """Of the places and the ids of a token file's documents: the same for every copy of the shards."""
    found = hashlib.sha256()
    for suffix in (".starts.idx", ".ids.idx", ".heldout.idx"):
        array = file.index.load(suffix)
        found.update(f"{suffix} {array.dtype.str} {array.shape}\n".encode())
        flat = array.reshape(-1)
        for first in range(0, len(flat), CHUNK):
            found.update(np.ascontiguousarray(flat[first : first + CHUNK]).data)
    return found.hexdigest()


def finished_part(folder: Path, part: PartRange) -> PartRecord | None:
    """The record of a part whose files are all there; None: it must be built.

    Raises:
        ShardError: it is a part of another plan.
    """
    record = read_part_record(folder, part.number)
    if record is None:
        return None
    if (record.file, record.start, record.end) != (part.file, part.start, part.end):
        raise ShardError(
            f"{part_path(folder, part.number, 'json')}: tokens [{record.start}, {record.end}) of file {record.file}, the plan "
            f"says [{part.start}, {part.end}) of file {part.file}: parts of two builds are mixed; remove {folder} and build again"
        )
    for split, n in zip(SPLITS, (record.train, record.heldout), strict=True):
        path = part_path(folder, part.number, f"{split}.sa")
        if not path.exists() or path.stat().st_size != 4 * n:
            return None
    others = [part_path(folder, part.number, what) for what in record.sha256]
    return record if all(path.exists() for path in others) else None


def build_part(shards: str, folder: Path, part: PartRange) -> PartRecord:
    """Sort a part and write its files, the record last. Two builders of the same part write the same bytes.

    Raises:
        ShardError: the shards are not what their manifest says, or the disk is full.
    """
    try:
        return _build(Corpus(shards), folder, part)
    except FileNotFoundError:  # another builder of the same part was faster, found the index finished and cleaned up
        record = finished_part(folder, part)
        if record is None:
            raise
        return record


def _build(corpus: Corpus, folder: Path, part: PartRange) -> PartRecord:
    file, manifest = corpus.files[part.file], corpus.manifest
    rank_V = np.fromfile(folder / "ranks.idx", "<u4")
    found = sort_part(file, part, rank_V)
    ends = part_ends(file, part).astype(np.int64) - part.start
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    tokens = np.memmap(file.path, dtype, "r", offset=part.start * dtype.itemsize, shape=(part.end - part.start,))
    pieces = {}
    for split, sa in zip(SPLITS, (found.train, found.heldout), strict=True):
        pieces[f"{split}.sa"] = suffix_chunks(sa)
        pieces[f"{split}.top"] = leading_ranks(sa, tokens, ends, rank_V, top_dtype(manifest.vocab_size))
    counts = zlib.compress(found.counts_V.astype("<i8").tobytes())
    sums = {what: write_file(part_path(folder, part.number, what), chunks) for what, chunks in pieces.items()}
    sums["unigrams.zz"] = write_file(part_path(folder, part.number, "unigrams.zz"), [counts])
    eos, last = manifest.eos_id, tokens[np.unique(ends[ends > 0]) - 1]
    record = PartRecord(
        part.number, part.file, part.start, part.end, len(found.train), len(found.heldout),
        separated=eos is not None and bool((last == eos).all()),
        sha256={what: found.sha256 for what, found in sums.items()},
        block_crc32={what: found.block_crc32 for what, found in sums.items()},
    )  # fmt: skip
    write_part_record(folder, record)
    return record


def part_unigrams(folder: Path, number: int, vocab_size: int) -> np.ndarray:
    """int64 (vocab_size,): how often each id stands in training documents of a finished part.

    Raises:
        ShardError: the file is damaged.
    """
    path = part_path(folder, number, "unigrams.zz")
    try:
        counts = np.frombuffer(zlib.decompress(path.read_bytes()), "<i8")
    except (OSError, zlib.error, ValueError) as error:
        raise ShardError(f"{path} cannot be read: {error}; remove part-{number:05d}.* and build again") from error
    if len(counts) != vocab_size:
        raise ShardError(f"{path}: {len(counts)} ids, the shards have {vocab_size}; remove part-{number:05d}.* and build again")
    return counts
