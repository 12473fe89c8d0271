import json
import shutil
from pathlib import Path

import pytest

from data_tools.trace.find import Limits, find_places, main, say_sights
from data_tools.trace.opening import Trace
from data_tools.trace.questions import Asked
from tests.data_tools.texts import refusal
from tests.data_tools.trace.small_corpora import SHAPES, queries, small_corpus
from tests.data_tools.trace.traced import COPIED, EDGE, HOSTILE, PERSONAL, PLANTED, SECRET, Traced, brute_sights, opened, place_of


@pytest.fixture
def trace(traced: Traced) -> Trace:
    return opened(traced.run)


def ask(trace: Trace, text: str) -> Asked:
    return Asked(text, trace.searcher.tokenizer.encode_batch([text])[0])


@pytest.mark.parametrize("name", SHAPES)
def test_places_are_those_of_brute_force(name: str) -> None:
    corpus = small_corpus(name)
    trace = opened(corpus.shards)
    for ids in queries(corpus, 30):
        for split in ("train", "heldout"):
            there = corpus.occurrences(ids, heldout=split == "heldout")
            found = find_places(trace, Asked(None, ids), Limits(10**6, 0, 0, split))
            assert sorted((p.id, p.document_offset) for p in found.places) == sorted(there)
            some = find_places(trace, Asked(None, ids), Limits(3, 0, 1, split))
            assert (some.count, len(some.places)) == (len(there), min(3, len(there)))
            assert {(p.id, p.document_offset) for p in some.places} <= set(there)


def test_a_place_has_its_document_its_text_and_the_steps_that_saw_it(trace: Trace) -> None:
    found = find_places(trace, ask(trace, f" {PLANTED}"), Limits(context=5))
    (place,) = found.places
    assert place.id.startswith("planted/")
    assert (place.source, Path(place.src).name, place.match) == ("planted", "documents.jsonl", f" {PLANTED}")
    assert place.before
    assert place.after
    where, n = place_of(trace, PLANTED)
    assert place.place == where
    assert trace.history is not None
    assert place.sighted is not None
    assert [s.step for s in place.sighted.sights] == [row[0] for row in brute_sights(trace.history, where, n)]


def test_copies_are_places_each(trace: Trace) -> None:
    found = find_places(trace, ask(trace, f" {COPIED}"))
    assert sorted(p.id.split("/")[0] for p in found.places) == ["copy-a", "copy-b", "copy-c"]


def test_the_text_around_a_place_ends_with_its_document(trace: Trace) -> None:
    (place,) = find_places(trace, ask(trace, EDGE), Limits(context=1000)).places
    assert (place.before, place.match, place.after) == ("", EDGE, "")


def test_personal_data_is_redacted_even_across_the_edge_of_the_span(trace: Trace) -> None:
    found = find_places(trace, ask(trace, f"{PERSONAL} jane"), Limits(context=40))
    (place,) = found.places
    assert place.match is not None
    assert place.after is not None
    assert "jane" not in place.match + place.after
    assert "[email]" in place.match + place.after


def test_personal_data_is_redacted_even_across_the_edge_of_what_is_shown(trace: Trace) -> None:
    for context in range(1, 12):
        (place,) = find_places(trace, ask(trace, PERSONAL), Limits(context=context)).places
        assert "jane" not in (place.after or "")


def test_the_other_form_of_a_text_is_counted_beside(traced: Traced, trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_places(trace, ask(trace, PLANTED)).spaced_count == 1
    assert find_places(trace, ask(trace, f" {PLANTED}")).spaced_count is None
    main([str(traced.run), "--text", PLANTED])
    assert "with a space before it: 1 times (--text ' ...')" in capsys.readouterr().out


def test_blocked_documents_are_not_found(traced: Traced, trace: Trace, tmp_path: Path) -> None:
    (place,) = find_places(trace, ask(trace, f" {PLANTED}")).places
    (tmp_path / "blocked").write_text(place.id + "\n")
    without = opened(traced.run, f"privacy.blocked=['{tmp_path / 'blocked'}']")
    found = find_places(without, ask(without, f" {PLANTED}"))
    assert (found.count, found.places) == (0, [])


def test_the_command_prints_places_and_steps(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.run), "--text", f" {PLANTED}", "--context", "3"])
    first, document, text, seen = capsys.readouterr().out.splitlines()
    assert first == f'" {PLANTED}": 1 times'
    assert "documents.jsonl line " in document
    assert f"[ {PLANTED}]" in text
    assert seen.startswith("    seen at step ")
    main([str(traced.shards), "--text", " fox", "--limit", "2", "--json", "-"])
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["places"]) == 2 < found["count"]
    assert found["places"][0]["sighted"] is None


def test_nothing_that_a_terminal_would_obey_is_printed(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.shards), "--text", HOSTILE, "--context", "60"])
    lines = capsys.readouterr().out.splitlines()
    assert "<script>" in lines[2]
    assert all(line.isprintable() for line in lines)


def test_what_the_reader_must_know_of_a_run_is_noted(traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(traced.run, tmp_path / "run"))
    (run / "data.jsonl").unlink()
    main([str(run), "--text", f" {PLANTED}"])
    assert capsys.readouterr().err.startswith("note: ")


def test_held_out_places_are_found_when_asked_for(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(traced.run), "--text", f" {SECRET}"])
    assert capsys.readouterr().out == f'" {SECRET}": 0 times\n'
    main([str(traced.run), "--text", f" {SECRET}", "--heldout"])
    assert "held out: no step sees it" in capsys.readouterr().out


def test_sights_of_other_shards_and_of_the_future_are_said(traced: Traced) -> None:
    trace = opened(traced.run)
    place, n = place_of(trace, COPIED)
    assert trace.history is not None
    sighted = trace.history.sighted(trace.searcher, place, n)
    assert say_sights(sighted).startswith("seen at step ")
    assert say_sights(type(sighted)(place, True, False, [])) == "no step of the run sees it"
    assert say_sights(type(sighted)(place, False, False, [])) == "the run does not train on these shards"
    many = say_sights(type(sighted)(place, True, False, sighted.sights[:1] * 11))
    assert many.endswith(" and 3 more")


BAD = (
    (["--limit", "0"], "--limit=0 must be positive"),
    (["--seed=-1"], "--seed=-1 must not be negative"),
    (["--context=-1"], "--context=-1 must not be negative"),
)


@pytest.mark.parametrize("words, message", BAD, ids=[message for _, message in BAD])
def test_limits_that_cannot_be_are_told(
    words: list[str], message: str, traced: Traced, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(main, [str(traced.shards), "--text", "a", *words], capsys) == message
