"""JSON lines of any schema: fields are found, everything else is kept as it is spelled, what is no document is named."""

import gzip
import json
from pathlib import Path

import pytest
import xxhash
import zstandard

from data_tools.documents import LONG
from data_tools.id_index import find_lines
from tests.data_tools.ingest.ingested import contents, documents, lines_of, put, reasons, run, texts, told


def source(path: Path, **fields: str | list[str] | None) -> dict[str, object]:
    return {"kind": "jsonl", "paths": [str(path)], "fields": fields}


def test_fields_are_found_by_name_and_the_rest_is_metadata(tmp_path: Path) -> None:
    put(
        tmp_path / "in/a.jsonl",
        '{"n": 7, "doc": {"body": "one", "x": 1.50}, "when": 1700000000, "metadata": {"big": 12345678901234567890123}, "s": "web"}\n'
        '{"doc.body": "two", "n": "8", "doc": {"body": "not this"}, "when": null, "metadata": {"s": 2}, "s": "a/b", "junk": 1}\n'
        '{"n": -3, "doc": {"body": "thr\\u0000ee"}, "s": "web", "junk": {}, "added": "2020"}\n',
    )
    fields = {"id": "n", "text": "doc.body", "source": "s", "created": "when", "leave_out": ["junk"]}
    totals = run(tmp_path / "out", {"x": source(tmp_path / "in", **fields) | {"license": "CC0"}}, added="2024")  # type: ignore[arg-type]
    assert documents(tmp_path / "out", "x") == [
        {
            "id": "7", "text": "one", "source": "web", "added": "2024", "created": "1700000000",
            "metadata": {"doc": {"x": 1.5}, "big": 12345678901234567890123, "license": "CC0"},
        },
        {
            "id": "8", "text": "two", "source": "a/b", "added": "2024",
            "metadata": {"doc": {"body": "not this"}, "s": 2, "license": "CC0"},
        },
        {"id": "-3", "text": "thr\0ee", "source": "web", "added": "2024", "metadata": {"added": "2020", "license": "CC0"}},
    ]  # fmt: skip
    assert b"1.50" in gzip.decompress((tmp_path / "out/documents/x/00000-000.jsonl.gz").read_bytes())
    assert totals["by_source"] == {"web": {"documents": 2, "text_bytes": 9}, "a/b": {"documents": 1, "text_bytes": 3}}
    assert (totals["documents_in"], totals["documents_out"], totals["text_bytes_out"]) == (3, 3, 12)
    ids = tmp_path / "out/stages/ingest/ids/x/00000-000.jsonl.gz.idx"
    assert [find_lines(ids, name) for name in ("7", "8", "-3", "9")] == [[1], [2], [3], []]


def test_documents_of_dolma_come_out_as_they_went_in(tmp_path: Path) -> None:
    values = [
        {"id": "1", "text": "x", "source": "s", "added": "2020", "created": "2019", "metadata": {"url": "http://x"}},
        {"id": "2", "text": "é\u2028", "source": "t", "metadata": {"text": 1}},
    ]
    lines_of(tmp_path / "a.jsonl", values)
    fields = {"source": "source", "added": "added", "created": "created"}
    run(tmp_path / "out", {"s": source(tmp_path / "a.jsonl", **fields)}, compression="none")  # type: ignore[arg-type]
    assert documents(tmp_path / "out") == values


def test_ids_are_made_of_names_and_places_however_files_are_packed_and_cut(tmp_path: Path) -> None:
    values = [{"text": f"text {i} " + "x" * (i % 1500), "n": i} for i in range(3_000)]
    lines = "".join(f"{json.dumps(value)}\n" for value in values).encode()
    put(tmp_path / "plain/a/x.jsonl", lines)
    put(tmp_path / "gzip/a/x.jsonl.gz", gzip.compress(lines, 1))
    put(tmp_path / "zst/a/x.jsonl.zst", zstandard.compress(lines))
    put(tmp_path / "utf16/a/x.jsonl", lines.decode().encode("utf-16"))
    found = {}
    for name in ("plain", "gzip", "zst", "utf16"):
        run(tmp_path / "out" / name, {"s": source(tmp_path / name, id=None)}, part_mb=1)
        found[name] = documents(tmp_path / "out" / name)
        assert len(list((tmp_path / "out" / name / "documents/s").iterdir())) == {"plain": 2}.get(name, 1)
    assert [d["metadata"]["n"] for d in found["plain"]] == list(range(3_000))
    assert found["plain"] == found["gzip"] == found["zst"] == found["utf16"]
    second = found["plain"][1]
    at = lines.index(b"\n") + 1
    assert second["metadata"] == {"n": 1, "path": "a/x.jsonl", "byte": at}
    assert second["id"] == xxhash.xxh3_128_hexdigest(f"s\0a/x.jsonl\0{at}".encode())


