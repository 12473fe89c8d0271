"""Lines on file systems that fail: each line once, in order, whatever happened between."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from olmo_train.errors import CheckpointError
from olmo_train.fence import ATTEMPT, Fence, SupersededError
from olmo_train.journal import Journal


def free() -> None:
    """Nobody else's folder."""


def lines(first: int, last: int) -> str:
    return "".join(f'{{"step": {step}}}\n' for step in range(first, last + 1))


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Writing beyond so many bytes fails, as on a full disk, after what fits is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 KiB in `folder`."""
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=64k tmpfs {folder} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        os.system(f"umount {folder}")


def test_lines_that_did_not_fit_are_written_later_each_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, free)
    journal.append(lines(1, 5))
    with largest_file(path.stat().st_size + 20):  # half of the next two lines fits
        journal.append(lines(6, 7))
        assert path.read_text() == lines(1, 5)  # and is taken away again
        journal.append(lines(8, 9))
        with pytest.raises(CheckpointError, match=r"metrics.jsonl: lines cannot be written; free space or mend the file system"):
            journal.sync()
    assert f"{path}: File too large; 2 lines are kept in memory and written when it works again" in caplog.messages
    journal.append(lines(10, 10))
    assert path.read_text() == lines(1, 10)
    assert caplog.messages[-1] == f"{path} is written again; no line is missing"
    journal.sync()
    journal.append(lines(11, 12))
    assert path.read_text() == lines(1, 12)


def test_a_disk_that_is_full_and_emptied_has_every_line_once(tmp_path: Path) -> None:
    small = tmp_path / "small"
    with small_disk(small):
        journal = Journal(small / "metrics.jsonl", free)
        journal.append(lines(1, 3))
        journal.sync()
        (small / "filler").write_bytes(bytes(4096 * (os.statvfs(small).f_bfree)))
        step = 4
        while step < 1000:  # beyond the block that the file has
            journal.append(lines(step, step + 9))
            step += 10
        assert (small / "metrics.jsonl").read_text() != lines(1, step - 1)
        (small / "filler").unlink()
        journal.sync()
        assert (small / "metrics.jsonl").read_text() == lines(1, step - 1)


def test_what_a_file_system_loses_after_taking_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may take lines, and fail when it brings them to its disks: then nobody knows which are there."""
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, free)
    journal.append(lines(1, 2))
    journal.sync()
    journal.append(lines(3, 4))

    def fails(descriptor: int) -> None:
        os.truncate(path, len(lines(1, 2)) + 3)  # lost all but a few bytes
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(CheckpointError, match=r"metrics.jsonl: Input/output error; free space or mend the file system"):
            journal.sync()
    journal.append(lines(5, 5))
    journal.sync()
    assert path.read_text() == lines(1, 5)


def test_a_file_that_somebody_cut_goes_on_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, free)
    journal.append(lines(1, 4))
    journal.sync()
    os.truncate(path, len(lines(1, 2)))
    journal.append(lines(5, 6))
    assert path.read_text() == lines(1, 2) + lines(5, 6)


def test_a_journal_continues_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(lines(1, 2))
    journal = Journal(tmp_path / "a", free)
    journal.append(lines(3, 3))
    journal.append("")
    journal.sync()
    assert (tmp_path / "a").read_text() == lines(1, 3)
    Journal(tmp_path / "b", free).sync()
    assert not (tmp_path / "b").exists()


def test_a_start_that_was_cut_off_writes_no_line(tmp_path: Path) -> None:
    (tmp_path / ATTEMPT).write_text("first")
    journal = Journal(tmp_path / "metrics.jsonl", Fence(tmp_path, "first").check)
    journal.append(lines(1, 1))
    (tmp_path / ATTEMPT).write_text("second")
    with pytest.raises(SupersededError, match=r"was taken over by a later start of the run \(second; this one is first\): this"):
        journal.append(lines(2, 2))
    assert (tmp_path / "metrics.jsonl").read_text() == lines(1, 1)


def test_without_the_name_of_the_start_lines_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file cannot be read, so nobody knows whose the folder is: neither an error nor a line."""
    journal = Journal(tmp_path / "metrics.jsonl", Fence(tmp_path, "first").check)
    journal.append(lines(1, 2))
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert "No such file or directory; 2 lines are kept" in caplog.text
    (tmp_path / ATTEMPT).write_text("first")
    journal.sync()
    assert (tmp_path / "metrics.jsonl").read_text() == lines(1, 2)
