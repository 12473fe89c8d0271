"""Spans replaced: as a naive version does it, in pieces as well as whole, in documents of any length and bounded memory."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.documents import Line
from data_tools.mix.plan import Redaction
from data_tools.mix.redact import Cut, SpanError, changed_line, check_cuts, find_cuts, redacted
from tests.data_tools.mix.corpus import documents_of, records_of, run, write_dataset

SIZE = 8_000_000
"""Bytes of a long text."""
RULES = [Redaction("a", "x__a", "[A]", 0.5, float("inf")), Redaction("b", "x__b", "", 0.4, 0.9)]
SLOTS = {"x__b": 0, "x__a": 1}


def apply(text: str, cuts: list[Cut]) -> str:
    return "".join(redacted(iter([text]), cuts))


def test_overlapping_spans_become_one_and_touching_ones_stay_two() -> None:
    text = "aé日😀bcdefghij"
    cases = [
        ([], [(1, 3, 1.0)], "a[A]😀bcdefghij"),
        ([], [(1, 3, 0.4)], text),
        ([(1, 3, 0.95)], [], text),
        ([], [(1, 3, 1.0), (3, 5, 1.0)], "a[A][A]cdefghij"),
        ([], [(1, 4, 1.0), (3, 6, 1.0), (5, 7, 1.0)], "a[A]efghij"),
        ([(1, 6, 0.5)], [(2, 4, 1.0)], "adefghij"),
        ([(2, 4, 0.5)], [(1, 6, 1.0)], "a[A]defghij"),
        ([(1, 3, 0.5)], [(1, 6, 1.0)], "a[A]defghij"),
        ([(1, 3, 0.5)], [(1, 3, 1.0)], "a[A]😀bcdefghij"),
        ([], [(2, 2, 1.0), (13, 13, 1.0)], text),
        ([], [(0, 13, 1.0)], "[A]"),
    ]
    for b, a, expected in cases:
        assert apply(text, find_cuts(RULES, SLOTS, (b, a))) == expected
    assert [cut.spans for cut in find_cuts(RULES, SLOTS, ([(1, 6, 0.5)], [(2, 4, 1.0), (8, 9, 1.0)]))] == [2, 1]


def test_spans_outside_their_text_are_refused() -> None:
    for span in ((-1, 2, 1.0), (3, 2, 1.0)):
        with pytest.raises(SpanError, match=r"x__a has the span \[.*\], which is none; write the attributes again"):
            find_cuts(RULES, SLOTS, ([], [span]))
    cuts = find_cuts(RULES, SLOTS, ([], [(2, 9, 1.0)]))
    check_cuts(cuts, 9)
    with pytest.raises(SpanError, match=r"the span \[2, 9\] of rule a ends after the text, which has 8 characters"):
        check_cuts(cuts, 8)


def test_pieces_give_the_same_as_the_whole() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice('ab é日😀\n\\"') for _ in range(rng.randrange(30)))
        spans = [
            [(s, min(len(text), s + rng.randrange(9)), rng.random()) for s in rng.choices(range(len(text) + 1), k=3)]
            for _ in SLOTS
        ]
        cuts = find_cuts(RULES, SLOTS, spans)  # type: ignore[arg-type]
        places = sorted(rng.choices(range(len(text) + 1), k=4))
        pieces = [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]
        whole = list(text)
        for cut in reversed(cuts):
            whole[cut.start : cut.end] = [cut.replacement]
        assert "".join(redacted(iter(pieces), cuts)) == "".join(whole)
        line = Line("i", "s", text, json.dumps({"id": "i", "text": text, "source": "s", "x": [1.0]}).encode(), "f", 1)
        changed = b"".join(changed_line(line, {"id": "j"}, {"m": 1}, redacted(iter(pieces), cuts)))
        assert json.loads(changed) == {"id": "j", "text": "".join(whole), "source": "s", "x": [1.0], "metadata": {"m": 1}}


def test_long_documents_are_redacted_in_bounded_memory(tmp_path: Path) -> None:
    """One without a change, one redacted: beside the line itself, which is held once, a process takes little."""
    unit = 'é😀 "quoted"\n word '
    text = unit * (SIZE // len(unit.encode()))
    spans = [[i, i + 2, 1.0] for i in range(0, len(text), len(unit) * 997)]
    documents = [{"id": "long", "text": text, "source": "s", "metadata": {"a": 1}}, {"id": "same", "text": text, "source": "s"}]
    write_dataset(tmp_path / "in", {"a.jsonl": documents}, {"x": {"a.jsonl": [{"x__pii__p": spans}, {"x__pii__p": []}]}})
    del documents
    config = {
        "output": str(tmp_path / "out"), "processes": 1,
        "sources": {"w": {
            "documents": [str(tmp_path / "in")], "attributes": ["x"], "redact": {"p": {"spans": "pii__p", "replacement": "#"}},
            "min_text_length": 10,
        }},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = "import sys; from data_tools.mix.command import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", command, f"config={tmp_path / 'config.json'}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line_mb = len(json.dumps(text)) / 1e6
    peak_mb = int(done.stdout.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    assert peak_mb < 80 + 2.5 * line_mb
    changed, same = documents_of(tmp_path / "out")
    assert same["text"] == text
    step = len(unit) * 997
    assert changed["text"] == "".join("#" + text[i + 2 : i + step] for i in range(0, len(text), step))
    assert changed["metadata"] == {"a": 1, "redacted": {"p": len(spans)}}
    (told,) = records_of(tmp_path / "out", "redactions")
    assert told["cuts"][1] == [step, step + 2, "p", 1]


def test_a_second_redaction_adds_to_the_counts_of_the_first() -> None:
    values = {"id": "i", "text": "", "source": "s", "metadata": {"redacted": {"a": 2, "b": "?"}, "x": 1.50}}
    for before, after in ((values["metadata"], {"a": 5, "b": 1, "c": 1}), ({"redacted": 7, "x": 1.5}, {"a": 3, "b": 1, "c": 1})):
        line = Line("i", "s", "", json.dumps({**values, "metadata": before}).encode(), "f", 1)
        changed = json.loads(b"".join(changed_line(line, {}, {"redacted": {"a": 3, "b": 1, "c": 1}}, None)))
        assert changed == {**values, "metadata": {"redacted": after, "x": 1.5}}


def test_min_length_counts_what_is_left(tmp_path: Path) -> None:
    rows = [{"x__pii__p": [[0, 5, 1]]}, {"x__pii__p": []}]
    write_dataset(
        tmp_path / "in", {"a.jsonl": [{"id": i, "text": "éééééabc", "source": "s"} for i in "ab"]}, {"x": {"a.jsonl": rows}}
    )
    source = {
        "documents": [str(tmp_path / "in")],
        "attributes": ["x"],
        "redact": {"p": {"spans": "pii__p"}},
        "min_text_length": 4,
    }
    run(tmp_path / "out", {"w": source})
    assert [document["id"] for document in documents_of(tmp_path / "out")] == ["b"]
    (told,) = records_of(tmp_path / "out", "dropped")
    assert (told["reason"], told["rule"], told["values"]) == ("min_text_length", "length() >= 4", {"length()": 3})