BAD = {
    b'{"id": 1}': ("missing_field", "has no field text, its text; it has id; give fields.text"),
    b'{"text": "x"}': ("missing_field", "has no field id, its id; it has ; give fields.id"),
    b'{"id": 1.5, "text": "x"}': (
        "wrong_type",
        "id, its id, is float 1.5; strings and whole numbers are ids; fields.id=null makes some",
    ),
    b'{"id": "", "text": "x"}': ("wrong_type", "id, its id, is empty; strings"),
    b'{"id": true, "text": "x"}': ("wrong_type", "id, its id, is bool True; strings"),
    b'{"id": 1, "text": ["x"]}': ("wrong_type", "its text is list ['x'], must be a string"),
    b'{"id": 1, "text": "x", "created": {}}': (
        "wrong_type",
        "created, its created, is dict {}, must be a string, a number or a time",
    ),
    b'{"id": "\\ud800", "text": "x"}': ("surrogate", "id='\\ud800' holds half a surrogate pair; ids are UTF-8"),
    b'{"id": 1, "text": "x", "s": "../x"}': ("bad_source", "source='../x' cannot name a folder; words that begin with"),
    b'{"id": 1, "text": "\xe9"}': ("not_utf8", "is not UTF-8: byte 20 is 0xe9; convert the file, or name its `encodings`"),
    b'{"id": 1, "text": "x", "n": "\xff"}': ("not_utf8", "is not UTF-8"),
    b'{"id": 1, "text": "x"': ("not_json", "is not JSON: Expecting ',' delimiter at character 22; mend or remove it"),
    b"[1]": ("not_object", "is not a JSON object"),
    b'{"id": 1, "text": "x", "n": %b}' % (b"[" * 9999): ("not_json", "is not JSON: "),
    b'{"id": 1, "text": "%b\xff"}' % (b"x" * LONG): ("not_utf8", "is not UTF-8 somewhere in its text; convert the file"),
    b'{"id": 1, "text": "%b\\ud800"}' % (b"x" * LONG): ("not_json", "is not JSON, or holds half a surrogate pair: "),
    b'{"id": 1, "text": "%b}' % (b"x" * LONG): ("not_json", "is not JSON, or holds half a surrogate pair: "),
    b"[%b1]" % (b"1," * LONG): ("not_object", "is not JSON, or holds half a surrogate pair: "),
    b'{"id": 1, "text": "%b"}' % (b"x" * 2 * 2**20): (
        "too_long",
        "a line of 2,097,173 bytes; raise max_document_mb and memory_mb",
    ),
}


def test_every_bad_line_is_in_quarantine_with_its_place_and_the_others_are_read(tmp_path: Path) -> None:
    good = b'{"id": "%d", "text": "x"}\n'
    bad = dict(list(BAD.items())[:-1])
    put(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"".join(good % i + line + b"\n\n" for i, line in enumerate(bad)))
    totals = run(tmp_path / "out", {"s": source(tmp_path / "a.jsonl", source="s", created="created")})
    assert [d["id"] for d in documents(tmp_path / "out")] == [str(i) for i in range(len(bad))]
    for i, (each, (reason, detail)) in enumerate(zip(told(tmp_path / "out"), bad.values(), strict=True)):
        assert (each["line"], each["reason"], each["path"]) == (3 * i + 2, reason, str(tmp_path / "a.jsonl"))
        assert each["detail"].startswith(detail)
    assert (totals["documents_in"], totals["documents_out"]) == (2 * len(bad), len(bad))
    put(tmp_path / "long.jsonl", list(BAD)[-1] + b"\n" + good % 1)
    run(tmp_path / "long", {"s": source(tmp_path / "long.jsonl")}, max_document_mb=1)
    assert [d["id"] for d in documents(tmp_path / "long")] == ["1"]
    assert told(tmp_path / "long")[0]["detail"] == list(BAD.values())[-1][1]


