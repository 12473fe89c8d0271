"""Codes of ids: byte strings in the order of ranks, none of which begins another, and the short ones for frequent ids."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_tools.trace.codes import choose_ranks, make_codes, sample_counts
from olmo_train.data.shards import Corpus
from tests.data_tools.trace.indexes import EOS, Kind, write_shards


def strings(codes: np.ndarray) -> list[bytes]:
    return [int(code).to_bytes(4, "little")[: int(code) >> 24] for code in codes]


@pytest.mark.parametrize("n", [1, 2, 254, 255, 256, 257, 300, 5000, 65_536, 70_000, 100_000, 4 * 65_536 + 3])
def test_codes_are_in_the_order_of_ranks_and_none_begins_another(n: int) -> None:
    rng = np.random.default_rng(n)
    counts = rng.zipf(1.3, n)
    ranks = choose_ranks(rng.permutation(counts))
    for weights in (None, counts):
        codes = strings(make_codes(ranks, weights)[np.argsort(ranks)])
        assert len({len(code) for code in codes} - {1, 2, 3}) == 0
        for a, b in itertools.pairwise(codes):
            assert a < b
            assert not b.startswith(a)  # with the order: no code begins any other
        assert all(code[0] for code in codes)  # byte 0 ends documents


def test_codes_take_the_fewest_bytes_of_all_splits() -> None:
    rng = np.random.default_rng(0)
    for n in (200, 300, 2000, 20_000, 70_000):
        counts = np.sort(rng.zipf(1.2, n).clip(max=10**6))[::-1]
        ours = int(counts @ (make_codes(choose_ranks(counts), counts) >> 24).astype(np.int64))
        fewest = min(
            counts[:singles].sum()
            + 2 * counts[singles : singles + 256 * doubles].sum()
            + 3 * counts[singles + 256 * doubles :].sum()
            for doubles in range(256)
            for triples in range(3)
            if (singles := 255 - doubles - triples) >= 0 and singles + 256 * doubles + 65536 * triples >= n
        )
        assert ours == fewest


def test_ranks_go_from_the_most_frequent_on_and_equal_counts_by_id() -> None:
    assert choose_ranks(np.array([5, 9, 5, 0, 9])).tolist() == [3, 1, 4, 5, 2]


def test_a_small_corpus_is_counted_whole(tmp_path: Path) -> None:
    documents = [[1 + n % 7] * (n % 5) for n in range(3000)]
    corpus = Corpus(write_shards(tmp_path / "x", documents, Kind(max_tokens_per_file=1500)))
    assert len(corpus.files) > 3
    found = sample_counts(corpus)
    assert found.tolist() == np.bincount([t for d in documents for t in [*d, EOS]], minlength=50).tolist()


def test_a_large_corpus_is_sampled_within_the_budget_from_all_over(tmp_path: Path) -> None:
    documents = [[1 + n // 100] * 999 for n in range(400)]
    corpus = Corpus(write_shards(tmp_path / "x", documents, Kind(max_tokens_per_file=150_000)))
    found = sample_counts(corpus, budget=2**17)
    assert 2**16 < found.sum() <= 2**17
    assert (found[1:5] > 0).all()
    assert np.array_equal(found, sample_counts(corpus, budget=2**17))
