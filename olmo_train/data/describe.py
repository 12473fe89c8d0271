"""A manifest for token files that somebody else published; they stay where they are, unchanged."""

import glob
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from olmo_train.data.document_index import DocumentIndex, DocumentRow, read_rows, write_index
from olmo_train.data.manifest import BLOCK_BYTES, DTYPES, FileEntry, Manifest, write_manifest
from olmo_train.data.shards import ShardFile, file_entry, hash_file
from olmo_train.errors import ShardError


@dataclass
class DescribeOptions:
    """How published shards are to be read; nothing in the files says so."""

    dtype: str
    vocab_size: int
    eos_id: int | None = None
    heldout_frac: float = 0.0
    read_tokens: bool = True
    """Hash every file and check every id; without it only sizes and spans are known."""
    infer_documents: bool = False
    """Where a sidecar is missing, end a document at each end-of-text token. The ids are then made up: file name and number."""


def describe_shards(sources: dict[str, list[str]], folder: Path, options: DescribeOptions, processes: int = 1) -> Manifest:
    """Write a manifest and indexes in `folder` for published token files, which stay where they are, unchanged.

    `sources` maps a name to globs of token files; files are taken in sorted order.

    Raises:
        ShardError: no file matches, or a file and its sidecar do not fit each other, the dtype or the vocabulary.
    """
    if options.dtype not in DTYPES:
        raise ShardError(f"dtype={options.dtype} is not one of {', '.join(DTYPES)}")
    largest = np.iinfo(options.dtype).max
    if options.vocab_size > largest + 1:
        raise ShardError(
            f"dtype={options.dtype} holds ids up to {largest}, vocab_size={options.vocab_size} has ids up to "
            f"{options.vocab_size - 1}; one of them is wrong"
        )
    jobs = []
    for source, patterns in sources.items():
        paths = sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)})
        if not paths:
            raise ShardError(f"source {source}: no file matches {', '.join(patterns)}")
        jobs += [(source, Path(path).resolve(), f"index/{source}-{number:05d}") for number, path in enumerate(paths)]
    describe = partial(_describe_file, folder=folder, options=options)
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            entries = pool.map(describe, jobs, chunksize=1)
    else:
        entries = [describe(job) for job in jobs]
    manifest = Manifest(options.dtype, options.vocab_size, options.eos_id, options.heldout_frac, files=entries)
    write_manifest(folder, manifest)
    return manifest


def _describe_file(job: tuple[str, Path, str], folder: Path, options: DescribeOptions) -> FileEntry:
    source, path, index = job
    dtype = np.dtype(options.dtype)
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ShardError(
            f"{path}: {size} bytes is no multiple of {dtype.itemsize}: truncated at byte {size - size % dtype.itemsize}, "
            f"or the dtype is not {dtype.name}"
        )
    tokens = size // dtype.itemsize
    sidecar = path.with_name(path.name.removesuffix(".npy") + ".csv.gz")
    inferred = options.infer_documents and not sidecar.exists()
    rows: Iterable[DocumentRow] = _rows_by_eos(path, tokens, options) if inferred else read_rows(sidecar)
    counts = write_index(folder / index, folder / f"{index}.csv.gz", rows, tokens, options.heldout_frac)
    entry = file_entry(str(path), source, tokens, counts, (index, f"{index}.csv.gz"), (None, None, None))
    if options.read_tokens:
        reader = ShardFile(
            path, entry, Manifest(options.dtype, options.vocab_size, None, 0.0), DocumentIndex(folder / index, sidecar)
        )
        for start in range(0, tokens, BLOCK_BYTES):
            reader.read(start, min(start + BLOCK_BYTES, tokens))
        reader.close()
        entry.sha256, entry.block_crc32 = hash_file(path)
    return entry


def _rows_by_eos(path: Path, tokens: int, options: DescribeOptions) -> list[DocumentRow]:
    if options.eos_id is None:
        raise ShardError(f"{path}: inferring documents needs the end-of-text id: give eos_id")
    ends = np.flatnonzero(np.fromfile(path, options.dtype) == options.eos_id) + 1
    if not len(ends) or ends[-1] != tokens:
        ends = np.append(ends, tokens)
    starts = np.concatenate([[0], ends[:-1]])
    return [
        DocumentRow(int(a), int(b), f"{path.name}:{n}", str(path), n + 1)
        for n, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]
