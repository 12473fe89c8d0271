"""The files of an index: whole or not there, and refused where they are damaged."""

import hashlib
import json
import os
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import (
    NAME,
    Plan,
    agree_on_plan,
    map_array,
    read_index_manifest,
    read_part_record,
    read_plan,
    remove_leftovers,
    write_file,
)
from olmo_train.data.manifest import BLOCK_BYTES
from olmo_train.errors import ShardError

PLAN = Plan("f" * 64, 1000, 2**30)


def test_sums_of_a_file_are_those_of_its_bytes(tmp_path: Path) -> None:
    for n in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 7):
        data = np.random.default_rng(0).integers(0, 256, n, np.uint8)
        pieces = [data[:5], data[5:], data[:0]]
        sums = write_file(tmp_path / "x", pieces)
        assert (tmp_path / "x").read_bytes() == data.tobytes()
        assert sums.sha256 == hashlib.sha256(data).hexdigest()
        blocks = [f"{zlib.crc32(data[a : a + BLOCK_BYTES]):08x}" for a in range(0, n, BLOCK_BYTES)]
        assert sums.block_crc32 == "".join(blocks)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise ZeroDivisionError

    write_file(tmp_path / "x", [b"old"])
    with pytest.raises(ZeroDivisionError):
        write_file(tmp_path / "x", pieces())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_a_disk_that_takes_no_more_is_told_with_the_way_on(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ShardError) as caught:
            write_file(tmp_path / "x", [bytes(9_000), bytes(9_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (
        f"{tmp_path / 'x'} cannot be written: File too large; nothing half is left there. Make room, or give another output=; "
        "the same command goes on with what is finished"
    )
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed_when_they_are_old_enough_and_nothing_else(tmp_path: Path) -> None:
    for name in (".part-00000.train.sa.tmp-1", ".part-00001.train.sa.tmp-2", "part-00000.train.sa", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / ".part-00000.train.sa.tmp-1", (0, 0))
    remove_leftovers(tmp_path, 3600)
    assert {path.name for path in tmp_path.iterdir()} == {".part-00001.train.sa.tmp-2", "part-00000.train.sa", ".hidden"}
    remove_leftovers(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"part-00000.train.sa", ".hidden"}


def test_the_first_of_several_builders_decides_on_the_plan(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    assert agree_on_plan(tmp_path, PLAN) == PLAN
    assert agree_on_plan(tmp_path, Plan("f" * 64, 5, 5)) == PLAN


def test_a_damaged_plan_or_record_is_refused(tmp_path: Path) -> None:
    for name, read in (("plan.json", lambda: read_plan(tmp_path)), ("part-00003.json", lambda: read_part_record(tmp_path, 3))):
        assert read() is None
        for text in ("{", '{"a": 1}', "[]"):
            (tmp_path / name).write_text(text)
            with pytest.raises(ShardError) as caught:
                read()
            remedy = f"remove {tmp_path} and build again" if name == "plan.json" else "remove it and build again"
            assert str(caught.value).startswith(f"{tmp_path / name} cannot be used: ")
            assert str(caught.value).endswith(f"; {remedy}")


def test_a_manifest_that_is_missing_or_of_another_kind_is_refused(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / NAME
    with pytest.raises(ShardError, match=r"index.json does not exist; build an index with `olmo trace index shards=FOLDER`"):
        read_index_manifest(tmp_path)
    folder = build(IndexConfig(str(shards), output=str(tmp_path / "index"), processes=1))
    whole = json.loads((folder / NAME).read_text())
    for changed in ({**whole, "version": 2}, {**whole, "format": "x"}, {**whole, "more": 1}, {"parts": 3}, []):
        path.write_text(json.dumps(changed))
        with pytest.raises(ShardError, match=r"cannot be used: .*; build it again with `olmo trace index`"):
            read_index_manifest(tmp_path)
    path.write_text(json.dumps(whole))
    assert read_index_manifest(tmp_path) == read_index_manifest(folder)


def test_an_array_that_is_missing_or_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="x: No such file or directory; part of the index: build it again"):
        map_array(tmp_path / "x", "<u4", (3,))
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(ShardError, match="x: 11 bytes, the index says 12; build it again with `olmo trace index`"):
        map_array(tmp_path / "x", "<u4", (3,))
    (tmp_path / "x").write_bytes(bytes(12))
    assert map_array(tmp_path / "x", "<u4", (3,)).tolist() == [0, 0, 0]
