"""Files of documents and the names of their parts: each file once, nothing that a stage wrote, no two parts of one name."""

import os
from pathlib import Path

import pytest

from data_tools.datasets import DocumentFile, find_document_files, part_names
from data_tools.files import LineWriter, remove_temporaries, temporary_name
from olmo_train.errors import ShardError
from tests.data_tools.texts import write_lines


def test_a_file_that_is_given_twice_is_told(tmp_path: Path) -> None:
    write_lines(tmp_path / "a/documents/x.jsonl", [])
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ShardError) as caught:
        find_document_files([str(tmp_path / "a"), str(tmp_path / "b")])
    files = [tmp_path / name / "documents/x.jsonl" for name in "ab"]
    assert str(caught.value) == f"documents: {files[0]} and {files[1]} are the same file; give it once"
    assert len(find_document_files([str(tmp_path / "a"), str(files[0])])) == 1


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")).touch()
    with pytest.raises(ShardError, match=r"documents: '.*udcff.jsonl' has a name that is not UTF-8; rename it"):
        find_document_files([str(tmp_path)])


def test_what_stages_wrote_into_a_folder_of_documents_is_none_of_them(tmp_path: Path) -> None:
    for name in ("x.jsonl", "web/stages/y.jsonl", "attributes/z.jsonl"):  # the names alone say nothing
        write_lines(tmp_path / name, [])
    want = find_document_files([str(tmp_path)])
    assert len(want) == 3
    write_lines(tmp_path / "attributes/rules/x.jsonl", [])
    write_lines(tmp_path / "stages/attributes-rules/stage.json", [])
    write_lines(tmp_path / "stages/attributes-rules/quarantine/tag-x.jsonl", [])
    assert find_document_files([str(tmp_path)]) == want
    with pytest.raises(ShardError, match=r"documents: .*stages hold attributes and records of stages, but no documents"):
        find_document_files([str(tmp_path / "stages")])


def test_parts_have_names_of_their_own_that_are_short_enough() -> None:
    names = ["a__b.jsonl", "a/b.jsonl", "c/d.jsonl", f"{'é' * 120}.jsonl"]
    found = part_names([DocumentFile("x", name) for name in names])
    assert len(set(found)) == 4
    assert found[2] == "c__d.jsonl"
    assert all(name.startswith("a__b.jsonl~") for name in found[:2])
    assert len(found[3].encode()) < 170
    assert part_names([DocumentFile(x, "d.jsonl") for x in "xyx"][:2]) == ["000__d.jsonl", "001__d.jsonl"]


@pytest.mark.parametrize(
    "name", ["é" * 124 + ".jsonl", "v1.5 " + "long " * 48 + ".jsonl.gz", "x" * 244 + ".jsonl.zst", "new\nline.gz"]
)
def test_a_file_of_any_name_is_written_under_a_temporary_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    temporary = temporary_name(path)
    assert temporary.suffix == path.suffix
    temporary.touch()
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with LineWriter(path) as writer:
        writer.write(b"x")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_temporary_name_is_written_as_it_is(tmp_path: Path) -> None:
    temporary = temporary_name(tmp_path / "x.jsonl")
    writer = LineWriter(temporary)
    assert list(tmp_path.iterdir()) == [temporary]
    writer.discard()
    assert list(tmp_path.iterdir()) == []
