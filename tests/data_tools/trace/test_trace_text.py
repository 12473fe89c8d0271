"""From a text to the answer, and the command `olmo trace text`."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from data_tools.trace.answer import Answer
from data_tools.trace.print_answer import answer_lines, marked_text, tell_sights, visible
from data_tools.trace.trace_text import main, trace_text
from tests.data_tools.texts import refusal
from tests.data_tools.trace.traced import (
    COPIED,
    EDGE,
    HIDDEN,
    HOSTILE,
    KEPT,
    LONG,
    PERSONAL,
    PLANTED,
    REPEATED,
    SECRET,
    Traced,
    brute_sights,
    id_that,
    opened,
)


def test_a_planted_document_is_found_with_its_steps(traced: Traced) -> None:
    trace = opened(traced.run)
    answer = trace_text(trace, f"He wrote: {PLANTED}, and left.")
    span = next(span for span in answer.spans if PLANTED in span.text)
    assert answer.text[span.char_start : span.char_end] == span.text == "".join(answer.tokens[span.start : span.end])
    assert (span.count, span.heldout_count) == (1, 0)
    (number,) = span.documents
    document = answer.documents[number]
    assert (document.id, document.source, document.copies) == (id_that(False, "planted"), "planted", [])
    lines = traced.documents.read_text().splitlines()
    assert json.loads(lines[document.line - 1])["id"] == document.id
    (snippet,) = [s for s in document.snippets if s.span == span.number]
    assert snippet.before + snippet.match + snippet.after == json.loads(lines[document.line - 1])["text"]
    assert snippet.sighted is not None
    assert trace.history is not None
    n = len(trace.searcher.tokenizer.encode(snippet.match))
    steps = [(s.step, s.row) for s in snippet.sighted.sights]
    assert steps == [sight[:2] for sight in brute_sights(trace.history, snippet.sighted.place, n)]
    assert answer.run == "first"


def test_copies_are_one_document_with_the_steps_of_all(traced: Traced) -> None:
    trace = opened(traced.run)
    answer = trace_text(trace, f"{COPIED}!")
    assert max(span.count for span in answer.spans) == 3
    (document,) = [d for d in answer.documents if any(COPIED in s.match for s in d.snippets)]
    assert {document.id, *document.copies} == {id_that(False, f"copy-{name}") for name in "abc"}
    snippet = next(s for s in document.snippets if COPIED in s.match)
    assert len(snippet.copies_sighted) == 2
    assert trace.history is not None
    n = len(trace.searcher.tokenizer.encode(snippet.match))
    for sighted in (snippet.sighted, *snippet.copies_sighted):
        assert sighted is not None
        assert [s.step for s in sighted.sights] == [s[0] for s in brute_sights(trace.history, sighted.place, n)]
    assert len({(s.place.file, s.place.offset) for s in (snippet.sighted, *snippet.copies_sighted) if s}) == 3


def test_held_out_documents_are_counted_and_not_shown(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), f"so: {SECRET}")
    assert not any(SECRET in span.text for span in answer.spans)
    assert id_that(True, "secret") not in {document.id for document in answer.documents}
    (shared,) = trace_text(opened(traced.run, "spans.max_spans=1"), f"so {KEPT}").spans
    assert (shared.text, shared.count, shared.heldout_count) == (f" {KEPT}", 2, 1)


def test_spans_are_by_place_and_documents_by_score(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), f"{EDGE}. {PLANTED}. {COPIED}. the lazy dogs jumps over", "about a library")
    assert [span.number for span in answer.spans] == list(range(len(answer.spans)))
    assert [span.start for span in answer.spans] == sorted(span.start for span in answer.spans)
    scores = [document.score for document in answer.documents]
    assert scores == sorted(scores, reverse=True)
    assert [document.number for document in answer.documents] == list(range(len(scores)))
    for span in answer.spans:
        assert span.documents == sorted(span.documents)
        for document in answer.documents:
            assert (document.number in span.documents) == any(s.span == span.number for s in document.snippets)


def test_the_prompt_counts_in_the_ranking(traced: Traced) -> None:
    trace = opened(traced.run, "documents.max_documents=1")
    text = f"{EDGE}. {PLANTED}."
    about_edge = trace_text(trace, text, " ".join([EDGE] * 5)).documents
    about_planted = trace_text(trace, text, " ".join([PLANTED] * 5)).documents
    assert [d.id for d in about_edge] == [id_that(False, "edge")]
    assert [d.id for d in about_planted] == [id_that(False, "planted")]


def test_personal_data_is_redacted_everywhere_it_is_shown(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), f"{PERSONAL} me")
    document = next(d for d in answer.documents if d.id == id_that(False, "personal"))
    told = json.dumps(asdict(document))
    for personal in ("jane", "example.org or", "123 4567", "192.0.2"):
        assert personal not in told
    assert document.url == "https://example.org/~[email]"
    assert document.metadata["metadata"] == {"url": "https://example.org/~[email]", "author": "[email]", "year": 2020}
    snippet = next(s for s in document.snippets if PERSONAL in s.match)
    assert snippet.after.startswith(" [email] or call [phone] from [ip] ")
    assert answer.redacted == {"email": 4, "phone": 1, "ip": 1}
    bare = trace_text(opened(traced.run, "privacy.redact=[]"), f"{PERSONAL} me")
    assert "jane.doe@example.org or call +31 20 123 4567 from 192.0.2.17" in bare.documents[document.number].snippets[0].after


@pytest.mark.parametrize("context", range(0, 60, 3))
def test_personal_data_is_found_where_the_context_cuts_it(traced: Traced, context: int) -> None:
    trace = opened(traced.run, f"documents.context={context}", "privacy.redact=[email]")
    answer = trace_text(trace, f"{PERSONAL} me")
    document = next(d for d in answer.documents if d.id == id_that(False, "personal"))
    after = next(s.after for s in document.snippets if PERSONAL in s.match)
    assert "jane" not in after
    assert "doe" not in after


def test_a_blocked_document_is_as_if_it_were_not_there(traced: Traced, tmp_path: Path) -> None:
    both, one = id_that(False, "both"), id_that(False, "one")
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("# none yet\n")
    trace = opened(traced.run, f"privacy.blocked=['{blocked}']")

    def spans() -> dict[str, tuple[int, set[str]]]:
        answer = trace_text(trace, f"so {KEPT}. ... {HIDDEN}.")
        return {s.text.strip(): (s.count, {answer.documents[d].id for d in s.documents}) for s in answer.spans}

    before = spans()
    assert before[KEPT] == (2, {both, one})
    assert before[HIDDEN] == (1, {both})
    blocked.write_text(f"{both}  # asked for on Monday\n")
    after = spans()
    assert after[KEPT] == (1, {one})
    assert HIDDEN not in after
    assert both not in json.dumps(asdict(trace_text(trace, f"so {KEPT}. ... {HIDDEN}.")))
    blocked.write_text("")
    assert spans() == before


def test_a_blocked_copy_is_not_named_among_the_copies(traced: Traced, tmp_path: Path) -> None:
    gone = id_that(False, "copy-b")
    blocked = tmp_path / "blocked.txt"
    blocked.write_text(f"{gone}\n")
    answer = trace_text(opened(traced.run, f"privacy.blocked=['{blocked}']"), COPIED)
    (document,) = [d for d in answer.documents if any(COPIED in s.match for s in d.snippets)]
    assert {document.id, *document.copies} == {id_that(False, "copy-a"), id_that(False, "copy-c")}


def test_the_list_in_the_index_always_counts(traced: Traced, tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    for path in (traced.shards / "trace").iterdir():
        (index / path.name).symlink_to(path)
    values = json.loads((index / "index.json").read_text())
    (index / "index.json").unlink()
    (index / "index.json").write_text(json.dumps({**values, "shards": str(traced.shards)}))
    trace = opened(index)
    assert any(PLANTED in span.text for span in trace_text(trace, PLANTED).spans)
    (index / "blocked.txt").write_text(id_that(False, "planted"))
    assert not any(PLANTED in span.text for span in trace_text(trace, PLANTED).spans)


def test_without_a_run_no_steps_are_told(traced: Traced) -> None:
    answer = trace_text(opened(traced.shards), PLANTED)
    assert answer.run is None
    assert {s.sighted for d in answer.documents for s in d.snippets} == {None}
    assert "step" not in "\n".join(answer_lines(answer))


def test_a_text_that_stands_nowhere_has_no_spans(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), "qzxv qzxv qzxv")
    assert (answer.spans, answer.documents) == ([], [])
    assert "no span of the text stands in training documents" in "\n".join(answer_lines(answer))


# ---- what is printed -----------------------------------------------------------------------------------------------------


def test_documents_cannot_steer_the_terminal(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), f"{HOSTILE} nothing")
    document = next(d for d in answer.documents if d.id == id_that(False, "hostile"))
    assert "<script>alert(1)</script> \x1b[31m \x00 \u202e <b>" in document.snippets[0].after
    printed = "\n".join(answer_lines(answer, everything=True))
    assert all(char.isprintable() or char == "\n" for char in printed)
    assert "<script>alert(1)</script> \\x1b[31m \\x00 \\u202e <b>" in printed
    assert visible("a\n\t\x7f\u2028\u202eb\u00a0c\U000e0001") == "a\\n\\t\\x7f\\u2028\\u202eb c\\U000e0001"


def test_spans_are_marked_in_the_text(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), f"Zq {PLANTED}; zq {EDGE} zq")
    numbers = {span.number: span.text for span in answer.spans if PLANTED in span.text or EDGE in span.text}
    marked = "\n".join(marked_text(answer, is_terminal=False))
    for number, text in numbers.items():
        assert f"[{number}: {text}]" in marked
    assert "\x1b[1m" in "\n".join(marked_text(answer, is_terminal=True))
    assert "\x1b" not in marked


def test_steps_are_told_in_a_line(traced: Traced) -> None:
    answer = trace_text(opened(traced.run), LONG)
    snippet = answer.documents[0].snippets[0]
    assert snippet.sighted is not None
    first = snippet.sighted.sights[0]
    line = tell_sights([snippet.sighted])
    assert line.startswith(f"steps {first.step} (row {first.row}; then checkpoint {first.checkpoint_after})")
    future = [s for s in snippet.sighted.sights if s.mark == "future"]
    assert tell_sights([type(snippet.sighted)(snippet.sighted.place, True, False, future)]).count("still to come") == len(
        {s.step for s in future}
    )
    nothing = type(snippet.sighted)
    assert tell_sights([nothing(snippet.sighted.place, True, True, [])]) == "held out: no step sees it"
    assert tell_sights([nothing(snippet.sighted.place, False, False, [])]) == "not in this run's data"
    assert tell_sights([nothing(snippet.sighted.place, True, False, [])]).startswith("no step sees it: ")


def test_few_documents_are_printed_unless_all_are_asked_for(traced: Traced) -> None:
    answer = trace_text(opened(traced.run, "spans.min_tokens=1", "spans.max_spans=null"), "ah the lazy")
    assert max(len(span.documents) for span in answer.spans) > 3
    few, everything = "\n".join(answer_lines(answer)), "\n".join(answer_lines(answer, everything=True))
    assert "--all shows them" in few
    assert "--all" not in everything
    for document in answer.documents:
        assert f"[{document.number}] {document.id}" in everything


# ---- the command ---------------------------------------------------------------------------------------------------------


def run_main(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_command_prints_spans_documents_and_steps(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_main(capsys, traced.run, "--text", PLANTED, "spans.max_spans=1")
    assert printed.startswith(f"[0: {PLANTED}]\n")
    assert id_that(False, "planted") in printed
    assert "then checkpoint" in printed
    assert "tokens of training documents searched" in printed


def test_a_text_may_come_from_a_file_or_standard_input(
    traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(f"{PLANTED}\n")
    answers = [json.loads(run_main(capsys, traced.run, "--file", tmp_path / "text.txt", "--json", "-"))]
    for words in (["--file", "-"], ["-"], []):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PLANTED}\n".encode())))
        answers.append(json.loads(run_main(capsys, traced.run, *words, "--json", "-")))
    answers.append(json.loads(run_main(capsys, traced.run, "--text", PLANTED, "--json", "-")))
    for answer in answers:
        answer.pop("seconds")
    assert answers[0]["text"] == PLANTED
    assert answers == [answers[0]] * 5


def test_json_is_the_answer(traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_main(capsys, traced.run, "--text", f"{HOSTILE} x", "--json", tmp_path / "answer.json")
    assert printed.startswith("[0: ")
    answer = json.loads((tmp_path / "answer.json").read_text())
    wanted = json.loads(json.dumps(asdict(trace_text(opened(traced.run), f"{HOSTILE} x"))))
    assert set(answer) == set(asdict(Answer("", [], 0, [], [], None, {}, {})))
    for name in set(answer) - {"seconds"}:
        assert answer[name] == wanted[name]


def test_no_text_is_an_error(
    traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = "the text is empty; give one with --text, --file or on standard input"
    assert refusal(main, [str(traced.run), "--text", " \n"], capsys) == empty
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    for name in ("bad.txt", "gone.txt"):
        message = refusal(main, [str(traced.run), "--file", str(tmp_path / name)], capsys)
        assert message.startswith(f"--file={tmp_path / name}: ")
        assert message.endswith("; give a text in UTF-8")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    message = refusal(main, [str(traced.run)], capsys)
    assert message == "no text is given; use --text TEXT, --file FILE, or write it to standard input"


def test_a_repeated_sentence_has_the_steps_of_each_of_its_places(traced: Traced) -> None:
    trace = opened(traced.run)
    answer = trace_text(trace, f"he said {REPEATED}")
    document = next(d for d in answer.documents if d.id == id_that(False, "repeated"))
    snippets = [s for s in document.snippets if REPEATED in s.match]
    assert len(snippets) == 3
    assert len({s.document_offset for s in snippets}) == 3
