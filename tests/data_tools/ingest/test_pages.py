"""WARC and HTML: pages become text, damage is told where FastWARC says nothing, and no page takes the stage down."""

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import pytest
import xxhash
import zstandard

from data_tools.ingest.guard import FailedError, Guard
from data_tools.ingest.warc import read_warc
from tests.data_tools.ingest.ingested import documents, put, reasons, run, texts, told
from tests.data_tools.ingest.misbehaving import misbehave

PAGE = "<html><head><title>t</title></head><body><main><p>Grüße from page {} with some words in a paragraph.</p></main></body></html>"


def response(
    number: int, body: bytes | None = None, http: str = "Content-Type: text/html; charset=latin-1", **head: str
) -> bytes:
    body = PAGE.format(number).encode("latin-1") if body is None else body
    payload = f"HTTP/1.1 {head.pop('status', '200 OK')}\r\n{http}\r\n\r\n".encode() + body
    fields = {
        "WARC-Type": "response",
        "WARC-Target-URI": f"http://x.org/{number}",
        "WARC-Date": "2024-02-03T04:05:06Z",
        "WARC-Payload-Digest": "sha1:ABC",
        "Content-Length": str(len(payload)),
    } | {name.replace("_", "-"): value for name, value in head.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"WARC/1.0\r\n{lines}\r\n".encode() + payload + b"\r\n\r\n"


def source(path: Path, **values: Any) -> dict[str, Any]:
    return {"kind": "warc", "paths": [str(path)], **values}


def test_responses_become_documents_however_they_are_packed(tmp_path: Path) -> None:
    records = [
        b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 2\r\n\r\nx\n\r\n\r\n",
        *[response(i) for i in range(20)],
        response(20, status="404 Not Found"),
        response(21, b"%PDF", "Content-Type: application/pdf"),
        response(22, b"plain <b>text</b>\n", "Content-Type: text/plain"),
        response(23, PAGE.format(23).encode(), "Content-Type: TEXT/HTML"),
        response(24, PAGE.format(24).replace("<head>", '<head><meta charset="cp1252">').encode("cp1252"), "Server: x"),
        response(25, gzip.compress(PAGE.format(25).encode()), "Content-Type: text/html\r\nContent-Encoding: gzip"),
        response(26, b"5;x\r\nplain\r\n3\r\n -> \r\n0\r\n\r\n".replace(b"3\r\n -> ", b"3\r\n ->"), "Content-Type: text/plain\r\nTransfer-Encoding: chunked"),
        response(27, b"", "Content-Type: text/html"),
        response(28, PAGE.format(28).encode(), "Content-Type: text/html\r\nContent-Encoding: gzip"),
        response(29, PAGE.format(29).encode(), "Content-Type: text/html; charset=utf-16"),
    ]  # fmt: skip
    packings = {
        "a.warc": b"".join(records),
        "b.warc.gz": b"".join(map(gzip.compress, records)),
        "c.warc.zst": zstandard.compress(b"".join(records)),
    }
    found = []
    for name, data in packings.items():
        put(tmp_path / name / name, data)
        totals = run(tmp_path / "out" / name, {"web": source(tmp_path / name, license="unknown")})
        found.append(documents(tmp_path / "out" / name))
        assert totals["skipped"] == {"record_warcinfo": 1, "http_404": 1, "content_type": 1}
        assert totals["dropped"] == {"empty": 1}
        assert (totals["documents_in"], totals["documents_out"], told(tmp_path / "out" / name)) == (28, 27, [])
    assert found[0] == found[1] == found[2]
    assert found[0][3] == {
        "id": xxhash.xxh3_128_hexdigest(b"web\0http://x.org/3\x002024-02-03T04:05:06Z"),
        "text": "Grüße from page 3 with some words in a paragraph.",
        "source": "web",
        "created": "2024-02-03T04:05:06Z",
        "metadata": {
            "url": "http://x.org/3", "date": "2024-02-03T04:05:06Z", "digest": "sha1:ABC",
            "content_type": "text/html; charset=latin-1", "encoding": "cp1252", "license": "unknown",
        },
    }  # fmt: skip
    by_url = {d["metadata"]["url"].rsplit("/", 1)[1]: d["text"] for d in found[0]}
    assert (by_url["22"], by_url["26"]) == ("plain <b>text</b>\n", "plain ->")
    assert all(by_url[str(i)] == f"Grüße from page {i} with some words in a paragraph." for i in (23, 24, 25, 28, 29))


GOOD = [response(i) for i in range(4)]
DAMAGED = {
    "cut in a body": (b"".join(GOOD)[:-40], [0, 1, 2], "cut_short", "damaged after record 3: record 4 has "),
    "cut in a head": (b"".join(GOOD[:2]) + GOOD[2][:50], [0, 1], "cut_short", "damaged after record 2: the file ends within the head"),
    "cut after a body": (b"".join(GOOD)[:-4], [0, 1, 2], "cut_short", "damaged after record 3: record 4 lacks the two empty lines"),
    "garbage between": (GOOD[0] + b"garbage\r\n\r\n" + GOOD[1], [0, 1], "bad_record", "record 2: 11 bytes that begin no record"),
    "swallows all": (response(0, Content_Length="5000") + GOOD[1], [], "cut_short", "damaged after record 0: record 1 has "),
    "swallows one": (response(0, Content_Length="400") + GOOD[1] + GOOD[2], [2], "bad_record", "record 1: Content-Length=400 is wrong"),
    "too short": (response(0, Content_Length="150") + GOOD[1], [1], "bad_record", "record 1: Content-Length=150 is wrong; "),
    "no length": (response(0, Content_Length="") + GOOD[1], [1], "bad_record", "record 1: Content-Length='' is no number; "),
    "no url": (response(0, WARC_Target_URI="") + GOOD[1], [1], "bad_record", "record 1: has no WARC-Target-URI or no WARC-Date"),
    "no http": (GOOD[0].replace(b"HTTP/1.1 200", b"HTTP/x.y abc") + GOOD[1], [1], "bad_record", "record 1: begins with b'HTTP/x.y abc OK\\r'"),
    "bad gzip": (response(0, b"\x1f\x8bno", "Content-Encoding: gzip") + GOOD[1], [1], "bad_record", "record 1: Content-Encoding=gzip, but"),
    "not text": (response(0, b"<p>\xe9\x81", "Content-Type: text/html") + GOOD[1], [1], "not_text", "http://x.org/0: is no text in utf-8: "),
}  # fmt: skip


def test_damage_of_every_kind_is_one_reject_and_the_others_are_read(tmp_path: Path) -> None:
    for name, (data, _, _, _) in DAMAGED.items():
        put(tmp_path / name / "a.warc", data)
    run(tmp_path / "out", {name: source(tmp_path / name) for name in DAMAGED})
    rejects = {Path(t["path"]).parent.name: t for t in told(tmp_path / "out")}
    assert len(told(tmp_path / "out")) == len(DAMAGED)
    for name, (_, kept, reason, detail) in DAMAGED.items():
        assert [int(d["metadata"]["url"].rsplit("/", 1)[1]) for d in documents(tmp_path / "out", name)] == kept, name
        assert rejects[name]["reason"] == reason
        assert rejects[name]["detail"].startswith(detail)


def test_a_packed_warc_that_is_cut_anywhere_is_told(tmp_path: Path) -> None:
    members = [gzip.compress(record) for record in GOOD]
    whole = b"".join(members)
    for keep in (len(whole) - 1, len(whole) - 9, len(whole) - len(members[3]) + 5, 3):
        put(tmp_path / str(keep) / "a.warc.gz", whole[:keep])
        run(tmp_path / "out" / str(keep), {"s": source(tmp_path / str(keep))})
        assert [t["reason"] for t in told(tmp_path / "out" / str(keep))] == ["cut_short"]
        assert len(documents(tmp_path / "out" / str(keep))) == (0 if keep == 3 else 4 if keep > len(whole) - 10 else 3)


def test_a_length_that_swallows_the_next_record_is_found() -> None:
    data = response(0, Content_Length="400") + GOOD[1] + GOOD[2]
    records = list(read_warc([data[i : i + 7] for i in range(0, len(data), 7)], 10_000))
    assert [bool(record.problem) for record in records] == [True, False]
    assert records[1].headers["warc-target-uri"] == "http://x.org/2"


def test_large_pages_are_dropped_and_never_held(tmp_path: Path) -> None:
    bomb = zlib.compress(b"<p>x" * 2**20)
    put(tmp_path / "a.warc", response(0, b"<p>" + b"x" * 2**21) + response(1, bomb, "Content-Encoding: deflate") + response(2))
    put(tmp_path / "b.html", b"<p>" + b"x" * 2**20)
    page = {"kind": "html", "paths": [f"{tmp_path}/b.html"], "max_page_mb": 1}
    run(tmp_path / "out", {"w": source(tmp_path / "a.warc", max_page_mb=1), "h": page})
    assert len(texts(tmp_path / "out", "w")) == 1
    assert reasons(tmp_path / "out", "dropped") == [(0, "too_long"), (1, "too_long"), (2, "too_long")]


def test_html_files_in_every_encoding(tmp_path: Path) -> None:
    page = PAGE.format(1)
    declared = page.replace("<head>", '<head><meta http-equiv="Content-Type" content="text/html; charset=windows-1251">')
    pages = {
        "utf8": page.encode(), "utf16": page.encode("utf-16"), "meta": declared.replace("Grüße", "Привет").encode("cp1251"),
        "xml": b'<?xml version="1.0" encoding="iso-8859-1"?>' + page.encode("latin-1"),
        "iso2022": page.replace("<head>", '<head><meta charset="iso-2022-jp">').replace("Grüße", "日本").encode("iso2022_jp"),
    }  # fmt: skip
    for name, data in pages.items():
        put(tmp_path / "in" / f"{name}.html", data)
    run(tmp_path / "out", {"h": {"kind": "html", "paths": [str(tmp_path / "in")]}})
    found = {d["metadata"]["path"]: (d["text"].split(" ")[0], d["metadata"].get("encoding")) for d in documents(tmp_path / "out")}
    assert found == {
        "utf8.html": ("Grüße", None), "utf16.html": ("Grüße", "utf-16-le"), "meta.html": ("Привет", "cp1251"),
        "xml.html": ("Grüße", "cp1252"), "iso2022.html": ("日本", "iso2022_jp"),
    }  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("trafilatura") is None, reason="trafilatura is not installed")