def test_what_can_be_repaired_is_counted(tmp_path: Path) -> None:
    put(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"id": 1, "text": "a\\ud800b", "n": "\\udc00"}\n{"id": 2, "text": "\\ud83d\\ude00\xe9"}\n',
    )
    run(tmp_path / "out", {"s": source(tmp_path / "a.jsonl") | {"encodings": ["latin-1"]}})
    assert texts(tmp_path / "out") == ["a\ufffdb", "😀é"]
    assert documents(tmp_path / "out")[0]["metadata"] == {"n": "\ufffd"}
    summary = json.loads((tmp_path / "out/stages/ingest/summary.json").read_text())
    assert summary["repaired"] == {"bom": 1, "surrogate": 1, "iso8859-1": 1}
    run(tmp_path / "replaced", {"s": source(tmp_path / "a.jsonl") | {"on_bad_bytes": "replace"}})
    assert texts(tmp_path / "replaced") == ["a\ufffdb", "😀\ufffd"]


def test_a_file_that_is_cut_short_gives_what_it_has_and_one_reject(tmp_path: Path) -> None:
    lines = b"".join(b'{"id": %d, "text": "%b"}\n' % (i, str(i).encode()) for i in range(20_000))
    for name, data in {"gz": gzip.compress(lines), "zst": zstandard.compress(lines)}.items():
        put(tmp_path / f"x.jsonl.{name}", data[: len(data) * 2 // 3])
        run(tmp_path / name, {"s": source(tmp_path / f"x.jsonl.{name}")})
        n = len(documents(tmp_path / name))
        assert 100 < n < 20_000
        assert [t["reason"] for t in told(tmp_path / name)][-1] == "cut_short"


def test_a_long_text_is_written_as_a_short_one_would_be(tmp_path: Path) -> None:
    text = 'é"\\\n😀e\u0301 ' * (LONG // 16)
    lines_of(
        tmp_path / "a.jsonl",
        [{"id": 1, "text": text, "n": 1}, {"id": 2, "text": " " * 2 * LONG}, {"id": 3, "text": "x" * 9 * 2**19}],
    )
    totals = run(tmp_path / "out", {"s": source(tmp_path / "a.jsonl")}, max_document_mb=5)
    assert documents(tmp_path / "out")[0] == {"id": "1", "text": text, "source": "s", "metadata": {"n": 1}}
    assert (totals["dropped"], totals["documents_out"]) == ({"empty": 1}, 2)
    run(tmp_path / "nfc", {"s": source(tmp_path / "a.jsonl")}, max_document_mb=5, unicode="nfc", newlines="lf")
    assert texts(tmp_path / "nfc")[0] == text.replace("e\u0301", "é")
    run(tmp_path / "less", {"s": source(tmp_path / "a.jsonl")}, max_document_mb=4)
    assert reasons(tmp_path / "less", "dropped") == [(3, "too_long")]
    assert reasons(tmp_path / "less") == [(1, "too_long"), (2, "too_long")]
    assert texts(tmp_path / "less") == []


def test_output_files_are_bounded_and_named_alike(tmp_path: Path) -> None:
    lines_of(tmp_path / "a.jsonl", [{"id": i, "text": "x" * 1000} for i in range(3000)])
    run(tmp_path / "out", {"s": source(tmp_path / "a.jsonl")}, max_file_mb=1, compression="gz")
    names = [f"documents/s/00000-00{i}.jsonl.gz" for i in range(3)]
    assert [name for name in contents(tmp_path / "out") if name.startswith("documents")] == names
    assert [d["id"] for d in documents(tmp_path / "out")] == [str(i) for i in range(3000)]


@pytest.mark.parametrize("newlines", ["keep", "lf"])
def test_newlines_are_kept_unless_asked(tmp_path: Path, newlines: str) -> None:
    lines_of(tmp_path / "a.jsonl", [{"id": 1, "text": "a\r\nb\rc\n\r\n"}])
    run(tmp_path / "out", {"s": source(tmp_path / "a.jsonl")}, newlines=newlines)
    assert texts(tmp_path / "out") == ["a\r\nb\rc\n\r\n" if newlines == "keep" else "a\nb\nc\n\n"]
