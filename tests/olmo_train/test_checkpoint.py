"""A step folder is complete or absent, checksummed, and readable under any other sharding."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from olmo_train.checkpoint import (
    Shard,
    StreamedShard,
    commit,
    load_rows,
    read_manifest,
    read_state,
    remove_step,
    temporary_folder,
    verify_files,
    write_rank,
    write_safetensors,
)
from olmo_train.errors import CheckpointError
from olmo_train.step_folder import MANIFEST, list_steps, step_name

TEXTS = {"state.json": json.dumps({"step": 7}), "config.yaml": "a: 1\n"}
TENSORS = {
    "model": {"w": torch.arange(70.0).view(10, 7), "bf": torch.randn(5, 2).bfloat16(), "one": torch.randn(1)},
    "optim": {"m/w": torch.randn(10, 7), "d": torch.randn(3, 2, 2).double()},
    "rng": {"torch/0": torch.randint(0, 255, (100,), dtype=torch.uint8)},
}  # fmt: skip


def cut(tensor: Tensor, rank: int, n_ranks: int) -> Shard:
    """As FSDP2 cuts: equal parts, the last ones short or empty."""
    per_rank = -(-len(tensor) // n_ranks)
    start = min(rank * per_rank, len(tensor))
    return Shard(tensor[start : start + per_rank], start, tuple(tensor.shape))


def save(steps: Path, step: int = 7, n_ranks: int = 3, attempt: str = "abcd") -> Path:
    folder = temporary_folder(steps, step, attempt)
    for rank in range(n_ranks):
        write_rank(folder, rank, n_ranks, {g: {k: cut(t, rank, n_ranks) for k, t in ts.items()} for g, ts in TENSORS.items()})
    assert commit(folder, steps / step_name(step), n_ranks, {"step": step, "kind": "permanent"}, TEXTS, threading.Event())
    return steps / step_name(step)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
def test_what_is_written_on_some_ranks_is_read_on_others(tmp_path: Path, n_ranks: int) -> None:
    folder = save(tmp_path, n_ranks=n_ranks)
    manifest = read_manifest(folder)
    assert verify_files(folder, manifest) == []
    for group, tensors in TENSORS.items():
        whole = load_rows(folder, manifest, group, dict.fromkeys(tensors))
        assert all(torch.equal(whole[k], t) and whole[k].dtype == t.dtype for k, t in tensors.items())
    for readers in (1, 2, 4, 11):
        for rank in range(readers):
            rows = {k: (s.start, s.start + len(s.tensor)) for k, t in TENSORS["model"].items() for s in [cut(t, rank, readers)]}
            for k, part in load_rows(folder, manifest, "model", rows).items():
                assert torch.equal(part, TENSORS["model"][k][rows[k][0] : rows[k][1]])


def test_its_files_are_plain_safetensors_and_json(tmp_path: Path) -> None:
    folder = save(tmp_path, n_ranks=2)
    parts = [load_file(folder / f"model-0000{rank}-of-00002.safetensors") for rank in range(2)]
    assert torch.equal(torch.cat([parts[0]["w"], parts[1]["w"]]), TENSORS["model"]["w"])
    assert "one" not in parts[1]  # a rank without rows of a tensor does not mention it
    assert read_state(folder) == {"step": 7}
    assert not list(folder.glob("rank-*"))
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json", ".yaml"}  # and nothing a reader must unpickle


def test_shards_read_while_they_are_written_make_the_same_files(tmp_path: Path) -> None:
    tensors, alive = TENSORS["model"], []

    def streamed(tensor: Tensor) -> StreamedShard:
        def pieces() -> Iterator[Tensor]:
            for start in range(0, len(tensor), 2):
                alive.append(start)
                yield tensor[start : start + 2]

        return StreamedShard(tensor.dtype, 0, len(tensor), tuple(tensor.shape), pieces)

    write_rank(tmp_path / "a", 0, 1, {"model": {name: Shard(tensor, 0, tuple(tensor.shape)) for name, tensor in tensors.items()}})
    write_rank(tmp_path / "b", 0, 1, {"model": {name: streamed(tensor) for name, tensor in tensors.items()}})
    assert len(alive) == 5 + 3 + 1
    for name in ("model-00000-of-00001.safetensors", "rank-00000.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_source_of_pieces_goes_on_from_file_to_file(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(12.0).view(4, 3), "b": torch.randn(2, 5).bfloat16(), "c": torch.ones(7)}
    source = iter([tensors["a"][:1], tensors["a"][1:], tensors["b"], tensors["c"][:3], tensors["c"][3:]])
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for file, names in (("one", ["a", "b"]), ("two", ["c"])):
        written = write_safetensors(tmp_path / file, {name: specs[name] for name in names}, source, {"format": "pt"}, True)
        data = (tmp_path / file).read_bytes()
        assert (written.bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        loaded = load_file(tmp_path / file)
        assert list(written.tensors) == names
        for name in names:
            assert torch.equal(loaded[name], tensors[name])
            raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
            assert written.tensors[name] == hashlib.sha256(raw).hexdigest()
    assert safe_open(str(tmp_path / "one"), "pt").metadata() == {"format": "pt"}
    assert next(source, None) is None
    assert write_safetensors(tmp_path / "three", {}, []).tensors == {}


def test_nothing_has_the_name_before_it_is_whole(tmp_path: Path) -> None:
    folder = temporary_folder(tmp_path, 7, "abcd")
    write_rank(folder, 0, 2, {"model": {"w": Shard(torch.ones(2), 0, (2,))}})
    cancelled = threading.Event()
    thread = threading.Thread(target=commit, args=(folder, tmp_path / step_name(7), 2, {}, TEXTS, cancelled))
    thread.start()  # waits for rank 1, which never comes
    assert list_steps(tmp_path) == []
    cancelled.set()
    thread.join()
    assert list_steps(tmp_path) == []
    assert not (tmp_path / step_name(7)).exists()


def test_leftovers_of_another_start_are_not_mistaken_for_records(tmp_path: Path) -> None:
    write_rank(temporary_folder(tmp_path, 7, "old"), 1, 2, {"model": {}})
    write_rank(temporary_folder(tmp_path, 7, "new"), 0, 2, {"model": {}})
    done = threading.Event()
    done.set()
    assert not commit(temporary_folder(tmp_path, 7, "new"), tmp_path / step_name(7), 2, {}, TEXTS, done)


def test_a_step_is_never_overwritten(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(CheckpointError, match="step00000007 exists already; a step folder is never overwritten"):
        save(tmp_path, attempt="other")
    assert verify_files(tmp_path / step_name(7), read_manifest(tmp_path / step_name(7))) == []


def test_steps_are_listed_by_number_and_only_when_finished(tmp_path: Path) -> None:
    for step in (100, 7, 20):
        save(tmp_path, step)
    (tmp_path / "step00000300").mkdir()  # no manifest
    (tmp_path / ".step00000400.tmp-x").mkdir()
    (tmp_path / "stepping").mkdir()
    assert [step for step, _ in list_steps(tmp_path)] == [7, 20, 100]
    assert list_steps(tmp_path / "nowhere") == []
    remove_step(tmp_path / step_name(20))
    assert [step for step, _ in list_steps(tmp_path)] == [7, 100]
    assert not list(tmp_path.glob("*deleted*"))


@pytest.mark.parametrize("place", [0.001, 0.1, 0.5, 0.9, 0.9999])
def test_every_flipped_bit_is_noticed(tmp_path: Path, place: float) -> None:
    """torch's own format loads four of these five without a word."""
    folder = save(tmp_path)
    for name in read_manifest(folder)["files"]:
        path = folder / name
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 1 << 3
        path.write_bytes(data)
        (problem,) = verify_files(folder, read_manifest(folder))
        assert problem.startswith(f"{path}: SHA-256 ")
        assert "its content changed" in problem
        data[int(place * len(data))] ^= 1 << 3
        path.write_bytes(data)


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path)
    path = folder / "optim-00001-of-00003.safetensors"
    size = path.stat().st_size
    os.truncate(path, 50)
    assert verify_files(folder, read_manifest(folder)) == [f"{path}: 50 bytes, the manifest says {size}"]
    with pytest.raises(CheckpointError, match="the optim file cannot be read: .*; check it with `olmo checkpoints verify"):
        load_rows(folder, read_manifest(folder), "optim", {"m/w": None})
    path.unlink()
    assert verify_files(folder, read_manifest(folder)) == [f"{path}: No such file or directory"]


