"""What a searcher answers, against looking everywhere."""

import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest

from data_tools.trace.searcher import Ranges, Searcher
from olmo_train.errors import ConfigError, ShardError
from tests.data_tools.trace.brute import Brute, BruteSpec, named

SPECS = {
    "uint8": BruteSpec(dtype="uint8"),
    "uint16, two ids": BruteSpec(vocab=3, seed=1),
    "uint16, one part": BruteSpec(seed=2, max_tokens_per_file=10**6, max_tokens_per_part=10**6),
    "uint32, rare ids": BruteSpec(vocab=70_000, dtype="uint32", seed=3),
    "not separated": BruteSpec(ends_in_eos=False, seed=4),
    "not separated, two ids": BruteSpec(vocab=3, ends_in_eos=False, seed=5, max_tokens_per_part=10**6),
    "long": BruteSpec(vocab=3, n_documents=60, max_length=300, max_tokens_per_file=10**6, max_tokens_per_part=10**6, seed=6),
}  # fmt: skip
N = 300


@pytest.fixture(scope="module", params=SPECS.values(), ids=SPECS.keys())
def brute(request, tmp_path_factory):
    spec = request.param
    return Brute(tmp_path_factory.mktemp("brute"), spec)


def check(searcher, brute, number=N):
    for query in brute.queries(number):
        for split in ("train", "heldout"):
            places = brute.places(query, split)
            ranges = searcher.find(query, split)
            assert ranges.count == searcher.count(query, split) == len(places), query
            assert sorted(named(searcher, place) for place in searcher.places(ranges)) == places, query
            drawn = [named(searcher, place) for place in searcher.places(ranges, 3, seed=7)]
            assert len(set(drawn)) == len(drawn) == min(3, len(places))
            assert set(drawn) <= set(places)