def test_trafilatura_extracts_as_well(tmp_path: Path) -> None:
    put(tmp_path / "in/a.html", PAGE.format(1).replace("paragraph.", "paragraph. " * 20))
    run(tmp_path / "out", {"h": {"kind": "html", "paths": [str(tmp_path / "in")], "extractor": "trafilatura"}})
    assert texts(tmp_path / "out")[0].startswith("Grüße from page 1 with some words")


# ---- the guard ---------------------------------------------------------------------------------------------------------------


def test_whatever_an_extractor_does_is_one_failure_and_the_next_page_is_done() -> None:
    guard = Guard(misbehave, cpu_s=1, memory_mb=100)
    failures = {
        b"raise": "ValueError: bad page",
        b"crash": "crashed (SIGABRT)",
        b"hang": "took more than 1 s of CPU time",
        b"memory": "needed more than 100 MB of memory",
    }
    for data, message in failures.items():
        with pytest.raises(FailedError) as caught:
            guard(data)
        assert str(caught.value) == message
        assert guard(b"abc") == b"cba"
    guard.close()


def test_a_page_on_which_the_extractor_hangs_is_rejected(tmp_path: Path) -> None:
    deep = response(1, b"<div>" * 150_000, "Content-Type: text/html")  # resiliparse takes the square of the depth
    put(tmp_path / "in/a.warc", response(0) + deep + response(2))
    run(tmp_path / "out", {"s": source(tmp_path / "in", max_page_mb=1, extract_cpu_s=1)})
    assert len(documents(tmp_path / "out")) == 2
    [reject] = told(tmp_path / "out")
    assert (reject["line"], reject["reason"]) == (2, "failed")
    assert reject["detail"] == (
        "http://x.org/1: resiliparse took more than 1 s of CPU time; leave it out, or take the other extractor"
    )
