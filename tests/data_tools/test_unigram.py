"""Unigram counts against plain counting, and entropy against its definition."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_tools import unigram
from data_tools.unigram import entropy, unigram_counts
from olmo_train.data.shards import Corpus
from tests.corpora import VOCAB, Spec, write_corpus


def plain_counts(folder: Path, per_file: int | None = None) -> list[int]:
    counts: Counter[int] = Counter()
    for path in sorted(folder.glob("*/part-*.npy")):
        counts.update(np.fromfile(path, "<u2")[:per_file].tolist())
    return [counts[i] for i in range(VOCAB)]


def test_every_token_is_counted_once(shards: Path) -> None:
    counts = unigram_counts(Corpus(shards))
    assert counts.dtype == np.int64
    assert counts.tolist() == plain_counts(shards)
    assert counts.sum() == sum(entry.tokens for entry in Corpus(shards).manifest.files)


def test_reading_in_chunks_changes_nothing(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "CHUNK", 1000)
    assert unigram_counts(Corpus(shards)).tolist() == plain_counts(shards)


def test_a_limit_takes_the_front_of_each_file(shards: Path) -> None:
    corpus = Corpus(shards)
    n = len(corpus.files)
    assert n > 1
    assert unigram_counts(corpus, 100 * n).tolist() == plain_counts(shards, 100)
    assert unigram_counts(corpus, 1).sum() == n  # one of each at least
    assert unigram_counts(corpus, 10**9).tolist() == plain_counts(shards)


def test_ids_that_never_stand_in_the_corpus_count_zero(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", Spec(n_documents=1, max_length=4))
    counts = unigram_counts(Corpus(tmp_path / "one"))
    assert len(counts) == VOCAB
    assert (counts == 0).sum() >= VOCAB - 5


def test_entropy_is_that_of_the_definition(shards: Path) -> None:
    counts = plain_counts(shards)
    total = sum(counts)
    assert entropy(np.array(counts)) == pytest.approx(-sum(c / total * math.log(c / total) for c in counts if c), rel=1e-12)


def test_entropy_of_what_is_known_by_heart() -> None:
    assert entropy(np.array([5, 0, 0])) == 0.0
    assert entropy(np.full(64, 3)) == pytest.approx(math.log(64))
    assert entropy(np.array([1, 1, 2])) == pytest.approx(1.5 * math.log(2))
