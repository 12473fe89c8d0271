"""Equal documents: one is kept, the same one by whomever the work is done, and everything told is as a dictionary finds it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.datasets import find_document_files
from data_tools.dedupe import exact, keys
from data_tools.dedupe.config import Normalize
from data_tools.dedupe.exact import normal_key
from data_tools.dedupe.keys import Keys, KeyWriter, find_equal, read_range, read_removed, write_removed
from data_tools.dedupe.urls import normalize_url, url_in
from data_tools.documents import LONG, Line, raise_reject, read_lines
from tests.data_tools.dedupe.corpora import attributes, contents, corpus, duplicates, remove, run, write

PRIORITY = ["wiki", "web"]


def key_of(by: str, line: Line) -> Any:
    match by:
        case "document":
            return line.text
        case "id":
            return line.source, line.id
        case "whitespace":
            return " ".join(line.text.split())
        case "case":
            return " ".join(line.text.split()).casefold()
    url = line.values().get("metadata", {}).get("url")
    return url and url.lower().replace("www.", "").rstrip("/")


def brute(by: str, datasets: list[Path]) -> tuple[list[dict[str, Any]], int]:
    """Records of what is removed, and how many documents there are; all in memory."""
    found = []
    for number, file in enumerate(find_document_files([str(path) for path in datasets])):
        for line in read_lines(file.path, raise_reject):
            rank = PRIORITY.index(line.source) if line.source in PRIORITY else len(PRIORITY)
            found.append(((rank, number, line.line), key_of(by, line), line))
    kept: dict[Any, Line] = {}
    for _, key, line in sorted(found, key=lambda each: each[0]):
        kept.setdefault(key, line)
    removed = [(line, kept[key]) for _, key, line in found if key is not None and kept[key] is not line]
    told = [{**place(line), "reason": by, "kept": place(other)} for line, other in removed]
    return sorted(told, key=lambda record: (record["path"], record["line"])), len(found)


def place(line: Line) -> dict[str, Any]:
    return {"id": line.id, "source": line.source, "path": line.path, "line": line.line}


@pytest.mark.parametrize("by", ["document", "id", "url", "whitespace", "case"])
def test_what_is_removed_and_kept_is_what_a_dictionary_says(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = corpus(tmp_path, 3)
    monkeypatch.setattr(keys, "RUN", 7)  # many runs, several ranges
    monkeypatch.setattr(exact, "range_bits", lambda *_: 2)
    words = [f"normalize={by}"] if by in list(Normalize) else [f"by={by}"]
    summary = run(datasets, *words, f"priority=[{','.join(PRIORITY)}]")
    told, documents = brute(by, datasets)
    real = "document" if by in list(Normalize) else by
    assert duplicates(datasets[0]) == [{**record, "reason": real} for record in told]
    marked = {(record["path"], record["line"]) for record in told}
    assert 20 < len(marked) < documents - 20
    for file, found in zip(find_document_files([str(path) for path in datasets]), attributes(datasets), strict=True):
        lines = list(read_lines(file.path, raise_reject))
        assert [line.id for line in lines] == [id for id, _ in found]
        for line, (_, values) in zip(lines, found, strict=True):
            is_marked = (line.path, line.line) in marked
            assert values == ({f"x__{real}__duplicate": [[0, len(line.text), 1.0]]} if is_marked else {})
    totals = summary["totals"]
    assert (totals["documents_in"], totals["documents_duplicate"]) == (documents, len(marked))
    assert totals["documents_out"] == documents - len(marked) == sum(row["documents"] for row in totals["by_source"].values())
    assert totals["attributes"] == {f"x__{real}__duplicate": len(marked)}


def test_any_number_of_processes_and_ranges_keeps_the_same(tmp_path: Path) -> None:
    """Dolma flagged 3,259 documents twice, but not the same ones: its threads raced."""
    datasets = corpus(tmp_path, 5)
    run(datasets)
    alone = contents(datasets)
    remove(datasets)
    run(datasets, "processes=3", "memory_mb=100")
    assert contents(datasets) == alone
    assert sum("/duplicates/" in name for name in alone) == sum("attributes/x/" in name for name in alone) == 6


def test_all_128_bits_are_compared() -> None:
    hi = np.array([5, 5, 5, 5, 9, 5], np.uint64)
    lo = np.array([1, 2, 1, 2, 1, 3], np.uint64)
    found = find_equal(Keys(hi, lo, np.array([40, 30, 20, 10, 5, 6], np.uint64)))
    assert sorted(zip(found.removed.tolist(), found.kept.tolist(), strict=True)) == [(30, 10), (40, 20)]
    assert sorted(found.first.place.tolist()) == [5, 6, 10, 20]


def test_a_text_that_stands_everywhere_takes_one_key_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RUN", 100)
    writer = KeyWriter(tmp_path / "keys", 0)
    for ordinal in range(1000):
        writer.add((7, 7), 0, ordinal)
    writer.close()
    assert writer.written == 10  # whatever memory a range has, no key is too frequent for it
    found = find_equal(read_range([tmp_path / "keys"], 0, 0))
    write_removed(tmp_path / "removed", found.removed, found.kept)
    runs = list(read_removed(tmp_path / "keys", [tmp_path / "removed"], 0))
    assert [end for end, _, _ in runs] == list(range(100, 1001, 100))
    assert np.concatenate([removed for _, removed, _ in runs]).tolist() == list(range(1, 1000))
    assert not any(kept.any() for _, _, kept in runs)


@pytest.mark.parametrize("normalize", [Normalize.WHITESPACE, Normalize.CASE])
def test_the_pieces_of_a_long_text_do_not_change_its_key(normalize: Normalize) -> None:
    class Pieces(Line):
        def pieces(self, size: int = 3) -> Any:
            return (self.text[i : i + size] for i in range(0, len(self.text), size))

    text = " A  b\n\n\u3000Straße\t   c d  "
    of = [normal_key(kind("1", "s", text, b"", "", 1), normalize) for kind in (Line, Pieces)]
    assert of[0] == of[1]
    assert of[0] == normal_key(Line("1", "s", "A b Straße c d", b"", "", 1), normalize)
    assert of[0] != normal_key(Line("1", "s", "A bStraße c d", b"", "", 1), normalize)


def test_long_and_empty_documents_are_compared_whole(tmp_path: Path) -> None:
    long = "äö\n" * (LONG // 4)
    texts = [long, "", f"{long}x", long, ""]
    path = write(tmp_path / "documents/a.jsonl", [{"id": str(i), "text": t, "source": "s"} for i, t in enumerate(texts)])
    run([tmp_path])
    assert [(r["id"], r["kept"]["id"], r["path"]) for r in duplicates(tmp_path)] == [("3", "0", str(path)), ("4", "1", str(path))]
    found = attributes([tmp_path])[0]
    assert found[3][1] == {"x__document__duplicate": [[0, len(long), 1.0]]}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://www.Example.org:80/a/", "https://example.org/a#top", True),
        ("https://example.org/a?b=1", "https://example.org/a?b=2", False),
        ("https://example.org/A", "https://example.org/a", False),
        ("https://example.org:8443/a", "https://example.org/a", False),
        ("https://me@example.org/a", "https://example.org/a", False),
        ("https://[broken/a", "https://[broken/a", True),
    ],
)
def test_addresses_are_compared_by_a_stated_rule(one: str, other: str, same: bool) -> None:
    assert (normalize_url(one) == normalize_url(other)) is same


def test_an_address_is_found_where_a_trace_finds_it() -> None:
    assert url_in(b'{"id": "1", "text": "x", "uri": "http://a.org/x"}', "1") == "a.org/x"
    assert url_in(b'{"metadata": {"WARC-Target-URI": "http://a.org/x"}}', "1") == "a.org/x"
    assert url_in(b'{"metadata": [1]}', "https://a.org/y") == "a.org/y"
    assert url_in(b'{"url": "ftp://a.org"}', "1") is None
