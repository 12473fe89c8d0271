"""Samples, repeats and budgets: exact to one document, the same whatever files and processes, ids unique."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.mix import budget
from data_tools.mix.budget import find_threshold, key_of
from data_tools.mix.plan import Threshold
from data_tools.tokenize.encoder import Encoder
from olmo_train.errors import ShardError
from tests.data_tools.mix.corpus import Values, contents, documents_of, records_of, run, write_dataset
from tests.data_tools.texts import make_documents, write_lines


def corpus(folder: Path, n: int = 400, seed: int = 0, files: int = 3) -> Values:
    documents = make_documents(n, ("s",), seed)
    for i in range(files):
        write_lines(folder / f"{i}.jsonl", documents[i::files])
    return {"documents": [str(folder)]}


def ids_of(output: Path, source: str = "*") -> set[str]:
    return {document["id"] for document in documents_of(output, source)}


def size_of(documents: list[Values]) -> int:
    return sum(len(document["text"].encode()) for document in documents)


def test_a_threshold_takes_the_most_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(1)
    for bits in (64, 6):  # keys of their own; many documents of one key and in one bin
        keys = rng.integers(0, 2**bits, 200, np.uint64, endpoint=False)
        sizes = rng.integers(0, 1000, 200).astype(np.uint64)
        np.stack([keys, sizes, sizes], 1)[:90].tofile(tmp_path / "a")
        np.stack([keys, sizes, sizes], 1)[90:].tofile(tmp_path / "b")
        total = int(sizes.sum())
        for room in (0, 1, 999, total // 3, total - 1, total, total + 1, 2 * total + 500):
            found, there = find_threshold([tmp_path / "a", tmp_path / "b"], "bytes", room)
            assert there == total
            taken = found.passes * total + int(sizes[keys < found.rest].sum())
            assert taken <= room
            after = sizes[keys == keys[keys >= found.rest].min()].sum()
            assert room - taken < after  # the next one would not fit
    assert find_threshold([], "bytes", 5) == (Threshold(1, 0), 0)


@pytest.mark.parametrize(("field", "limit"), [("max_documents", 100), ("max_mb", 0.02), ("max_documents", 1000)])
def test_a_budget_is_met_to_within_one_document(tmp_path: Path, field: str, limit: float) -> None:
    source = corpus(tmp_path / "in")
    run(tmp_path / "out", {"w": {**source, field: limit}}, seed=3)
    taken, everything = documents_of(tmp_path / "out"), make_documents(400, ("s",))
    by_key = sorted(everything, key=lambda document: key_of(3, "w", document["id"]))
    expected: list[Values] = []
    for document in by_key:
        if (len(expected) + 1 if field == "max_documents" else size_of([*expected, document]) / 1e6) > limit:
            break
        expected.append(document)
    assert {document["id"] for document in expected} == {document["id"] for document in taken}
    assert len(taken) == len(expected)
    left_out = records_of(tmp_path / "out", "dropped")
    assert {line["id"] for line in left_out} == {document["id"] for document in everything} - {d["id"] for d in expected}
    assert all(line["reason"] == "sampled" and line["key"] >= line["repeat"] for line in left_out)


def test_samples_do_not_depend_on_files_or_processes(tmp_path: Path) -> None:
    one, other = corpus(tmp_path / "a"), corpus(tmp_path / "b", files=7)
    run(tmp_path / "one", {"w": {**one, "repeat": 0.3}})
    run(tmp_path / "other", {"w": {**other, "repeat": 0.3}}, processes=2)
    assert ids_of(tmp_path / "one") == ids_of(tmp_path / "other")
    assert 90 < len(ids_of(tmp_path / "one")) < 150
    run(tmp_path / "larger", {"w": {**one, "repeat": 0.5}})
    assert ids_of(tmp_path / "one") < ids_of(tmp_path / "larger")
    run(tmp_path / "seed", {"w": {**one, "repeat": 0.3}}, seed=1)
    assert ids_of(tmp_path / "one") != ids_of(tmp_path / "seed")


def test_copies_have_ids_of_their_own_and_say_of_which(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 100)
    summary = run(tmp_path / "out", {"w": {**source, "repeat": 2.5}})
    originals = {document["id"]: document for document in make_documents(100, ("s",))}
    written = documents_of(tmp_path / "out")
    assert len({document["id"] for document in written}) == len(written) == summary["totals"]["documents_out"]
    copies = [document for document in written if document["id"] not in originals]
    assert [len([d for d in copies if d["metadata"]["copy"] == n]) for n in (2, 3)] == [100, len(written) - 200]
    assert 30 < len(written) - 200 < 70
    for document in copies:
        original = document["metadata"]["copy_of"]
        assert document["id"] == f"{original}#copy{document['metadata']['copy']}"
        assert document["text"] == originals[original]["text"]
    assert summary["totals"]["repeat"] == {"w": 2.5}
    again = {"documents": [str(tmp_path / "out")], "repeat": 2}
    with pytest.raises(ShardError, match=r"lines are no documents \(duplicate_id "):
        run(tmp_path / "twice", {"w": again})
    assert records_of(tmp_path / "twice", "quarantine")[0]["detail"].endswith(
        "copies of copies would get ids twice: mix the originals"
    )


def test_weights_share_out_the_total_and_small_sources_are_repeated_or_told(tmp_path: Path) -> None:
    sources: dict[str, Any] = {
        "web": {**corpus(tmp_path / "web", 400), "weight": 7},
        "code": {**corpus(tmp_path / "code", 40, seed=5), "weight": 3},
    }
    size = size_of(make_documents(40, ("s",), 5))
    total = size * 2.5 / 0.3 / 1e6
    with pytest.raises(ShardError) as caught:
        run(tmp_path / "error", sources, total_mb=total)
    assert str(caught.value) == (
        f"sources.code: has {size:,} bytes after filters, but its weight asks for {round(size * 2.5):,}, 2.50 times as much; give "
        "when_small=upsample, which repeats its documents, a smaller total, or another weight"
    )
    with pytest.raises(ShardError, match=r"2.50 times as much, more than max_repeat=2.0; raise it, or give a smaller total or"):
        run(tmp_path / "most", sources, total_mb=total, when_small="upsample", max_repeat=2.0)
    summary = run(tmp_path / "out", sources, total_mb=total, when_small="upsample", processes=2)
    longest = 300
    for name, share in (("web", 0.7), ("code", 0.3)):
        assert 0 <= total * share * 1e6 - size_of(documents_of(tmp_path / "out", name)) < longest
    assert summary["totals"]["repeat"]["code"] > 2 > 1 > summary["totals"]["repeat"]["web"]
    run(tmp_path / "again", sources, total_mb=total, when_small="upsample")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_tokens_are_counted_by_the_tokenizer_as_redacted(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    rows: list[Values] = [{"x__p__w": [[0, 1, 1]], "x__length__tokens": [[0, 1, 10]]} for _ in range(120)]
    everything = make_documents(120)
    write_dataset(tmp_path / "in", {"all.jsonl": everything}, {"x": {"all.jsonl": rows}})
    source = {"documents": [str(tmp_path / "in")], "attributes": ["x"], "redact": {"w": {"spans": "p__w", "replacement": "<w>"}}}
    summary = run(tmp_path / "out", {"w": {**source, "max_tokens": 900}}, tokenizer=str(tokenizer))
    written = documents_of(tmp_path / "out")
    encoder = Encoder(tokenizer)
    tokens = sum(len(encoder.encode([document["text"]])[0]) + 1 for document in written)
    assert summary["totals"]["tokens_out"] == tokens == summary["totals"]["by_source"]["w"]["tokens"]
    assert 900 - 300 < tokens <= 900
    summary = run(tmp_path / "tagged", {"w": {**source, "max_tokens": 900, "tokens": "length__tokens"}})
    assert len(documents_of(tmp_path / "tagged")) == 90
    assert summary["totals"]["steps"]["w"]["read"]["tokens"] == 1200
    summary = run(tmp_path / "plain", {"w": source}, tokenizer=str(tokenizer))
    assert summary["totals"]["tokens_out"] == sum(len(encoder.encode(["<w>" + d["text"][1:]])[0]) + 1 for d in everything)


def test_lines_that_are_no_documents_count_once_though_they_are_read_twice(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 20, files=1)
    path = tmp_path / "in/0.jsonl"
    bad = '{"id": "x", "text": "y", "source": "s", "metadata": 7}\n'
    path.write_text(f"nonsense\n{path.read_text()}{bad}")
    summary = run(tmp_path / "out", {"w": {**source, "max_documents": 30, "repeat": 2}}, max_rejected_frac=0.5)
    assert (summary["lines"], summary["rejected"]) == (22, {"not_json": 1, "wrong_type": 1})
    assert [(line["line"], line["reason"]) for line in records_of(tmp_path / "out", "quarantine")] == [
        (1, "not_json"),
        (22, "wrong_type"),
    ]
    assert len(documents_of(tmp_path / "out")) == 30
    assert summary["totals"]["documents_in"] == 20
    assert not (tmp_path / "out/stages/mix/scratch").exists()
