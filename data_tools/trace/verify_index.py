"""Check an index against its sums and its shards: `olmo trace verify shards/demo/trace [--order]`."""

import argparse
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.inspect.verify import check_documents, check_tokenizer
from data_tools.trace.build_part import documents_sha256, part_unigrams
from data_tools.trace.index_folder import (
    KEY,
    NAME,
    SPLITS,
    IndexManifest,
    PartRange,
    PartRecord,
    map_array,
    part_path,
    read_index_manifest,
    read_part_record,
    top_dtype,
    top_shape,
)
from data_tools.trace.metadata import metadata_problems
from data_tools.trace.suffix_kernels import count, first_disorder, invert, put_runs
from data_tools.trace.suffixes import checked_blocks, heldout_bits, leading_ranks, part_ends
from olmo_train.data.manifest import BLOCK_BYTES
from olmo_train.data.shards import Corpus
from olmo_train.errors import ShardError, run_command

SPOTS = 8
"""Blocks of the index, and as many of the shards, that a spot check reads: 64 MiB in all."""
REMEDY = "remove this part's files and build again with `olmo trace index`"
AGAIN = "remove index.json and build again with `olmo trace index`"
NOWHERE = 2**32 - 1


def main(argv: list[str]) -> None:
    """Check every byte, and say so; all problems are told, with exit status 2."""
    parser = argparse.ArgumentParser("olmo trace verify", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of an index")
    parser.add_argument(
        "--order",
        action="store_true",
        help="also compare all neighbours of the suffix arrays (memory: 6 bytes per token of a part)",
    )
    args = parser.parse_args(argv)
    manifest = read_index_manifest(args.folder)
    problems = verify_index(args.folder, "order" if args.order else "full")
    if problems:
        raise ShardError("\n".join(dict.fromkeys(problems)))
    tokens = sum(part.train + part.heldout for part in manifest.parts)
    order = ", positions and their order" if args.order else ""
    print(f"{args.folder}: {len(manifest.parts)} parts, {tokens:,} tokens: every byte as it was built, of these shards{order}")


def verify_index(folder: Path, level: str, manifest: IndexManifest | None = None, corpus: Corpus | None = None) -> list[str]:
    """Problems of an index and its shards. `level`: "size"; "spot", also SPOTS blocks of each; "full", every byte; "order", also
    that each suffix array holds the part's positions in the order of their suffixes, and that leading ranks and unigrams fit.

    `manifest` and `corpus`: where they were read already.

    Raises:
        ShardError: there is no finished index, or the manifest of its shards cannot be read.
    """
    manifest = manifest or read_index_manifest(folder)
    corpus = corpus or Corpus(folder / manifest.shards)
    if corpus.manifest.fingerprint() != manifest.fingerprint:
        return [foreign_shards(folder, manifest, corpus)]
    problems = corpus.verify("full" if level == "order" else level, SPOTS) + _geometry(folder, manifest, corpus)
    problems += _sizes(folder, manifest)
    if problems or level == "size":
        return problems
    if level == "spot":
        return _spots(folder, manifest)
    problems = _records(folder, manifest) + _sums(folder, manifest) + _documents(folder, manifest, corpus)
    problems += metadata_problems(folder, len(corpus.files), manifest.fingerprint)
    if level == "order" and not problems:
        problems = _unigrams(folder, manifest) + [text for part in manifest.parts for text in _order(folder, corpus, part)]
    return problems


def foreign_shards(folder: Path, manifest: IndexManifest, corpus: Corpus) -> str:
    """The message for an index of other shards."""
    return (
        f"{folder}: the index is of the shards with fingerprint {manifest.fingerprint[:16]}..., {corpus.folder} has "
        f"{corpus.manifest.fingerprint()[:16]}...: the shards were changed or exchanged; build the index again"
    )


def _geometry(folder: Path, manifest: IndexManifest, corpus: Corpus) -> list[str]:
    """Parts must be the token files, one after the other, and all of them."""
    at = [0] * len(corpus.files)
    for part in manifest.parts:
        if part.file >= len(at) or part.start != at[part.file]:
            where = f"part {part.number} is tokens [{part.start}, {part.end}) of file {part.file}"
            return [f"{folder / NAME}: {where}, which does not go on from the part before; {AGAIN}"]
        at[part.file] = part.end
    return [
        f"{folder / NAME}: its parts end at token {end} of {file.path}, which has {file.entry.tokens}; {AGAIN}"
        for file, end in zip(corpus.files, at, strict=True)
        if end != file.entry.tokens
    ]


def _records(folder: Path, manifest: IndexManifest) -> list[str]:
    """index.json has no sum of its own: what it says of each part is said twice."""
    problems = []
    for part in manifest.parts:
        path = part_path(folder, part.number, "json")
        try:
            found = read_part_record(folder, part.number)
        except ShardError as error:
            problems.append(str(error))
            continue
        if found != part:
            what = "is missing" if found is None else f"is not what {NAME} says of this part"
            problems.append(f"{path} {what}; {REMEDY}")
    return problems


def _documents(folder: Path, manifest: IndexManifest, corpus: Corpus) -> list[str]:
    """Which document a token is of is told by the shards: their sidecars must be whole, and those the index was built on."""
    problems = check_documents(corpus) + check_tokenizer(corpus)
    if problems or not manifest.documents_sha256:
        return problems
    found = [documents_sha256(file) for file in corpus.files]
    if len(found) != len(manifest.documents_sha256):
        return [f"{folder / NAME}: sums of {len(manifest.documents_sha256)} files, the shards have {len(found)}; {AGAIN}"]
    return [
        f"{file.index.rows_path}: the documents are not those of the index: the sidecars of this file were exchanged; copy "
        f"{file.index.rows_path.name} and {file.index.path('.*.idx')} again"
        for file, one, wanted in zip(corpus.files, found, manifest.documents_sha256, strict=True)
        if one != wanted
    ]


def _sizes(folder: Path, manifest: IndexManifest) -> list[str]:
    kind, problems = top_dtype(manifest.vocab_size), []

    def check(path: Path, dtype: object, shape: tuple[int, ...]) -> None:
        try:
            map_array(path, dtype, shape)
        except ShardError as error:
            problems.append(str(error))

    check(folder / "ranks.idx", "<u4", (manifest.vocab_size,))
    check(folder / "unigrams.idx", "<i8", (manifest.vocab_size,))
    for part in manifest.parts:
        for split, n in zip(SPLITS, (part.train, part.heldout), strict=True):
            check(part_path(folder, part.number, f"{split}.sa"), "<u4", (n,))
            check(part_path(folder, part.number, f"{split}.top"), kind, top_shape(n))
        if not part_path(folder, part.number, "unigrams.zz").exists():
            problems.append(f"{part_path(folder, part.number, 'unigrams.zz')} is missing; {REMEDY}")
    return problems


def _spots(folder: Path, manifest: IndexManifest) -> list[str]:
    """Problems of a few blocks, spread evenly over the files of all parts."""
    blocks = [
        (part_path(folder, part.number, what), number, sums[8 * number : 8 * number + 8])
        for part in manifest.parts
        for what, sums in part.block_crc32.items()
        for number in range(len(sums) // 8)
    ]
    if len(blocks) > SPOTS:
        blocks = [blocks[i * (len(blocks) - 1) // (SPOTS - 1)] for i in range(SPOTS)]
    problems = []
    for path, number, wanted in blocks:
        with open(path, "rb") as file:
            file.seek(number * BLOCK_BYTES)
            found = f"{zlib.crc32(file.read(BLOCK_BYTES)):08x}"
        if found != wanted:
            start = number * BLOCK_BYTES
            where = f"bytes [{start}, {start + BLOCK_BYTES})"
            problems.append(f"{path}: changed somewhere in {where}: crc32 {found}, it was built with {wanted}; {REMEDY}")
    return problems


def _sums(folder: Path, manifest: IndexManifest) -> list[str]:
    files = [(folder / name, wanted) for name, wanted in manifest.sha256.items()]
    files += [(part_path(folder, p.number, what), wanted) for p in manifest.parts for what, wanted in p.sha256.items()]
    problems = []
    for path, wanted in files:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            problems.append(f"{path}: SHA-256 {found[:16]}..., the index says {wanted[:16]}...; {REMEDY}")
    return problems


def _unigrams(folder: Path, manifest: IndexManifest) -> list[str]:
    n = manifest.vocab_size
    total = sum((part_unigrams(folder, part.number, n) for part in manifest.parts), np.zeros(n, np.int64))
    wrong = np.flatnonzero(total != map_array(folder / "unigrams.idx", "<i8", (n,)))
    if not len(wrong):
        return []
    return [f"{folder / 'unigrams.idx'}: id {wrong[0]} is not the sum of its parts; remove index.json and build again"]


@dataclass(frozen=True)
class _Contents:
    """What a part must hold, read from the shards again. tokens, is_heldout: of the part; ends: of its documents."""

    tokens: np.ndarray
    ends: np.ndarray
    is_heldout: np.ndarray
    counts_V: np.ndarray


def _contents(corpus: Corpus, part: PartRange) -> _Contents:
    file, n = corpus.files[part.file], part.end - part.start
    dtype = np.dtype(corpus.manifest.dtype).newbyteorder("<")
    tokens = np.asarray(np.memmap(file.path, dtype, "r", offset=part.start * dtype.itemsize, shape=(n,)))
    ends = part_ends(file, part).astype(np.int64) - part.start
    heldout, counts_2V = heldout_bits(file, part), np.zeros((2, corpus.manifest.vocab_size), np.int64)
    for first, ids in checked_blocks(file, part.start, part.end):
        count(ids, first - part.start, heldout, counts_2V)
    bits = heldout if len(heldout) else np.zeros(-(-n // 64), np.uint64)
    is_heldout = np.unpackbits(bits.view(np.uint8), bitorder="little", count=n).astype(np.bool_)
    return _Contents(tokens, ends[ends > 0], is_heldout, counts_2V[0])


def _order(folder: Path, corpus: Corpus, record: PartRecord) -> list[str]:
    """Problems of what a part holds."""
    found = _contents(corpus, PartRange(record.number, record.file, record.start, record.end))
    problems = []
    if not np.array_equal(part_unigrams(folder, record.number, len(found.counts_V)), found.counts_V):
        problems.append(f"{part_path(folder, record.number, 'unigrams.zz')}: the shards have other unigrams; {REMEDY}")
    rank_V = np.asarray(map_array(folder / "ranks.idx", "<u4", (len(found.counts_V),)))
    for split in SPLITS:
        problems += _order_of(part_path(folder, record.number, f"{split}.sa"), split, found, rank_V)
    return problems


def _order_of(path: Path, split: str, part: _Contents, rank_V: np.ndarray) -> list[str]:
    """Problems of one suffix array and of its leading ranks."""
    wanted = part.is_heldout if split == "heldout" else ~part.is_heldout
    sa = np.asarray(map_array(path, "<u4", (int(wanted.sum()),)))
    place = np.full(len(wanted), NOWHERE, np.uint32)
    wrong = invert(sa, place) + int((place[~wanted] != NOWHERE).sum())
    if wrong:
        return [f"{path}: {wrong} entries are no tokens of this split, or stand twice; {REMEDY}"]
    last = np.zeros(-(-len(wanted) // 64), np.uint64)
    put_runs(last, np.stack([part.ends - 1, part.ends], 1), 0)
    at = first_disorder(sa, part.tokens, rank_V, last, place)
    if at >= 0:
        return [f"{path}: suffix {at} (token {sa[at]}) must not stand before the next (token {sa[at + 1]}); {REMEDY}"]
    dtype, top = top_dtype(len(rank_V)), path.with_suffix(".top")
    pieces = [np.zeros((0, KEY), dtype), *leading_ranks(sa, part.tokens, part.ends, rank_V, dtype)]
    if not np.array_equal(np.concatenate(pieces), map_array(top, dtype, top_shape(len(sa)))):
        return [f"{top}: other leading tokens than the suffixes have; {REMEDY}"]
    return []


if __name__ == "__main__":
    raise SystemExit(run_command(main))
