"""Differences of two datasets or shards, against a comparison of everything in memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.inspect import diff
from tests.data_tools.inspect.pipeline import Made
from tests.data_tools.inspect.test_find import told
from tests.data_tools.texts import refusal, write_lines


def documents(*rows: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [{"id": i, "source": source, "text": text} for source, i, text in rows]


A = documents(("s", "1", "x"), ("s", "2", "y"), ("t", "1", "z"), ("s", "3", "p"), ("s", "3", "q"), ("s", "4", "c"))
B = documents(
    ("s", "3", "q"), ("s", "3", "p"), ("s", "1", "x"), ("s", "2", "Y"), ("u", "1", "z"), ("s", "4", "c"), ("s", "4", "c")
)


@pytest.mark.parametrize("range_bytes", [2**25, 40])
def test_every_kind_of_difference_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, range_bytes: int
) -> None:
    monkeypatch.setattr(diff, "RANGE_BYTES", range_bytes)
    write_lines(tmp_path / "a/documents/x.jsonl", A)
    write_lines(tmp_path / "b/documents/1.jsonl", B[:3])
    write_lines(tmp_path / "b/documents/2.jsonl", B[3:])
    values = json.loads(told(capsys, diff.main, tmp_path / "a", tmp_path / "b", "--json"))
    assert values["same"] == 2  # s/1, and s/3 whose two texts stand in another order
    assert values["different"] == {"only_a": {"t": 1}, "only_b": {"u": 1}, "text": {"s": 1}, "attributes": {}, "copies": {"s": 1}}
    assert values["examples"]["text"] == [f"'2' ({tmp_path}/a/documents/x.jsonl line 2)"]
    assert (values["a"]["documents"], values["b"]["documents"]) == (6, 7)
    assert "in both with another text: 1 (s 1)" in told(capsys, diff.main, tmp_path / "a", tmp_path / "b")


def test_a_stage_shows_what_it_dropped_and_changed(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(told(capsys, diff.main, "base", "mixed", "--json"))
    assert values["different"]["only_a"] == {"web": 1}
    assert values["different"]["text"] == {"books": 1}
    assert values["same"] == 40
    values = json.loads(told(capsys, diff.main, "shards", "shards", "--json"))
    assert (values["same"], sum(map(len, values["different"].values()))) == (41, 0)
    message = "base and shards: one is a dataset, the other shards; give two of a kind"
    assert refusal(diff.main, ["base", "shards"], capsys) == message


def test_other_attributes_are_a_difference(own: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    from data_tools.datasets import AttributeWriter, read_attributes

    shutil.copytree("base", tmp_path / "again")
    path = Path("base/attributes/rules/books.jsonl.zst")
    out = AttributeWriter(tmp_path / "again/attributes/rules/books.jsonl.zst")
    for number, (i, attributes) in enumerate(read_attributes(path)):
        out.write(i, "books", attributes if number != 2 else {"rules__length__characters": [[0, 1, 7.0]]})
    out.close()
    values = json.loads(told(capsys, diff.main, "base", tmp_path / "again", "--json"))
    assert values["different"]["attributes"] == {"books": 1}
    assert values["same"] == 41
