"""`olmo trace index shards=shards/demo`: suffix arrays over token shards, in independent parts.

Each part is written whole or not at all; parts that are there are not built again, so an interrupted build goes on, and the tasks of
a job array each build their share. Whoever finds every part there writes `index.json`.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from data_tools.trace.codes import choose_ranks, make_codes
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import (
    SPLITS,
    IndexManifest,
    PartRange,
    PartRecord,
    part_path,
    read_part_record,
    top_dtype,
    write_index_manifest,
    write_part_record,
)
from data_tools.trace.suffixes import sort_suffixes
from olmo_train.data.manifest import manifest_path
from olmo_train.data.shards import Corpus
from olmo_train.errors import run_command
from olmo_train.files import write_atomic
from olmo_train.schema import load_config


def main(argv: list[str]) -> None:
    """Build an index and say what it holds."""
    config = load_config("trace_index", IndexConfig, argv)
    folder = build(config)
    print(f"{folder}: index")


def index_folder_of(shards: str | Path) -> Path:
    """Where the index of a manifest lies unless told otherwise."""
    return manifest_path(shards).parent / "trace"


def build(config: IndexConfig) -> Path:
    """Build every part that is not there, then the manifest."""
    corpus = Corpus(config.shards)
    folder = Path(config.output) if config.output is not None else index_folder_of(config.shards)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = _ranks(corpus, folder)
    parts = plan_parts(corpus, config.max_tokens_per_part)
    for part in parts:
        if read_part_record(folder, part.number) is None:
            _build_part(corpus, part, folder, ranks)
    records = [record for part in parts if (record := read_part_record(folder, part.number)) is not None]
    unigrams = sum(
        (np.fromfile(part_path(folder, r.number, "unigrams.idx"), "<i8") for r in records), np.zeros(len(ranks), np.int64)
    )
    write_atomic(folder / "unigrams.idx", unigrams.astype("<i8").tobytes())
    sums = {name: _sha256(folder / name) for name in ("ranks.idx", "unigrams.idx")}
    shards = os.path.relpath(corpus.folder.absolute(), folder.absolute())
    manifest = IndexManifest(shards, corpus.manifest.fingerprint(), corpus.manifest.vocab_size, records, sums)
    write_index_manifest(folder, manifest)
    return folder


def plan_parts(corpus: Corpus, max_tokens: int) -> list[PartRange]:
    """Whole documents of each file, about equally many tokens in each of its parts; a longer document is a part alone."""
    parts: list[PartRange] = []
    for number, file in enumerate(corpus.files):
        starts, n = np.asarray(file.index.starts, np.int64), file.entry.tokens
        wanted = -(-n // max(1, -(-n // max_tokens))) if n else 0
        first = 0
        while first < n:
            last = int(starts[np.searchsorted(starts, first + wanted, side="right") - 1])
            if last <= first:
                last = int(starts[np.searchsorted(starts, first, side="right")])
            parts.append(PartRange(len(parts), number, first, last))
            first = last
    return parts


def _ranks(corpus: Corpus, folder: Path) -> np.ndarray:
    path = folder / "ranks.idx"
    if not path.exists():
        counts = np.zeros(corpus.manifest.vocab_size, np.int64)
        for file in corpus.files:
            counts += np.bincount(file.read(0, min(file.entry.tokens, 2**20)), minlength=len(counts))
        write_atomic(path, choose_ranks(counts).astype("<u4").tobytes())
    return np.fromfile(path, "<u4")


def _build_part(corpus: Corpus, part: PartRange, folder: Path, ranks: np.ndarray) -> None:
    file = corpus.files[part.file]
    tokens = file.read(part.start, part.end)
    documents = file.index.documents_between(part.start, part.end)
    ends = np.asarray(file.index.starts[documents.start + 1 : documents.stop + 1], np.int64) - part.start
    heldout = np.array([file.index.train_position(int(file.index.starts[d])) is None for d in documents], np.bool_)
    counts = np.bincount(tokens, minlength=len(ranks))
    by_rank = np.empty(len(ranks), np.int64)
    by_rank[ranks.astype(np.int64) - 1] = counts
    codes = make_codes(ranks, by_rank)
    sums = {}
    sizes = []
    dtype = top_dtype(len(ranks))
    for split, suffixes in zip(SPLITS, sort_suffixes(tokens, ends, heldout, codes), strict=True):
        sizes.append(len(suffixes.sa))
        for what, array in (("sa", suffixes.sa.astype("<u4")), ("top", suffixes.top.astype(dtype))):
            path = part_path(folder, part.number, f"{split}.{what}")
            write_atomic(path, np.ascontiguousarray(array).tobytes())
            sums[f"{split}.{what}"] = _sha256(path)
    is_train = np.repeat(~heldout, np.diff(ends, prepend=0))
    path = part_path(folder, part.number, "unigrams.idx")
    write_atomic(path, np.bincount(tokens[is_train], minlength=len(ranks)).astype("<i8").tobytes())
    sums["unigrams.idx"] = _sha256(path)
    eos = corpus.manifest.eos_id
    separated = eos is not None and bool((tokens[ends - 1] == eos).all())
    record = PartRecord(part.number, part.file, part.start, part.end, sizes[0], sizes[1], separated, sums)
    write_part_record(folder, record)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
