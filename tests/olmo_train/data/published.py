"""Shards as others publish them, for tests."""

import csv
import gzip
from pathlib import Path

import numpy as np

from olmo_train.data.describe import DescribeOptions, describe_shards
from olmo_train.data.shards import Corpus
from tests.corpora import EOS, VOCAB, document_ids


def dolma_shard(folder: Path, name: str = "part-0-00000", dtype: str = "uint16", n: int = 40) -> list[np.ndarray]:
    """Write one shard exactly as `dolma tokens` does: a headerless memmap and a `.csv.gz` without header."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    documents = [document_ids(rng, 50) for _ in range(n)]
    tokens = np.concatenate(documents)
    memmap = np.memmap(folder / f"{name}.npy", dtype=dtype, mode="w+", shape=tokens.shape)
    memmap[:] = tokens
    memmap.flush()
    with gzip.open(folder / f"{name}.csv.gz", "wt", newline="") as file:
        writer, start = csv.writer(file), 0
        for i, ids in enumerate(documents):
            writer.writerow((start, start + len(ids), f'doc "{i}", of\nit', "s3://bucket/x.jsonl.gz", i + 1))
            start += len(ids)
    return documents


def describe(folder: Path, out: Path, **options: object) -> Corpus:
    values = {"dtype": "uint16", "vocab_size": VOCAB, "eos_id": EOS, **options}
    describe_shards({"web": [str(folder / "*.npy")]}, out, DescribeOptions(**values))  # type: ignore[arg-type]
    return Corpus(out)
