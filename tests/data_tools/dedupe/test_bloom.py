"""The Bloom filter: its error rate, and runs that look into those of earlier ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.dedupe import bloom
from data_tools.dedupe.bloom import Filter, FilterPart, Header, Shape, part_path, write_header
from data_tools.dedupe.command import main
from olmo_train.errors import ShardError
from tests.data_tools.dedupe.corpora import contents, corpus, run
from tests.data_tools.dedupe.test_paragraph import brute, told
from tests.data_tools.texts import refusal


def random_keys(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hi, lo = rng.integers(0, 2**64, (2, n), np.uint64)
    return np.sort(hi), lo


def build(folder: Path, shape: Shape, keys: tuple[np.ndarray, np.ndarray], rate: float) -> Filter:
    folder.mkdir()
    shift = np.uint64(64 - shape.part_bits)
    for number in range(1 << shape.part_bits):
        mine = keys[0] >> shift == number if shape.part_bits else np.ones(len(keys[0]), bool)
        part = FilterPart(shape)
        part.add(keys[0][mine], keys[1][mine])
        part.write(part_path(folder, number))
    write_header(folder, Header(shape, "\n", 0, len(keys[0]), rate, len(keys[0])))
    return Filter(folder)


@pytest.mark.parametrize(("rate", "most_bits"), [(0.1, 2**25), (1e-2, 2**25), (1e-2, 2**16), (1e-3, 2**17)])
def test_the_error_rate_is_the_stated_one(tmp_path: Path, rate: float, most_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloom, "MOST_BITS", most_bits)
    held, others = random_keys(1, 50_000), random_keys(2, 400_000)
    shape = Shape.of(50_000, rate)
    assert (shape.part_bits > 0) is (most_bits < 2**20)
    filter = build(tmp_path / "f", shape, held, rate)
    assert filter.holds(*held).all()
    measured = filter.holds(*others).mean()
    assert 0.6 * rate < measured < 1.1 * rate


def test_a_filter_takes_what_the_formula_says() -> None:
    shape = Shape.of(10**9, 1e-6)
    assert shape.hashes == 20
    assert 28.7e9 < (shape.size << shape.part_bits) < 29.2e9
    assert shape.size <= bloom.MOST_BITS


WORDS = ["by=paragraph", "paragraph.exact=false", "paragraph.false_positive_rate=1e-9"]


def test_later_runs_find_what_earlier_ones_hold_and_a_repeated_one_the_same(tmp_path: Path) -> None:
    """Dolma flags every original when a run is repeated with its filter."""
    old, new = corpus(tmp_path / "old", 1), corpus(tmp_path / "new", 2)
    run(old, *WORDS)
    seen: set[str] = set()
    assert told(old) == brute(old, "\n", 0, [], seen)
    folder = old[0] / "stages/dedupe-x/filter"
    assert Filter(folder).header.paragraphs == len(seen)
    before = contents([folder])
    only_new = brute(new, "\n", 0, [], set())
    expected = brute(new, "\n", 0, [], seen)
    assert only_new != expected
    for name in ("x", "again"):
        run(new, *WORDS, f"paragraph.seen=[{folder}]", name=name)
        assert told(new, name) == expected
    assert contents([folder]) == before
    third = new[0] / "stages/dedupe-x/filter"
    assert Filter(third).header.paragraphs == len(seen) - Filter(folder).header.paragraphs


def test_the_documents_a_filter_is_of_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = corpus(tmp_path, 1, 5)
    run(one, *WORDS)
    folder = one[0] / "stages/dedupe-x/filter"
    argv = [f"documents=[{one[1]}]", "name=y", *WORDS, f"paragraph.seen=[{folder}]"]
    assert refusal(main, argv, capsys) == (
        f"paragraph.seen={folder} holds the paragraphs of {one[1]}/documents/a.jsonl.gz: all would be duplicates of themselves; "
        "leave out one of the two"
    )


def test_more_paragraphs_than_a_filter_is_made_for_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = corpus(tmp_path, 1, 5)
    n = set[str]()
    brute(datasets, "\n", 0, [], n)
    argv = [f"documents=[{datasets[0]},{datasets[1]}]", "name=x", *WORDS, "paragraph.expected=7", "processes=1"]
    folder = datasets[0] / "stages/dedupe-x"
    assert refusal(main, argv, capsys) == (
        f"paragraph.expected=7, but there are {len(n)} different paragraphs: more of others than 1e-09 would be taken for "
        f"held; remove {folder} and give more, or null"
    )
    assert not (folder / "filter/filter.json").exists()


def test_filters_that_cannot_be_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filter = build(tmp_path / "f", Shape.of(100, 0.1), random_keys(1, 100), 0.1)
    size = filter.header.shape.size // 8
    words = ["documents=[x]", "name=x", "by=paragraph", f"paragraph.seen=[{filter.folder}]"]
    assert (
        refusal(main, words, capsys)
        == f"paragraph.seen=['{filter.folder}'] needs paragraph.exact=false; give that, or leave seen out"
    )
    words.append("paragraph.exact=false")
    assert refusal(main, [*words, "paragraph.min_words=3"], capsys) == (
        f"paragraph.seen={filter.folder} was made with separator='\\n', min_words=0, not '\\n', 3; give the same"
    )
    path = filter.folder / "filter.json"
    values = json.loads(path.read_text())
    for text, told_of in (
        (json.dumps({**values, "version": 9}), "version=9 is not 1; run the stage that wrote it again"),
        ("{", "cannot be read: Expecting"),
    ):
        path.write_text(text)
        assert f"paragraph.seen={filter.folder}: {path}: {told_of}" in refusal(main, words, capsys)
    path.unlink()
    assert refusal(main, words, capsys) == (
        f"paragraph.seen={filter.folder}: {path} does not exist; give <dataset>/stages/dedupe-<name>/filter of a finished run with "
        "paragraph.exact=false"
    )
    part_path(filter.folder, 0).write_bytes(b"short")
    with pytest.raises(ShardError) as caught:
        filter.holds(*random_keys(1, 5))
    assert str(caught.value) == (f"{part_path(filter.folder, 0)}: 5 bytes, should be {size}; run the stage that wrote it again")
