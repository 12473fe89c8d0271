"""Reading and writing documents: what is written is read, whatever its length and packing, and every bad line is named."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from data_tools import documents
from data_tools.dedupe.urls import url_in
from data_tools.documents import (
    LONG,
    Document,
    Line,
    Reject,
    find_files,
    raise_reject,
    read_documents,
    read_lines,
    write_documents,
)
from data_tools.files import BLOCK, InputFile, LineWriter, blocks, lines
from data_tools.mix.expression import View
from data_tools.tag.code_words import read_stars
from data_tools.tag.urls import address_of
from olmo_train.errors import ShardError
from tests.data_tools.texts import make_documents, write_lines

GOOD = {"id": "1", "text": "x", "source": "s"}
ENDINGS = ["jsonl", "jsonl.gz", "jsonl.zst"]


def error_of(path: Path) -> str:
    with pytest.raises(ShardError) as caught:
        list(read_documents(path))
    return str(caught.value)


def packed(path: Path, data: bytes) -> Path:
    """Write data as the name of the file says."""
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
    path.write_bytes(pack.get(path.suffix, bytes)(data))
    return path


def looked_at(path: Path) -> tuple[list[Line], list[Reject], list[str]]:
    """Documents, rejects and repairs of a file."""
    rejects: list[Reject] = []
    repairs: list[str] = []
    return list(read_lines(path, rejects.append, repairs.append)), rejects, repairs


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "new/folder/x.json.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    documents = [Document(d["id"], d["text"], d["source"]) for d in make_documents(50)]
    documents[3].added, documents[3].created, documents[3].metadata = "2024-01-01", "2023-01-01", {"url": ["ü"]}
    documents[4].text = ""
    documents[5].text = "one\r\ntwo\rthree\u2028four\x00\ufeff"  # none of these ends a line of the file
    documents[6].text = "a \U0001f600 " * (LONG // 6)
    assert write_documents(tmp_path / name, documents) == 50
    for number, document in enumerate(documents, 1):
        document.path, document.line = str(tmp_path / name), number
    assert list(read_documents(tmp_path / name)) == documents
    assert [line.is_long for line in looked_at(tmp_path / name)[0][5:8]] == [False, True, False]


def test_equal_documents_are_equal_bytes(tmp_path: Path) -> None:
    for ending in ENDINGS:
        for name in ("one", "two"):
            write_documents(tmp_path / f"{name}.{ending}", [Document("1", "x", "s")])
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_a_line_in_pieces_is_the_same_line(tmp_path: Path) -> None:
    with LineWriter(tmp_path / "x.jsonl.zst") as writer:
        writer.write(b"first")
        writer.write_pieces([b"a" * BLOCK, b"", b"b" * 3, b"c" * BLOCK])
        writer.write_pieces([])
        assert (writer.lines, writer.size) == (3, 6 + 2 * BLOCK + 4 + 1)
    whole = b"first\n" + b"a" * BLOCK + b"bbb" + b"c" * BLOCK + b"\n\n"
    assert b"".join(blocks(tmp_path / "x.jsonl.zst", InputFile(tmp_path / "x.jsonl.zst"))) == whole


def test_fields_without_a_value_are_not_written(tmp_path: Path) -> None:
    write_documents(tmp_path / "x.jsonl", [Document("1", "日", "s")])
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == '{"id":"1","text":"日","source":"s"}\n'


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n\n   \n{json.dumps(GOOD)}", encoding="utf-8")
    assert [d.line for d in read_documents(path)] == [2, 5]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_byte_order_mark_is_left_out_at_the_start_alone(tmp_path: Path, ending: str) -> None:
    good = json.dumps(GOOD).encode()
    found, rejects, repairs = looked_at(packed(tmp_path / f"x.{ending}", b"\xef\xbb\xbf%b\n\xef\xbb\xbf%b\n" % (good, good)))
    assert [line.raw for line in found] == [good]
    assert repairs == ["bom"]
    assert [(r.line, r.reason, r.detail) for r in rejects] == [
        (2, "not_json", "is not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at character 1; mend or remove it")
    ]


def test_half_a_surrogate_pair_becomes_a_replacement_and_is_refused_in_an_id(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    fields = '"id": "1", "source": "s", "metadata": {"\\udc00": ["\\ud800"]}'
    path.write_text(f'{{"text": "a\\ud800b\\ud83d\\ude00", {fields}}}\n', encoding="utf-8")
    [line], rejects, repairs = looked_at(path)
    assert (line.text, rejects, repairs) == ("a\ufffdb😀", [], ["surrogate"])
    assert line.values()["metadata"] == {"\ufffd": ["\ufffd"]}
    assert json.loads(line.raw)["text"] == line.text
    for name in ("id", "source"):
        write_lines(path, [GOOD, GOOD | {name: "a\ud800"}])
        assert error_of(path) == f"{path}: line 2 {name}='a\\ud800' holds half a surrogate pair; ids and sources are UTF-8"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "1",, }', "is not JSON: Expecting property name enclosed in double quotes at character 12; mend or remove it"),
        (b"9" * 5000, "is not JSON: Exceeds the limit (4300 digits) for integer string conversion"),
        (b"[1]", "is not a JSON object; a document has id, text and source"),
        (b'{"text": "x", "source": "s"}', "has no id; Dolma requires id, text and source"),
        (b'{"id": 7, "text": "x", "source": "s"}', "id=7 must be a string; Dolma requires id, text and source"),
        (b'{"id": "1", "text": ["x"], "source": "s"}', "text=['x'] must be a string"),
        (b'{"id": "1", "text": null, "source": "s"}', "text=None must be a string"),
        (b'{"id": "1", "text": "x"}', "has no source; Dolma requires"),
        (b'{"id": "1", "text": "\xe9", "source": "s"}', "is not UTF-8: byte 22 is 0xe9; convert the file"),
        (b'{"id": "1", "text": "x", "source": "s", "n": "\xed\xa0\x80"}', "is not UTF-8: byte 47 is 0xed; convert the file"),
        (b'{"id": "1", "text": "x", "source": "s", "n": NaN}', "is not JSON: NaN is no JSON number; mend or remove it"),
        (b'{"id": "1", "text": "a\nb", "source": "s"}', "is not JSON: Invalid control character"),
        (b'{"id": "1", "text": "x", "source": "s", "n": %b}' % (b"[" * 9999 + b"]" * 9999), "is not JSON: maximum recursion"),
        (b'{"id": "1", "text": "x", "source": "s"} {}', "is not JSON: Extra data at character 41; mend or remove it"),
    ],
    ids=range(14),
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bad_line_is_named(tmp_path: Path, ending: str, line: bytes, message: str) -> None:
    good = json.dumps(GOOD).encode()
    path = packed(tmp_path / f"x.{ending}", b"%b\n\n%b\n%b\n" % (good, line, good))
    bad = line.split(b"\n")[0]  # a raw newline ends the line, within a string too
    assert error_of(path).startswith(f"{path}: line 3 {message if bad == line else 'is not JSON: Unterminated string'}")
    found, rejects, _ = looked_at(path)
    assert [each.line for each in found] == [1, 4 + line.count(b"\n")]
    assert rejects[0].raw == bad


@pytest.mark.parametrize(
    "values",
    [
        b'"n": -0, "m": 1E5',
        b'"n": 12345678901234567890123, "m": 1e999',
        b'"id": "2", "id": "1"',
        b'"t\\u0065xt": "x", "n": "\\u0000"',
    ],
)
def test_what_json_allows_is_no_reject_and_can_be_read_whole(tmp_path: Path, values: bytes) -> None:
    raw = b'{"text": "-", %b, "id": "1", "source": "s"}' % values
    [line], rejects, repairs = looked_at(packed(tmp_path / "x.jsonl", b'{"text": "x", ' + raw[14:]))
    assert (rejects, repairs, line.id, line.text) == ([], [], "1", "x")
    n = json.loads(b"{%b}" % values).get("n")
    assert line.values().get("n") == n


def test_documents_before_a_bad_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\nnonsense\n")
    reader = read_documents(path)
    assert next(reader).id == "1"
    with pytest.raises(ShardError, match="line 2 is not JSON"):
        next(reader)


# ---- long lines --------------------------------------------------------------------------------------------------------------


def test_pieces_of_a_long_text_are_the_text_wherever_they_are_cut() -> None:
    text = 'é"\\\n😀\U0010ffff日x\u2028/\x7f' * 40
    for ascii in (True, False):
        json_text = json.dumps(text, ensure_ascii=ascii).replace("/", "\\/").encode()
        line = Line("1", "s", None, b"", "p", 1, json_text)
        for size in range(12, 40):
            pieces = list(line.pieces(size))
            assert "".join(pieces) == text
            assert len(pieces) > 9


def long_line(**changes: bytes) -> bytes:
    fields = {"id": b'"1"', "text": b'"%b"' % (b"x\\n" * LONG), "source": b'"s"'} | changes
    return b"{%b}" % b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in fields.items() if value)


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"text": b'"%b\xff"' % (b"x" * LONG)}, "not_utf8", "is not UTF-8 somewhere in its text; convert the file"),
        ({"metadata": b'"\xff"'}, "not_utf8", "is not UTF-8 somewhere in its text; convert the file"),
        ({"text": b"[%b]" % (b"1," * LONG + b"1")}, "wrong_type", "text is not a string; Dolma requires id, text and source, "),
        ({"id": b"7"}, "wrong_type", "Expected `str`, got `int` - at `$.id`; Dolma requires id, text and source, which are"),
        ({"source": b""}, "missing_field", "Object missing required field `source`; Dolma requires"),
        ({"text": b'"%b\\ud800"' % (b"x" * LONG)}, "not_json", "is not JSON, or holds half a surrogate pair: "),
        ({"text": b'"%b"' % (b"x" * LONG), "source": b'"s'}, "not_json", "is not JSON, or holds half a surrogate pair: "),
    ],
    ids=["text", "metadata", "list", "id", "no source", "surrogate", "no end"],
)
def test_a_bad_long_line_is_named(tmp_path: Path, changes: dict[str, bytes], reason: str, detail: str) -> None:
    found, [reject], _ = looked_at(packed(tmp_path / "x.jsonl", b"%b\n%b\n" % (long_line(**changes), json.dumps(GOOD).encode())))
    assert [line.line for line in found] == [2]
    assert (reject.line, reject.reason) == (1, reason)
    assert reject.detail.startswith(detail)


def test_a_long_line_is_read_with_the_others(tmp_path: Path) -> None:
    [line], rejects, _ = looked_at(packed(tmp_path / "x.jsonl.zst", long_line()))
    assert (rejects, line.is_long, line.text) == ([], True, "x\n" * LONG)
    assert all(len(piece) <= documents.PIECE for piece in line.pieces())


MEASURE = """
import re, sys
from pathlib import Path
from data_tools.documents import read_lines, write_documents, Document
from data_tools.files import LineWriter
write_documents(Path(sys.argv[1]).with_name("warm.jsonl.zst"), [Document("1", "x", "s")])
list(read_lines(Path(sys.argv[1]).with_name("warm.jsonl.zst"), print))
def most():  # unlike getrusage, not of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = most()
n = 0
with LineWriter(Path(sys.argv[1]).with_name("y.jsonl.zst")) as writer:
    for line in read_lines(Path(sys.argv[1]), print):
        n += sum(map(len, line.pieces()))
        writer.write(line.raw)