def test_bad_manifests_and_states_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[:-10])
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        read_manifest(folder)
    (folder / MANIFEST).write_text(text.replace("olmo_train.step", "other"))
    with pytest.raises(CheckpointError, match=r"is not of format olmo_train\.step version 1"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="not a finished step folder; see the finished ones with `olmo checkpoints list`"):
        read_manifest(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        read_state(folder)


def test_a_tensor_that_is_not_there_and_rows_that_are_not_there(tmp_path: Path) -> None:
    folder = save(tmp_path)
    manifest = read_manifest(folder)
    with pytest.raises(CheckpointError, match=r"no model tensor 'v' \(and 0 more\); it was written by another model"):
        load_rows(folder, manifest, "model", {"v": None})
    manifest["tensors"]["model"]["w"]["shards"].pop(1)
    with pytest.raises(CheckpointError, match="model tensor 'w' has no rows from 4 on, wanted up to 10"):
        load_rows(folder, manifest, "model", {"w": None})


def test_a_full_disk_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    """On a real file system of 64 KiB, where root may mount one; elsewhere a folder that cannot be written."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = os.geteuid() == 0 and os.system(f"mount -t tmpfs -o size=64k tmpfs {small} 2>/dev/null") == 0
    if not mounted:
        shutil.rmtree(small)
        small.write_text("a file where a folder should be")
    try:
        with pytest.raises(CheckpointError) as caught:
            write_rank(temporary_folder(small, 1, "x"), 0, 1, {"model": {"w": Shard(torch.ones(100_000), 0, (100_000,))}})
        text = str(caught.value)
        assert ("No space left on device" if mounted else "Not a directory") in text
        assert "free space or mend the file system, the run's other checkpoints are untouched" in text
        if mounted:
            assert "model-00000-of-00001.safetensors" in text
    finally:
        if mounted:
            os.system(f"umount {small}")
