"""Parquet and Hugging Face datasets: the same documents however rows are grouped, and damage that is told."""

import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.documents import LONG
from olmo_train.errors import ConfigError
from tests.data_tools.ingest.ingested import documents, put, reasons, run, texts, told

N = 1000


def table(n: int = N) -> pa.Table:
    return pa.table(
        {
            "key": pa.array(range(n), pa.int64()),
            "doc": [{"body": f"text {i} é", "lang": "en"} for i in range(n)],
            "when": pa.array([datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)] * n, pa.timestamp("us", "UTC")),
            "tags": [["a", None]] * n,
            "blob": pa.array([b"\xff"] * n, pa.binary()),
            "score": pa.array([0.5, None] * (n // 2)),
        }
    )


FIELDS = {"id": "key", "text": "doc.body", "created": "when", "leave_out": ["blob"]}


def source(path: Path, **fields: Any) -> dict[str, Any]:
    return {"kind": "parquet", "paths": [str(path)], "fields": fields}


def test_columns_become_fields_whatever_the_row_groups(tmp_path: Path) -> None:
    for size in (7, N):
        pq.write_table(table(), put(tmp_path / str(size) / "a.parquet", b""), row_group_size=size)
        run(tmp_path / "out" / str(size), {"s": source(tmp_path / str(size), **FIELDS)})
    found = documents(tmp_path / "out/7")
    assert found[1] == {
        "id": "1", "text": "text 1 é", "source": "s", "created": "2024-01-01T00:00:00+00:00",
        "metadata": {"doc": {"lang": "en"}, "tags": ["a", None], "score": None},
    }  # fmt: skip
    assert [d["id"] for d in found] == [str(i) for i in range(N)]
    assert documents(tmp_path / f"out/{N}") == found


def test_made_ids_are_of_the_row_in_its_file(tmp_path: Path) -> None:
    for name, size in (("one", 3), ("two", 50)):
        pq.write_table(
            pa.table({"text": [f"t{i}" for i in range(50)]}), put(tmp_path / name / "x/a.parquet", b""), row_group_size=size
        )
        run(tmp_path / "out" / name, {"s": source(tmp_path / name, id=None)}, part_mb=1)
    assert documents(tmp_path / "out/one") == documents(tmp_path / "out/two")
    assert documents(tmp_path / "out/one")[49]["metadata"] == {"path": "x/a.parquet", "row": 49}


def test_bad_rows_are_named_and_the_others_read(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"ax\xffb")]
    )
    rows = pa.table({"id": ["1", "2", "3", None, "5"], "text": ["a", None, "c", "d", "e"]})
    pq.write_table(rows, tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["x", "y", "z"], "text": broken}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"id": ["p", "q", "r"], "text": ["1", "2", "3"], "n": broken}), tmp_path / "c.parquet")
    run(tmp_path / "out", {"s": source(tmp_path)})
    assert [d["id"] for d in documents(tmp_path / "out")] == ["1", "3", "5", "x", "z", "p", "r"]
    assert reasons(tmp_path / "out") == [(2, "wrong_type"), (4, "wrong_type"), (2, "not_utf8"), (2, "not_utf8")]


def test_damaged_files_are_one_reject_each(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "good.parquet", row_group_size=100, compression="zstd")
    whole = (tmp_path / "good.parquet").read_bytes()
    put(tmp_path / "bad/cut.parquet", whole[: len(whole) // 2])
    put(tmp_path / "bad/empty.parquet", b"")
    put(tmp_path / "bad/none.parquet", b"PAR1 this is none PAR1")
    changed = bytearray(whole)
    changed[20:200] = bytes(180)  # within the first row group
    put(tmp_path / "bad/changed.parquet", bytes(changed))
    run(tmp_path / "out", {"s": source(tmp_path / "bad", **FIELDS)})
    assert sorted((Path(t["path"]).name, t["reason"]) for t in told(tmp_path / "out")) == [
        (name, "cut_short") for name in ("changed.parquet", "cut.parquet", "empty.parquet", "none.parquet")
    ]
    assert [d["id"] for d in documents(tmp_path / "out")] == [str(i) for i in range(100, N)]


def test_a_long_cell_is_written_from_where_arrow_has_it(tmp_path: Path) -> None:
    text = "é\n" * LONG
    broken = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer((0).to_bytes(8) + (LONG + 1).to_bytes(8, "little")),
                                                          pa.py_buffer(b"x" * LONG + b"\xff")])  # fmt: skip
    pq.write_table(pa.table({"id": ["1", "2"], "text": [text, "short"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["3"], "text": broken}), tmp_path / "b.parquet")
    run(tmp_path / "out", {"s": source(tmp_path)})
    assert texts(tmp_path / "out") == [text, "short"]
    assert reasons(tmp_path / "out") == [(1, "not_utf8")]


def test_a_saved_dataset_gives_what_its_table_gives(tmp_path: Path) -> None:
    saved = datasets.Dataset(table())
    saved.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": saved, "test": saved.select(range(10))}).save_to_disk(tmp_path / "split")
    values: dict[str, Any] = {"kind": "huggingface", "fields": FIELDS}
    run(tmp_path / "out", {"a": values | {"dataset": str(tmp_path / "plain")}})
    run(tmp_path / "out2", {"a": values | {"dataset": str(tmp_path / "split"), "split": "test"}})
    pq.write_table(table(), put(tmp_path / "in/a.parquet", b""))
    run(tmp_path / "out3", {"a": source(tmp_path / "in", **FIELDS)})
    assert documents(tmp_path / "out") == documents(tmp_path / "out3")
    assert documents(tmp_path / "out2") == documents(tmp_path / "out3")[:10]


def test_what_is_missing_is_told_of_all_sources_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    pq.write_table(table(10), put(tmp_path / "in/a.parquet", b""))
    datasets.DatasetDict({"train": datasets.Dataset(table(10))}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError) as caught:
        run(
            tmp_path / "out",
            {
                "a": source(tmp_path / "in", text="body", created="doc.when"),
                "b": {"kind": "huggingface", "dataset": str(tmp_path / "saved"), "split": "test"},
                "c": {"kind": "huggingface", "dataset": "nobody/has-this"},
                "d": {"kind": "jsonl", "paths": [f"{tmp_path}/none/*"]},
            },
        )
    there = "it has blob, doc, key, score, tags, when"
    [no_id, no_text, no_split, no_hub, none] = caught.value.problems
    assert no_id == f"sources.a.fields.id: {tmp_path / 'in/a.parquet'} has no column id; {there}; fields.id=null makes ids"
    assert no_text == f"sources.a.fields.text: {tmp_path / 'in/a.parquet'} has no column body; {there}"
    assert no_split == f"sources.b.split=test is not one of those of dataset={tmp_path / 'saved'}: train"
    assert no_hub.startswith("sources.c.dataset=nobody/has-this cannot be loaded: ")
    assert no_hub.endswith(
        "; without a network give the folder of a dataset that save_to_disk wrote, or its files with kind=parquet or kind=jsonl"
    )
    assert none == f"sources.d.paths: nothing matches {tmp_path}/none/*; give a file, a folder or a glob"
    assert not (tmp_path / "out").exists()
