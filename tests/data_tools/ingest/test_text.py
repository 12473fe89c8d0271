"""Text files and source trees: every encoding by the stated rule, every file that is left out told or counted."""

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from data_tools.documents import LONG
from tests.data_tools.ingest.ingested import contents, documents, put, reasons, run, texts, told


def source(path: Path, **values: Any) -> dict[str, Any]:
    return {"kind": "text", "paths": [str(path)], **values}


ENCODED = {
    "utf8": (b"h\xc3\xa9", {}, "hé", None),
    "bom": (b"\xef\xbb\xbfh\xc3\xa9", {}, "hé", None),
    "utf16": ("hé\n日".encode("utf-16"), {}, "hé\n日", "utf-16-le"),
    "utf16be": (b"\xfe\xff" + "hé".encode("utf-16-be"), {}, "hé", "utf-16-be"),
    "utf32": ("hé".encode("utf-32"), {}, "hé", "utf-32-le"),
    "named": (b"h\xe9\x80", {"encodings": ["cp1252"]}, "hé€", "cp1252"),
    "second": (b"h\x81", {"encodings": ["cp1252", "latin-1"]}, "h\x81", "iso8859-1"),
    "unmarked": ("hé日".encode("utf-16-le"), {"encodings": ["utf-16-le"]}, "hé日", "utf-16-le"),
    "replaced": (b"h\xe9\0x", {"on_bad_bytes": "replace"}, "h\ufffd\ufffdx", None),
    "first": (b"h\xc3\xa9", {"encodings": ["latin-1"]}, "hé", None),
}


@pytest.mark.parametrize("long", [False, True])
def test_encodings_are_found_by_the_rule_in_files_of_any_length(tmp_path: Path, long: bool) -> None:
    sources = {}
    tail = {"utf16": "utf-16-le", "utf16be": "utf-16-be", "utf32": "utf-32-le", "unmarked": "utf-16-le"}
    for name in ("bom", "utf16", "named", "second", "replaced") if long else ENCODED:
        data, values, _, _ = ENCODED[name]
        more = ("x é日😀"[: 3 if name in ("named", "second", "replaced") else 6] * (LONG // 4)) if long else ""
        more = more.replace("é", "") if name in ("named", "second", "replaced") else more
        put(tmp_path / name / "a.txt", data + more.encode(tail.get(name, "utf-8")))
        sources[name] = source(tmp_path / name, **values)
    run(tmp_path / "out", sources)
    for name in sources:
        [found] = documents(tmp_path / "out", name)
        assert found["text"].rstrip("x é日😀")[:4] == ENCODED[name][2].rstrip("x é日😀")[:4]
        assert len(found["text"]) >= (LONG // 2 if long else 1)
        assert long or found["text"] == ENCODED[name][2]
        assert found["metadata"].get("encoding") == ENCODED[name][3]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"h\xe9llo", "is no text in utf-8: 'utf-8' codec can't decode byte 0xe9 in position 1"),
        (b"ab\0c", "holds NUL at character 3: binary"),
        (b"\xff\xfea\0b", "is no text in utf-16-le: 'utf-16-le' codec can't decode byte 0x62"),
        (b"\xef\xbb\xbf\xff", "is no text in utf-8: "),
        (b"x" * LONG + b"\xe9x", "is no text in utf-8: 'utf-8' codec can't decode byte 0xe9 in position"),
        (
            b"x" * LONG + b"\xc3",
            "is no text in utf-8: 'utf-8' codec can't decode byte 0xc3 in position 0: unexpected end of data",
        ),
    ],
    ids=["latin", "nul", "half", "bom", "long", "cut"],
)
def test_what_is_no_text_is_rejected(tmp_path: Path, data: bytes, detail: str) -> None:
    put(tmp_path / "in/a.txt", data)
    run(tmp_path / "out", {"s": source(tmp_path / "in")})
    [reject] = told(tmp_path / "out")
    assert (reject["reason"], reject["path"], documents(tmp_path / "out")) == ("not_text", str(tmp_path / "in/a.txt"), [])
    assert reject["detail"].startswith(detail)


def test_files_lines_and_what_stands_between_separators_are_documents(tmp_path: Path) -> None:
    text = "one\r\n\ntwo é\n---\n---\nthree\xff\n  \nfour".encode("latin-1")
    put(tmp_path / "in/sub/a.txt", text)
    put(tmp_path / "in/b.txt.gz", gzip.compress(b"packed"))
    put(tmp_path / "in/empty.txt", b"")
    put(tmp_path / "in/other.png", b"x")
    run(tmp_path / "file", {"s": source(tmp_path / "in", encodings=["latin-1"])})
    assert texts(tmp_path / "file") == ["packed", text.decode("latin-1")]
    assert [d["metadata"]["path"] for d in documents(tmp_path / "file")] == ["b.txt", "sub/a.txt"]
    assert reasons(tmp_path / "file", "dropped") == [(0, "empty")]
    run(tmp_path / "line", {"s": source(tmp_path / "in", per="line", encodings=["latin-1"])})
    assert texts(tmp_path / "line") == ["packed", "one", "two é", "---", "---", "threeÿ", "four"]
    assert [d["metadata"]["byte"] for d in documents(tmp_path / "line")] == [0, 0, 6, 12, 16, 20, 30]
    assert reasons(tmp_path / "line", "dropped") == [(7, "empty")]
    run(
        tmp_path / "cut",
        {"s": source(tmp_path / "in", per="separator", separator="---\\n", include=["sub/*"], on_bad_bytes="replace")},
    )
    assert texts(tmp_path / "cut") == ["one\r\n\ntwo \ufffd\n", "three\ufffd\n  \nfour"]


