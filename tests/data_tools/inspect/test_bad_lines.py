"""Looking into a dataset that has lines which are no documents."""

from pathlib import Path

import pytest

from data_tools.datasets import AttributeWriter
from data_tools.inspect import diff, find, show


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "web" / "documents" / "x.jsonl"
    path.parent.mkdir(parents=True)
    lines = ['{"id":"a","text":"one","source":"web"}', "not json", "", '{"id":"b","text":"two","source":"web"}']
    path.write_text("\n".join(lines) + "\n")
    writer = AttributeWriter(tmp_path / "web" / "attributes" / "rules" / "x.jsonl")
    for number, name in enumerate("ab"):
        writer.write(name, "web", {"rules__t__number": [[0, 3, number]]})
    writer.close()
    return tmp_path / "web"


def test_attributes_are_found_behind_bad_and_blank_lines(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find.main(["b", str(dataset)])
    show.main([str(dataset), "--id", "b"])
    told = capsys.readouterr().out
    assert "x.jsonl line 4" in told
    assert told.count("rules__t__number: 1") == 2


def test_a_difference_leaves_bad_lines_out_and_counts_them(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_text('{"id":"a","text":"one","source":"web"}\n')
    diff.main([str(dataset), str(tmp_path / "other.jsonl")])
    told = capsys.readouterr().out
    assert "2 documents; 1 lines or ends of files are none, and left out" in told
    assert "only in A: 1 (web 1)" in told
