"""Reading and writing documents: what is written is read, and every bad line is named."""

import gzip
import json
from pathlib import Path

import pytest

from data_tools.documents import Document, find_files, read_documents, write_documents
from olmo_train.errors import ShardError
from tests.data_tools.texts import make_documents, write_lines

GOOD = {"id": "1", "text": "x", "source": "s"}


def error_of(path: Path) -> str:
    with pytest.raises(ShardError) as caught:
        list(read_documents(path))
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "new/folder/x.json.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    documents = [Document(d["id"], d["text"], d["source"]) for d in make_documents(50)]
    documents[3].added, documents[3].created, documents[3].metadata = "2024-01-01", "2023-01-01", {"url": ["ü"]}
    documents[4].text = ""
    documents[5].text = "one\r\ntwo\rthree\u2028four\x00\ufeff"  # none of these ends a line of the file
    assert write_documents(tmp_path / name, documents) == 50
    for number, document in enumerate(documents, 1):
        document.path, document.line = str(tmp_path / name), number
    assert list(read_documents(tmp_path / name)) == documents


def test_equal_documents_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_documents(tmp_path / name, [Document("1", "x", "s")])
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


def test_fields_without_a_value_are_not_written(tmp_path: Path) -> None:
    write_documents(tmp_path / "x.jsonl", [Document("1", "日", "s")])
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8") == '{"id": "1", "text": "日", "source": "s"}\n'


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"\n{json.dumps(GOOD)}\n\n   \n{json.dumps(GOOD)}", encoding="utf-8")
    assert [d.line for d in read_documents(path)] == [2, 5]


def test_half_a_surrogate_pair_becomes_a_question_mark_in_text_and_is_refused_in_an_id(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "1", "text": "a\\ud800b\\ud83d\\ude00", "source": "s"}\n', encoding="utf-8")
    assert [d.text for d in read_documents(path)] == ["a?b😀"]
    for name in ("id", "source"):
        write_lines(path, [GOOD, GOOD | {name: "a\ud800"}])
        assert error_of(path) == f"{path}: line 2: {name}='a\\ud800' holds half a surrogate pair; ids and sources are UTF-8"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"id": "1",, }',
            "line 3 is not JSON: Expecting property name enclosed in double quotes at character 12; mend or remove it",
        ),
        ("\ufeff{}", "line 3 is not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at character 1; mend or remove it"),
        ("9" * 5000, "line 3 is not JSON: Exceeds the limit (4300 digits) for integer string conversion"),
        ("[1]", "line 3 is not a JSON object; a document has id, text and source"),
        ('{"text": "x", "source": "s"}', "line 3: id=None must be a string; Dolma requires id, text and source"),
        ('{"id": 7, "text": "x", "source": "s"}', "line 3: id=7 must be a string"),
        ('{"id": "1", "text": ["x"], "source": "s"}', "line 3: text=['x'] must be a string"),
        ('{"id": "1", "text": null, "source": "s"}', "line 3: text=None must be a string"),
        ('{"id": "1", "text": "x"}', "line 3: source=None must be a string"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_bad_line_is_named(tmp_path: Path, ending: str, line: str, message: str) -> None:
    path = tmp_path / f"x.{ending}"
    data = f"{json.dumps(GOOD)}\n\n{line}\n{json.dumps(GOOD)}\n".encode()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert error_of(path).startswith(f"{path}: {message}")


def test_documents_before_a_bad_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\nnonsense\n")
    reader = read_documents(path)
    assert next(reader).id == "1"
    with pytest.raises(ShardError, match="line 2 is not JSON"):
        next(reader)


def test_a_damaged_file_is_named_with_the_line_before(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    write_documents(path, [Document(str(i), str(i), "s") for i in range(20_000)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    start, end = f"{path}: damaged after line ", "; the file was cut short or changed, or is not UTF-8; get it again"
    message = error_of(path)
    assert message.startswith(start)
    assert message.endswith(f": Compressed file ended before the end-of-stream marker was reached{end}")
    assert int(message.removeprefix(start).split(":")[0]) > 5000
    for at in (0, len(whole) // 3, len(whole) - 5):  # the magic number, the data, the checksum
        changed = bytearray(whole)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        message = error_of(path)
        assert message.startswith((start, f"{path}: line "))
    path.write_bytes(whole[:10] + b"\x07" + whole[11:])  # a kind of block that does not exist
    assert error_of(path) == f"{start}0: Error -3 while decompressing data: invalid block type{end}"
    path.write_bytes(b"")
    assert error_of(path) == f"{start}0: 0 bytes are no gzip file{end}"


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": "1", "text": "\xe9", "source": "s"}\n')
    assert f"{path}: damaged after line 0: 'utf-8' codec can't decode byte 0xe9" in error_of(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'x.jsonl'}: damaged after line 0: [Errno 2] No such file" in error_of(tmp_path / "x.jsonl")


def test_zst_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl.zst", [GOOD])
    assert error_of(path) == f"{path}: .zst is not read here; unpack it with `zstd -d --rm`"


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
        f"documents: nothing matches {tmp_path}/{pattern}; give a .jsonl, .jsonl.gz or .json.gz file, a folder of them, or a glob"
    )