@pytest.mark.parametrize("separator", ["\n", "\n\n\n", "<|end|>\n", "aba"])
def test_ranges_of_a_file_have_the_records_of_the_whole(tmp_path: Path, separator: str) -> None:
    text = "".join(f"document {i} {'x' * 700}{separator * (1 + i % 3)}" + "\n" * (i % 2) for i in range(3_000))
    put(tmp_path / "in/a.txt", text)
    wanted = [piece for piece in text.split(separator) if piece.strip()]
    values = {"per": "separator", "separator": separator.replace("\n", "\\n")}
    totals = run(tmp_path / "out", {"s": source(tmp_path / "in", **values)}, part_mb=1)
    assert texts(tmp_path / "out") == wanted
    assert totals["documents_out"] == len({d["id"] for d in documents(tmp_path / "out")}) == len(wanted)


def test_a_tree_gives_sources_with_language_licence_and_declared_encoding(tmp_path: Path) -> None:
    root = tmp_path / "in"
    files = {
        "LICENSE": b"MIT", "a.py": b"#!/usr/bin/python\n# -*- coding: latin-1 -*-\nx = '\xc3\xa9'\n", "lib/COPYING.txt": b"GPL",
        "lib/b.h": b"// SPDX-License-Identifier: BSD-3-Clause */\nint x;", "Makefile": b"all:", "c.py": b"x = 1\n\n# coding: latin-1\n",
        "bad.py": b"x = '\xe9'", "bin.c": b"\x7fELF\0\0", "image.png": b"x", "node_modules/x/y.js": b"1", ".git/hooks/a.py": b"1",
        "x.min.js": b"1", ".hidden.py": b"1", "d/koi.py": b"# vim: set fileencoding=koi8-r :\nx = '" + "привет".encode("koi8-r") + b"'",
        "d/e.PY": b"y", "d/unknown.py": b"# coding: klingon\nz",
    }  # fmt: skip
    for name, data in files.items():
        put(root / name, data)
    os.symlink(root / "a.py", root / "link.py")
    totals = run(tmp_path / "out", {"s": {"kind": "tree", "paths": [str(root)], "exclude": ["c.py"]}})
    found = {d["metadata"].pop("path"): d for d in documents(tmp_path / "out")}
    assert {name: d["metadata"] for name, d in found.items()} == {
        "Makefile": {"language": "Makefile", "license_file": "LICENSE"},
        "a.py": {"language": "Python", "license_file": "LICENSE", "encoding": "iso8859-1"},
        "d/e.PY": {"language": "Python", "license_file": "LICENSE"},
        "d/koi.py": {"language": "Python", "license_file": "LICENSE", "encoding": "koi8-r"},
        "d/unknown.py": {"language": "Python", "license_file": "LICENSE"},
        "lib/COPYING.txt": {"language": "Text", "license_file": "lib/COPYING.txt"},
        "lib/b.h": {"language": "C", "license_file": "lib/COPYING.txt", "license": "BSD-3-Clause"},
    }
    assert found["a.py"]["text"].endswith("x = 'Ã©'\n")  # as Python itself reads it
    assert "привет" in found["d/koi.py"]["text"]
    assert [(t["reason"], Path(t["path"]).name) for t in told(tmp_path / "out")] == [("not_text", "bad.py")]
    assert totals["skipped"] == {"binary": 1}
    assert totals["inputs"]["s"]["files_skipped"] == {
        "excluded": 1, "folders vendored": 2, "generated": 1, "hidden": 1, "links": 1, "other ending": 2,
    }  # fmt: skip
    run(tmp_path / "all", {"s": {"kind": "tree", "paths": [str(root)], "include": ["*.js"], "skip_vendored": False}})
    assert sorted(texts(tmp_path / "all")) == ["1", "1"]


def test_where_files_lie_does_not_change_a_byte(tmp_path: Path) -> None:
    for root in ("one", "two/deep"):
        for name in ("b/x.txt", "a.txt", "b.txt"):
            put(tmp_path / root / name, name)
    run(tmp_path / "1", {"s": source(tmp_path / "one")})
    run(
        tmp_path / "2",
        {"s": source(tmp_path / "two/deep") | {"paths": [f"{tmp_path}/two/deep/*.txt", f"{tmp_path}/two/deep/**/*.txt"]}},
    )
    one, two = ({k: v for k, v in contents(tmp_path / n).items() if k.startswith("documents")} for n in "12")
    assert one == two
    assert len(one) == 1


def test_a_packed_file_that_is_cut_short_is_one_reject(tmp_path: Path) -> None:
    put(tmp_path / "in/a.txt.gz", gzip.compress(os.urandom(1000).hex().encode())[:-9])
    put(tmp_path / "in/b.txt", "b")
    run(tmp_path / "out", {"s": source(tmp_path / "in")})
    assert (reasons(tmp_path / "out"), texts(tmp_path / "out")) == ([(0, "cut_short")], ["b"])
