"""A save by way of the node's disk is the save without it, and a disk that fails costs a warning."""

import shutil
from pathlib import Path

import pytest
import torch

from olmo_train import staging
from olmo_train.checkpoint import Shard, write_rank
from olmo_train.errors import CheckpointError
from olmo_train.staging import Stage
from tests.olmo_train.test_journal import largest_file
from tests.runs import run_training, small, weights

GROUPS = {
    "model": {"w": Shard(torch.randn(100, 30), 0, (100, 30)), "b": Shard(torch.randn(7), 0, (7,))},
    "optim": {"m/w": Shard(torch.randn(100, 30), 0, (100, 30))},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def direct(tmp_path: Path) -> dict[str, bytes]:
    write_rank(tmp_path / "direct", 0, 1, GROUPS)
    return contents(tmp_path / "direct")


def test_the_files_are_the_same_and_the_stage_is_empty_afterwards(tmp_path: Path, direct: dict[str, bytes]) -> None:
    stage = Stage(str(tmp_path / "stage"), tmp_path / "steps", "abcd", 0)
    stage.write_rank(tmp_path / "shared", 1, GROUPS)
    assert contents(tmp_path / "shared") == direct
    assert [path for path in (tmp_path / "stage").rglob("*") if path.is_file()] == []


def test_what_a_killed_start_left_is_removed_and_another_runs_is_not(tmp_path: Path) -> None:
    for attempt, steps in (("old", "steps"), ("abcd", "steps"), ("other", "others")):
        folder = Stage(str(tmp_path), tmp_path / steps, attempt, 0).folder
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(b"half")
    Stage(str(tmp_path), tmp_path / "steps", "abcd", 1).clear()
    assert sorted(path.parts[-3] for path in tmp_path.rglob("model")) == ["abcd", "other"]
    Stage(str(tmp_path / "none"), tmp_path / "steps", "abcd", 1).clear()


@pytest.mark.parametrize(
    ("stage_dir", "why"),
    [("FILE/stage", r"Not a directory"), ("$NO_SUCH_VARIABLE/stage", r"stage_dir=\$NO_SUCH_VARIABLE/stage: \$NO_SUCH_VARIABLE is not set in the environment of this node")],
)  # fmt: skip
def test_a_stage_that_is_not_there_is_passed_by_loudly(
    tmp_path: Path, direct: dict[str, bytes], stage_dir: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    stage = Stage(stage_dir.replace("FILE", str(tmp_path / "file")), tmp_path / "steps", "abcd", 0)
    stage.write_rank(tmp_path / "shared", 1, GROUPS)
    assert contents(tmp_path / "shared") == direct
    (text,) = caplog.messages
    assert text.startswith("rank 0: checkpoint.stage_dir")
    assert text.endswith(f"; this save is written straight to {tmp_path / 'shared'}")
    assert why.replace("\\", "") in text


def test_a_full_stage_is_passed_by_and_emptied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(str(tmp_path / "stage"), tmp_path / "steps", "abcd", 0)
    with largest_file(8000), pytest.raises(CheckpointError, match="shared/model-00000-of-00001.safetensors: File too large"):
        stage.write_rank(tmp_path / "shared", 1, GROUPS)  # here the shared disk is full too
    assert "model-00000-of-00001.safetensors: File too large; this save is written straight to" in caplog.text
    assert not stage.folder.exists()


def test_a_stage_that_gives_back_other_bytes_is_found_out(
    tmp_path: Path, direct: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def from_a_failing_disk(source: Path, target: Path) -> str:
        data = bytearray(source.read_bytes())
        data[len(data) // 2] ^= 1
        source.write_bytes(bytes(data))
        return copy(source, target)

    copy = staging.copy_hashed
    monkeypatch.setattr(staging, "copy_hashed", from_a_failing_disk)
    Stage(str(tmp_path / "stage"), tmp_path / "steps", "abcd", 0).write_rank(tmp_path / "shared", 1, GROUPS)
    assert contents(tmp_path / "shared") == direct
    assert "and read back with" in caplog.text
    assert "the disk of this node is failing; this save is written straight to" in caplog.text


def test_a_shared_disk_that_fails_is_not_the_stages_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    stage = Stage(str(tmp_path / "stage"), tmp_path / "steps", "abcd", 0)
    with pytest.raises(CheckpointError, match=r"file/shared: Not a directory; free space or mend the file system"):
        stage.write_rank(tmp_path / "file/shared", 1, GROUPS)
    assert not stage.folder.exists()


def test_a_run_saves_by_way_of_its_stage(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "direct"), 2)
    run_training(small(shards, tmp_path / "staged", f"checkpoint.stage_dir={tmp_path}/nvme"), 2)
    assert weights(tmp_path / "staged", 10) == weights(tmp_path / "direct", 10)
    assert [path for path in (tmp_path / "nvme").rglob("*") if path.is_file()] == []
    shutil.rmtree(tmp_path / "nvme")
