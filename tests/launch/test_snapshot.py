"""The code of a job: copied as it is, known by a hash that ranks compute too."""

import json
import subprocess
from pathlib import Path

import pytest

from launch.snapshot import KEPT, describe_code, share_snapshot, take_snapshot
from olmo_train.code import code_sha256
from olmo_train.errors import ConfigError


def project(folder: Path) -> Path:
    for name, text in {
        "olmo_train/a.py": "a = 1\n",
        "configs/train.yaml": "seed: 1\n",
        "launch/__init__.py": "",
        "notes.txt": "x",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def git(folder: Path, *words: str) -> None:
    own = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *own, *words], cwd=folder, check=True, capture_output=True)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_hash_knows_contents_and_names_and_nothing_else(tmp_path: Path) -> None:
    root = project(tmp_path / "a")
    before = code_sha256(root)
    assert code_sha256(project(tmp_path / "b")) == before
    (root / "notes.txt").write_text("y")
    (root / "olmo_train/__pycache__").mkdir()
    (root / "olmo_train/__pycache__/a.pyc").write_text("y")
    assert code_sha256(root) == before
    (root / "olmo_train/a.py").write_text("a = 2\n")
    changed = code_sha256(root)
    (root / "olmo_train/a.py").rename(root / "olmo_train/b.py")
    assert len({before, changed, code_sha256(root)}) == 3


def test_without_git_the_folders_are_copied_without_caches(tmp_path: Path) -> None:
    root, job = project(tmp_path / "root"), tmp_path / "job"
    (root / "olmo_train/__pycache__").mkdir()
    (root / "olmo_train/__pycache__/a.pyc").write_text("y")
    job.mkdir()
    snapshot = take_snapshot(job, root)
    assert (snapshot.commit, snapshot.has_changes) == (None, None)
    assert files(job / "code") == {"olmo_train/a.py", "configs/train.yaml", "launch/__init__.py"}
    assert json.loads((job / "code.json").read_text())["sha256"] == code_sha256(job / "code") == code_sha256(root)


def test_with_git_new_files_are_copied_and_ignored_ones_are_not(tmp_path: Path) -> None:
    root, job = project(tmp_path / "root"), tmp_path / "job"
    (root / ".gitignore").write_text("*.log\n")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    assert describe_code(root).has_changes is False
    (root / "olmo_train/new.py").write_text("b = 1\n")
    (root / "olmo_train/x.log").write_text("x")
    job.mkdir()
    snapshot = take_snapshot(job, root)
    assert snapshot.has_changes is True
    assert snapshot.commit is not None
    assert len(snapshot.commit) == 40
    assert files(job / "code") == {"olmo_train/a.py", "olmo_train/new.py", "configs/train.yaml", "launch/__init__.py"}


def test_a_snapshot_of_a_snapshot_is_the_same_commit(tmp_path: Path) -> None:
    root, job, again = project(tmp_path / "root"), tmp_path / "root/runs/job", tmp_path / "again"
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    for folder in (job, again):
        folder.mkdir(parents=True)
    first = take_snapshot(job, root)
    assert take_snapshot(again, job / "code") == first
    (job / "code/olmo_train/a.py").write_text("a = 3\n")
    assert describe_code(job / "code").has_changes is True


def test_jobs_of_a_sweep_share_the_files(tmp_path: Path) -> None:
    root, job, other = project(tmp_path / "root"), tmp_path / "job", tmp_path / "other"
    for folder in (job, other):
        folder.mkdir()
    take_snapshot(job, root)
    share_snapshot(job, other)
    assert files(job / "code") == files(other / "code")
    assert (other / "code.json").read_bytes() == (job / "code.json").read_bytes()
    assert (job / "code/olmo_train/a.py").stat().st_ino == (other / "code/olmo_train/a.py").stat().st_ino


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    root = project(tmp_path / "root")
    (tmp_path / "job").write_text("")
    with pytest.raises(
        ConfigError, match="^the code of .*/root cannot be copied to .*/job: .*; give a run_dir that can be written$"
    ):
        take_snapshot(tmp_path / "job", root)


def test_every_package_is_kept() -> None:
    assert set(KEPT) >= {"olmo_train", "data_tools", "checkpoints", "launch", "configs"}
