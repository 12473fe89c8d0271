"""Paragraphs: spans in characters of all but the first, as a set of texts finds them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools.datasets import find_document_files
from data_tools.dedupe import keys, paragraph, paragraphs, spans
from data_tools.dedupe.paragraphs import Splitter
from data_tools.documents import LONG, Line, raise_reject, read_lines
from tests.data_tools.dedupe.corpora import attributes, contents, corpus, remove, run, write

Found = list[list[int]]
PRIORITY = ["wiki", "web"]


def split(text: str, separator: str, min_words: int) -> list[tuple[int, int, str]]:
    """[begin, end) with the separator, and the text of every paragraph that counts."""
    found, at = [], 0
    pieces = text.split(separator)
    for i, piece in enumerate(pieces):
        end = at + len(piece) + (len(separator) if i + 1 < len(pieces) else 0)
        if len(piece.split()) >= max(min_words, 1):
            found.append((at, end, piece))
        at = end
    return found


def join(found: list[tuple[int, int]]) -> Found:
    """Adjacent ones as one."""
    joined: Found = []
    for begin, end in found:
        if joined and joined[-1][1] == begin:
            joined[-1][1] = end
        else:
            joined.append([begin, end])
    return joined


def brute(datasets: list[Path], separator: str, min_words: int, priority: list[str], seen: set[str]) -> list[list[Found]]:
    """Spans of every document of every file; `seen` gets every paragraph."""
    lines = [list(read_lines(file.path, raise_reject)) for file in find_document_files([str(path) for path in datasets])]
    ranked = [
        (priority.index(line.source) if line.source in priority else len(priority), number, at)
        for number, each in enumerate(lines)
        for at, line in enumerate(each)
    ]
    spans: list[list[Found]] = [[[] for _ in each] for each in lines]
    for _, number, at in sorted(ranked):
        mine = []
        for begin, end, text in split(lines[number][at].text, separator, min_words):
            if text in seen:
                mine.append((begin, end))
            seen.add(text)
        spans[number][at] = join(mine)
    return spans


def told(datasets: list[Path], name: str = "x") -> list[list[Found]]:
    return [
        [[span[:2] for span in values.get(f"{name}__paragraph__duplicate", [])] for _, values in each]
        for each in attributes(datasets, name)
    ]


@pytest.mark.parametrize(
    ("separator", "min_words", "ranked"), [("\n", 0, False), ("\n", 2, True), ("o", 0, True), ("\n\u3000", 1, False)]
)
def test_spans_are_what_a_set_of_texts_says(
    tmp_path: Path, separator: str, min_words: int, ranked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With min_words Dolma marks nothing at all; in text that is not ASCII its spans run past the end."""
    datasets = corpus(tmp_path, 7)
    for module, name, value in ((keys, "RUN", 50), (spans, "BLOCK", 20), (paragraph, "BATCH", 9)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(paragraph, "range_bits", lambda *_: 2)
    priority = PRIORITY if ranked else []
    words = [f"paragraph.separator='{separator}'", f"paragraph.min_words={min_words}", f"priority=[{','.join(priority)}]"]
    summary = run(datasets, "by=paragraph", *words)
    expected = brute(datasets, separator, min_words, priority, set())
    assert told(datasets) == expected
    assert sum(bool(spans) for each in expected for spans in each) > 50
    documents = [line for file in find_document_files([str(d) for d in datasets]) for line in read_lines(file.path, raise_reject)]
    rows = [values for each in attributes(datasets) for _, values in each]
    for line, values in zip(documents, rows, strict=True):
        spans_of = values.get("x__paragraph__duplicate", [])
        share = sum(end - begin for begin, end, _ in spans_of) / max(len(line.text), 1)
        assert values.get("x__paragraph__duplicate_frac", []) == (
            [[0, len(line.text), pytest.approx(share, rel=1e-5)]] if spans_of else []
        )
        assert all(0 <= begin < end <= len(line.text) for begin, end, _ in spans_of)
    totals = summary["totals"]
    assert totals["characters"] == sum(len(line.text) for line in documents)
    assert totals["characters_duplicate"] == sum(end - begin for each in expected for found in each for begin, end in found)
    assert totals["documents_with_duplicates"] == sum(bool(found) for each in expected for found in each)
    assert sum(row["characters_duplicate"] for row in totals["by_source"].values()) == totals["characters_duplicate"]


def test_any_number_of_processes_writes_the_same(tmp_path: Path) -> None:
    datasets, words = corpus(tmp_path, 5), ["by=paragraph", "paragraph.exact=false"]
    run(datasets, *words)
    alone = contents(datasets)
    remove(datasets)
    run(datasets, *words, "processes=2", "memory_mb=100")
    assert contents(datasets) == alone
    assert "0/stages/dedupe-x/filter/00000.bits" in alone


class Pieces(Line):
    """A line whose text comes bit by bit."""

    size = 3

    @property
    def is_long(self) -> bool:
        return True

    def pieces(self, size: int = 0) -> Iterator[str]:
        return (self.text[i : i + self.size] for i in range(0, len(self.text), self.size))


def items(splitter: Splitter, line: Line) -> tuple[list[tuple[Any, ...]], int, int]:
    sizes = list(splitter.split(line))
    found, lengths, has_words = splitter.take()
    rows = zip(found.tolist(), lengths.tolist(), has_words.tolist(), strict=True)
    return [(*key, *rest) for key, *rest in rows], sum(n for n, _ in sizes), sum(n for _, n in sizes)


def test_the_pieces_of_a_long_text_do_not_change_its_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, keys_of = random.Random(0), dict[str, Any]()
    for _ in range(800):
        letters = rng.choice(["ab \n", "a \n\u3000é\u2003😀\x85", "abc\n\n\n  xyz日本"])
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 120)))
        separator, min_words = rng.choice(["\n", "\n\n", "😀", "ab", "aa", "é\n"]), rng.randint(0, 4)
        monkeypatch.setattr(paragraphs, "LONG", rng.choice([0, 2, 20]))
        monkeypatch.setattr(Pieces, "size", rng.choice([1, 2, 7, 50]))
        found, characters, size = items(Splitter(separator, min_words), Pieces("1", "s", text, b"", "", 1))
        assert (characters, size) == (len(text), len(text.encode()))
        parts = text.split(separator)
        assert [row[2] for row in found] == [len(part) for part in parts]
        assert [row[3] for row in found] == [len(part.split()) >= max(min_words, 1) for part in parts]
        for part, row in zip(parts, found, strict=True):
            assert keys_of.setdefault(part, row[:2]) == row[:2]
    assert len(set(keys_of.values())) == len(keys_of) > 1000


def test_a_long_document_is_compared_with_itself_and_others(tmp_path: Path) -> None:
    """One paragraph longer than any piece, many lines, and the same in a short document."""
    wide, lines = "wörter " * (LONG // 7), "äö ü\n" * (LONG // 6)
    texts = [f"{wide}\nonce\n{lines}", f"{wide}\näö ü\nnew"]
    write(tmp_path / "documents/a.jsonl", [{"id": str(i), "text": text, "source": "s"} for i, text in enumerate(texts)])
    run([tmp_path], "by=paragraph")
    first = len(wide) + len("\nonce\n")
    assert told([tmp_path]) == [[[[first + 5, len(texts[0])]], [[0, len(wide) + 6]]]]