print(n, (most() - before) // 1024)
"""


def test_a_long_document_is_held_once(tmp_path: Path) -> None:
    with LineWriter(tmp_path / "x.jsonl.zst") as writer:
        writer.write_pieces([b'{"id":"1","source":"s","text":"', *[b"a\\n\xc3\xa9" * (BLOCK // 5)] * 40, b'"}'])
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x.jsonl.zst")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    characters, grown = map(int, done.stdout.split())
    assert characters == 3 * (BLOCK // 5) * 40
    assert grown < 64, f"{grown} MB for a line of 40 MB"


# ---- damage ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst"])
def test_a_file_that_is_cut_short_anywhere_is_named_with_the_line_before(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    write_documents(path, [Document(str(i), os.urandom(20).hex(), "s") for i in range(2_000)])
    whole = path.read_bytes()
    for keep in (len(whole) - 1, len(whole) - 5, len(whole) // 2, 100, 5, 1, 0):
        path.write_bytes(whole[:keep])
        found, rejects, _ = looked_at(path)
        assert [r.reason for r in rejects] == ["cut_short"], keep
        assert [line.id for line in found] == [str(i) for i in range(len(found))]
        assert rejects[0].line == len(found) + 1
        assert rejects[0].detail.startswith(f"damaged after line {len(found)}: ")
        assert rejects[0].detail.endswith("; the file was cut short or changed; get it again")
    kind = {"gz": "gzip", "zst": "zstd"}[ending.split(".")[1]]
    assert error_of(path) == (
        f"{path}: damaged after line 0: 0 bytes are no {kind} file; the file was cut short or changed; get it again"
    )


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst"])
def test_several_members_are_one_file_and_garbage_after_them_is_told(tmp_path: Path, ending: str) -> None:
    path, members = tmp_path / f"x.{ending}", b""
    for i in range(3):
        members += packed(path, json.dumps(GOOD | {"id": str(i)}).encode() + b"\n").read_bytes()
    path.write_bytes(members)
    assert [d.id for d in read_documents(path)] == ["0", "1", "2"]
    for end in (b"garbage", members[:7]):
        path.write_bytes(members + end)
        found, rejects, _ = looked_at(path)
        assert [line.id for line in found] == ["0", "1", "2"][: len(found)]
        assert [r.reason for r in rejects] == ["cut_short"]


def test_a_changed_byte_of_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    write_documents(path, [Document(str(i), str(i), "s") for i in range(5_000)])
    whole = path.read_bytes()
    for at in (0, len(whole) // 3, len(whole) - 5):  # the magic number, the data, the checksum
        changed = bytearray(whole)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        assert error_of(path).startswith((f"{path}: damaged after line ", f"{path}: line "))


def test_what_packs_well_is_unpacked_in_blocks(tmp_path: Path) -> None:
    for ending in ("gz", "zst"):
        path = packed(tmp_path / f"x.{ending}", b"\0" * 20 * BLOCK)
        sizes = [len(block) for block in blocks(path, InputFile(path))]
        assert sum(sizes) == 20 * BLOCK
        assert max(sizes) <= 2 * BLOCK


def test_lines_that_end_with_blocks_are_whole(tmp_path: Path) -> None:
    wanted = [b"x" * (BLOCK - 1), b"", b"y" * BLOCK, b"z" * 3 * BLOCK, b"", b"end"]
    path = packed(tmp_path / "x.jsonl", b"\n".join(wanted))
    assert [bytes(line) for line in lines(path, InputFile(path))] == wanted


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert error_of(path) == f"{path}: cannot be read after line 0: [Errno 2] No such file or directory: '{path}'; get it again"


# ---- finding ---------------------------------------------------------------------------------------------------------------


def test_a_folder_a_glob_and_a_file_name_the_same_files_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["b.jsonl", "a/x.jsonl.gz", "a/y.json.gz", "c.jsonl.zst"]
    for name in (*names, "notes.txt", "a/tokenizer.json", "part-00000.csv.gz"):
        write_lines(tmp_path / name, [GOOD])
    (tmp_path / "folder.jsonl").mkdir()
    wanted = sorted(tmp_path / name for name in names)
    assert find_files([str(tmp_path)]) == wanted
    assert find_files([f"{tmp_path}/b.jsonl", f"{tmp_path}/*/*.gz", f"{tmp_path}/a", f"{tmp_path}/c.*"]) == wanted
    assert find_files([f"{tmp_path}/*.jsonl"]) == [tmp_path / "b.jsonl"]  # folders that a glob matches are no documents
    assert find_files([f"{tmp_path}/**/*.gz"]) == sorted(
        tmp_path / n for n in ("a/x.jsonl.gz", "a/y.json.gz", "part-00000.csv.gz")
    )
    monkeypatch.chdir(tmp_path)
    assert find_files(["a/*.json.gz"]) == [Path("a/y.json.gz")]


@pytest.mark.parametrize("pattern", ["nowhere", "*.parquet", "empty"])
def test_a_pattern_without_a_match_is_an_error(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "x.jsonl", [GOOD])
    with pytest.raises(ShardError) as caught:
        find_files([f"{tmp_path}/x.jsonl", f"{tmp_path}/{pattern}"])
    assert str(caught.value) == (
        f"documents: nothing matches {tmp_path}/{pattern}; give a .jsonl, .jsonl.gz, .json.gz or .jsonl.zst file, "
        "a folder of them, or a glob"
    )


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_numbers_beyond_float64_in_the_metadata_stop_no_stage(number: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"id":"a","text":"t","source":"s","metadata":{{"url":"http://a.b/c","stars":7,"x":{number}}}}}\n')
    (line,) = read_lines(path, raise_reject)
    assert url_in(line.raw, line.id) == "a.b/c"
    assert address_of(line) == "http://a.b/c"
    assert read_stars(line, "stars") == 7
    assert View(line).metadata("stars", 0) == 7
    assert View(line).metadata("x", 0) == number