def check_longest(searcher, brute, number=N // 3):
    for _ in range(number // 3):
        text = brute.text(3)
        for split in ("train", "heldout"):
            assert searcher.longest(text, split).tolist() == brute.longest(text, split), text


def test_counts_and_places_are_those_of_a_search_everywhere(brute):
    check(Searcher([brute.index]), brute)


def test_longest_lengths_are_those_of_a_search_everywhere(brute):
    check_longest(Searcher([brute.index]), brute)


def test_many_queries_at_once_are_answered_as_one_by_one(brute):
    searcher = Searcher([brute.index])
    queries = brute.queries(50)
    together = searcher.find_all(queries)
    for query, ranges in zip(queries, together, strict=True):
        alone = searcher.find(query)
        assert np.array_equal(ranges.ranges_P2, alone.ranges_P2)
        assert ranges.ids.tolist() == query
    assert searcher.find_all([]) == []


def test_unigrams_and_tokens_are_those_of_training_documents(brute):
    searcher = Searcher([brute.index])
    counts = Counter(i for ids in brute.split("train").values() for i in ids)
    assert {i: n for i, n in enumerate(searcher.unigrams.tolist()) if n} == counts
    assert searcher.n_tokens == sum(counts.values())
    present = list(counts)
    assert np.allclose(np.exp(searcher.unigram_log_probs[present]), [counts[i] / searcher.n_tokens for i in present])


def test_the_table_is_used_and_found_right_with_thousands_of_suffixes(brute):
    # STRIDE suffixes make a row: only the long corpus has many.
    searcher = Searcher([brute.index])
    if brute.spec.max_length == 300:
        assert len(searcher.parts[0].top["train"]) > 10
        repeats = [[1] * n for n in range(1, 40)] + [[1, 2] * n for n in range(1, 20)]
        for query in repeats:
            assert searcher.count(query) == len(brute.places(query))


def test_lengths_are_given_for_the_starts_that_are_asked_for_alone(brute):
    searcher = Searcher([brute.index])
    text = brute.text(5)
    starts = list(range(0, len(text), 3))
    whole, some = searcher.longest(text), searcher.longest(text, starts=starts)
    assert some[starts].tolist() == whole[starts].tolist()
    assert not np.delete(some, starts).any()


def test_end_of_text_and_ids_beyond_the_vocabulary_match_nothing(brute):
    searcher = Searcher([brute.index])
    ids = next(ids for ids in brute.split("train").values() if len(ids) > 3)
    assert searcher.count(ids[:2]) > 0
    for wrong in (0, -1, brute.spec.vocab, 2**31, 2**40):
        assert searcher.count([wrong]) == searcher.count([*ids[:2], wrong]) == searcher.count([wrong, *ids[:2]]) == 0
        assert searcher.longest([*ids[:2], wrong]).tolist() == [2, 1, 0]


def test_indexes_with_other_orders_of_ids_are_searched_together(tmp_path):
    brutes = [Brute(tmp_path / str(seed), BruteSpec(vocab=5, seed=seed)) for seed in (10, 11)]
    searcher = Searcher([brute.index for brute in brutes])
    assert not np.array_equal(searcher.indexes[0].rank_V, searcher.indexes[1].rank_V)
    for query in brutes[0].queries(N):
        assert searcher.count(query) == sum(len(brute.places(query)) for brute in brutes)
        both = np.max([brute.longest(query) for brute in brutes], axis=0)
        assert searcher.longest(query).tolist() == both.tolist()
    found = searcher.places(searcher.find([1, 2]))
    assert {place.corpus for place in found} == {0, 1}
    assert searcher.n_tokens == sum(len(ids) for brute in brutes for ids in brute.split("train").values())


def test_a_draw_of_places_is_the_same_with_the_same_seed_and_reaches_all(brute):
    searcher = Searcher([brute.index])
    query = [next(ids for ids in brute.split("train").values() if len(ids) > 3)[0]]
    ranges = searcher.find(query)
    assert searcher.places(ranges, 2, seed=1) == searcher.places(ranges, 2, seed=1)
    seen = {named(searcher, place) for seed in range(60) for place in searcher.places(ranges, 5, seed=seed)}
    if ranges.count <= 20:
        assert seen == set(brute.places(query))


def test_many_threads_get_the_answers_of_one(brute, monkeypatch):
    monkeypatch.setattr("data_tools.trace.searcher.SEARCHES_FOR_THREADS", 0)
    searcher = Searcher([brute.index])
    check(searcher, brute, 30)
    check_longest(searcher, brute, 30)


# ---- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A corpus with an index that may be damaged."""
    return Brute(tmp_path / "copy", BruteSpec())


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_no_index_is_refused():
    with pytest.raises(ConfigError, match="indexes is empty; build an index with `olmo trace index shards=FOLDER`"):
        Searcher([])


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(ShardError, match=r"index.json does not exist; build an index"):
        Searcher([tmp_path])


def test_no_tokens_are_refused(copy):
    for ask in (lambda s: s.find([]), lambda s: s.count([]), lambda s: s.find_all([[1], []])):
        with pytest.raises(ConfigError, match="ids is empty: no tokens stand everywhere; give at least one id"):
            ask(Searcher([copy.index]))


def test_vocabularies_that_differ_are_refused(tmp_path):
    folders = [Brute(tmp_path / str(vocab), BruteSpec(vocab=vocab)).index for vocab in (5, 6, 7)]
    with pytest.raises(ConfigError) as error:
        Searcher(folders)
    assert len(error.value.problems) == 2
    assert f"{folders[1]} has a vocabulary of 6, {folders[0]} of 5; indexes that are searched together must be of one" in str(
        error.value
    )


def test_tokenizers_that_differ_are_refused_and_indexes_without_one_go_with_any(tmp_path):
    names = {"a": "{}", "b": "{ }", "none": None}
    folders = {}
    for name, content in names.items():
        if content is not None:
            (tmp_path / f"{name}.json").write_text(content)
        path = None if content is None else str(tmp_path / f"{name}.json")
        folders[name] = Brute(tmp_path / name, BruteSpec(tokenizer=path)).index
    with pytest.raises(
        ConfigError, match=r"indexes: .*b/shards/trace has the tokenizer .*\.\.\., .*a/shards/trace .* one tokenizer"
    ):
        Searcher([folders["a"], folders["none"], folders["b"]])
    assert Searcher([folders["a"], folders["none"]]).count([1]) > 0


def test_shards_without_a_tokenizer_are_asked_by_ids(copy):
    with pytest.raises(ConfigError, match="no manifest names a tokenizer; ask by ids, or write one into the manifest"):
        _ = Searcher([copy.index]).tokenizer


@pytest.mark.parametrize("what", ["sa", "top", "npy"])
def test_a_flipped_byte_is_found_by_verifying(copy, what):
    searcher = Searcher([copy.index])
    path = searcher.corpora[0].files[0].path if what == "npy" else copy.index / f"part-00000.train.{what}"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    Searcher([copy.index], verify="size")
    with pytest.raises(ShardError, match=path.name):
        Searcher([copy.index], verify="full")


def test_shards_that_were_changed_are_refused(copy):
    manifest = copy.folder / "shards" / "manifest.json"
    other = Brute(copy.folder / "other", BruteSpec(seed=9))
    shutil.copyfile(other.folder / "shards" / "manifest.json", manifest)
    with pytest.raises(ShardError, match="the index is of the shards with fingerprint .* the shards were changed or exchanged"):
        Searcher([copy.index])


@pytest.mark.parametrize("what", ["part-00000.train.sa", "part-00000.train.top", "part-00000.heldout.sa", "ranks.idx"])
def test_a_file_of_the_index_that_is_missing_or_short_is_refused(copy, what):
    path = copy.index / what
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ShardError, match=what):
        Searcher([copy.index])
    path.unlink()
    with pytest.raises(ShardError, match=what):
        Searcher([copy.index])


def test_a_token_file_that_is_missing_or_short_is_refused(copy):
    path = Searcher([copy.index]).corpora[0].files[0].path
    os.truncate(path, 10)
    with pytest.raises(ShardError, match="10 bytes, the manifest says .* the file was truncated or exchanged"):
        Searcher([copy.index])
    path.unlink()
    with pytest.raises(ShardError, match="No such file or directory; the manifest lists it"):
        Searcher([copy.index])


def test_a_token_file_that_shrinks_while_it_is_open_is_an_error_of_its_places(copy):
    searcher = Searcher([copy.index])
    query = next(ids for ids in copy.split("train").values() if len(ids) > 3)[:2]
    ranges = searcher.find(query)
    for file in searcher.corpora[0].files:
        os.truncate(file.path, 0)
    with pytest.raises(ShardError, match="the file was truncated; copy it again"):
        searcher.places(ranges)


def test_a_place_where_other_tokens_stand_is_an_error_that_names_part_and_file(copy):
    searcher = Searcher([copy.index])
    query = next(ids for ids in copy.split("train").values() if len(ids) > 3)[:2]
    right = searcher.find(query)
    wrong = Ranges("train", right.ranges_P2, np.array([i + 1 for i in query]))
    with pytest.raises(ShardError, match=r"part \d+ says .* stand at token \d+ of .*npy, but others do: .* `olmo trace verify`"):
        searcher.places(wrong)


@pytest.mark.parametrize("value", [0, 77, 2**32 - 1])
@pytest.mark.parametrize("ends_in_eos", [True, False])
def test_a_damaged_suffix_array_gives_no_wrong_place_and_no_crash(tmp_path, value, ends_in_eos):
    brute = Brute(tmp_path, BruteSpec(ends_in_eos=ends_in_eos))
    for path in brute.index.glob("*.sa"):
        np.full(path.stat().st_size // 4, value, "<u4").tofile(path)
    searcher = Searcher([brute.index], verify="size")
    for query in brute.queries(100):
        searcher.longest(query)
        ranges = searcher.find(query)
        try:
            found = [named(searcher, place) for place in searcher.places(ranges)]
        except ShardError:
            continue
        # Only a place that was read and is right may be given out (the damage names it many times).
        assert set(found) <= set(brute.places(query)) | set(brute.places(query, "heldout"))


def test_tokens_beyond_the_vocabulary_are_passed_over_without_a_crash(copy):
    searcher = Searcher([copy.index], verify="size")
    for file in searcher.corpora[0].files:
        np.full(file.entry.tokens, 65_535, "<u2").tofile(file.path)
    for query in copy.queries(100):
        searcher.count(query)
        searcher.longest(query)
