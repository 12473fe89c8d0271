"""A run folder belongs to the newest start: an earlier one that was cut off, and comes back, can do no harm."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from olmo_train import run_folder
from olmo_train.attempt import ATTEMPT_DIR
from olmo_train.checkpoint import Shard, read_manifest, temporary_folder, verify_files, write_rank
from olmo_train.config.train import CheckpointConfig, TrainConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.fence import SupersededError
from olmo_train.metrics import MetricsLog
from olmo_train.parallel.mesh import init_distributed
from olmo_train.run_folder import RunFolder
from olmo_train.saver import LocalPart, Saver
from olmo_train.schema import load_config, to_plain
from olmo_train.step_folder import list_steps
from tests.distributed import spawn
from tests.runs import run_training, small

PARTS = {"model": {"w": LocalPart(torch.ones(3, 2), 0, (3, 2))}}
TEXTS = {"state.json": "{}"}


def in_one_process(function: Any, shards: Path, run_dir: Path, *more: Any) -> Any:
    (result,) = spawn(function, 1, small(shards, run_dir), *more)
    return result


def open_folder(overrides: list[str]) -> tuple[RunFolder, Saver, MetricsLog]:
    """A start of the run, up to where it would train."""
    run = load_config("train", TrainConfig, overrides)
    layout = init_distributed(run.parallel) if not torch.distributed.is_initialized() else LAYOUTS[0]
    LAYOUTS.append(layout)
    folder = RunFolder(run, layout)
    metrics = MetricsLog(folder.path, run, True, to_plain(run), folder.fence.check)
    saver = Saver(folder.steps, CheckpointConfig(save_every=1), (0, 1), folder.fence, lambda flag: flag, metrics.sync)
    return folder, saver, metrics


LAYOUTS: list[Any] = []


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "lr": 0.1}


def two_starts(overrides: list[str]) -> list[str]:
    """The first start is cut off: its lock is gone, its process is not. What it hears when it goes on."""
    first, saver, metrics = open_folder(overrides)
    metrics.write([line(1)], [{"step": 1}])
    saver.save(1, "ephemeral", PARTS, TEXTS)
    saver.settle()
    half = temporary_folder(first.steps, 2, first.attempt)
    write_rank(half, 0, 1, {"model": {"w": Shard(torch.ones(3, 2), 0, (3, 2))}})
    first.close()
    _, saver2, metrics2 = open_folder(overrides)
    metrics2.restart_at(1)
    heard = []
    for attempt in (
        lambda: metrics.write([line(2)], [{"step": 2}]),
        lambda: (saver.save(2, "permanent", PARTS, TEXTS), saver.settle()),
    ):
        try:
            attempt()
        except SupersededError as error:
            heard.append(str(error))
    metrics2.write([line(2)], [{"step": 2}])
    saver2.save(2, "permanent", PARTS, TEXTS)
    saver2.settle()
    return heard


def test_a_start_that_was_cut_off_neither_saves_nor_writes_lines(shards: Path, tmp_path: Path) -> None:
    heard = in_one_process(two_starts, shards, tmp_path / "run")
    assert len(heard) == 2
    assert all("was taken over by a later start of the run" in text for text in heard)
    assert [step for step, _ in list_steps(tmp_path / "run/steps")] == [1, 2]
    assert [text.split(",")[0] for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == [
        '{"step": 1',
        '{"step": 2',
    ]
    for _, folder in list_steps(tmp_path / "run/steps"):
        assert verify_files(folder, read_manifest(folder)) == []


def commit_when_taken_over(overrides: list[str]) -> list[str]:
    """A later start comes between the first start's last look at its name and its rename; and just after the rename."""
    first, saver, _ = open_folder(overrides)
    first.close()
    check, later = saver.fence.check, []

    def checked_just_before() -> None:
        check()
        if not later:
            later.append(open_folder(overrides))

    saver.fence.check = checked_just_before  # type: ignore[method-assign]
    try:
        saver.save(3, "permanent", PARTS, TEXTS)
        saver.settle(is_last=True)
    except CheckpointError as error:
        return [str(error), *sorted(os.listdir(first.steps))]
    return sorted(os.listdir(first.steps))


def test_a_take_over_between_the_last_look_and_the_rename_loses_no_race(shards: Path, tmp_path: Path) -> None:
    (text, *names) = in_one_process(commit_when_taken_over, shards, tmp_path / "run")
    assert "No such file or directory; the step was not saved" in text  # its folder had lost its name
    assert names == []


def enter_under_a_launcher(overrides: list[str], attempt_dir: str, held: str | None) -> str:
    if attempt_dir:
        os.environ[ATTEMPT_DIR] = attempt_dir
    run_folder.LOCK_WAIT_S = run_folder.CUT_OFF_WAIT_S = 0.5
    path = Path(next(word for word in overrides if word.startswith("run_dir=")).removeprefix("run_dir="))
    path.mkdir(parents=True)
    lock = open(path / ".lock", "a+")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(held or "")
    lock.flush()
    if held is None:  # the holder ends a moment later
        threading.Timer(1.0, lock.close).start()
    try:
        open_folder([*overrides, "faults.silent_s=1"])
    except (ConfigError, CheckpointError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_under_a_launcher_a_start_waits_for_the_one_before_to_end(shards: Path, tmp_path: Path) -> None:
    assert in_one_process(enter_under_a_launcher, shards, tmp_path / "a", str(tmp_path), None) == ""
    in_use = "is in use by another process (pid 12 on node7); wait for it, or give another run_name"
    text = in_one_process(enter_under_a_launcher, shards, tmp_path / "b", str(tmp_path), "pid 12 on node7\n")
    assert text == f"CheckpointError: run_dir={tmp_path}/b {in_use}"  # which the launcher may try again
    text = in_one_process(enter_under_a_launcher, shards, tmp_path / "c", "", "pid 12 on node7\n")
    assert text == f"ConfigError: run_dir={tmp_path}/c {in_use}"


@pytest.mark.parametrize(("number", "is_mended"), [(errno.ENOSYS, True), (errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, is_mended: bool
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with open(tmp_path / "lock", "a+") as lock:
        if is_mended:
            assert run_folder._lock(lock, 1.0) is None
            assert "this file system has no locks" in caplog.text
        else:
            with pytest.raises(OSError):
                run_folder._lock(lock, 1.0)


def start_with_a_full_disk(overrides: list[str]) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        open_folder(overrides)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_start_on_a_full_disk_is_one_clear_error(shards: Path, tmp_path: Path) -> None:
    text = in_one_process(start_with_a_full_disk, shards, tmp_path / "run")
    assert text == (
        f"run_dir={tmp_path}/run cannot be written: {tmp_path}/run: File too large; free space or mend the file system, then "
        "start again"
    )
    assert not [path for path in (tmp_path / "run").iterdir() if ".tmp-" in path.name]


def test_a_folder_that_can_never_be_written_is_the_configs_fault(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(AssertionError, match=r"run_dir=.*file/run: cannot be written: .*Not a directory; give another run_dir"):
        run_training(small(shards, tmp_path / "file/run"))


def test_a_provenance_file_that_was_damaged_is_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/provenance.json").write_text('{"starts": [')
    with pytest.raises(AssertionError, match=r"provenance.json: not as it was written \(.*\); free space, mend the file system"):
        run_training(small(shards, tmp_path / "run"))


# ---- what lies about in steps/ ---------------------------------------------------------------------------------------------


def test_folders_copied_by_half_are_moved_aside_and_do_not_stop_later_saves(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2", "stop_at_step=6"), 2)
    steps = tmp_path / "run/steps"
    (steps / "step00000006/manifest.json").unlink()  # as a copy that began with the large files
    (steps / "step00000008").mkdir()
    (steps / "step00000008/mine.txt").write_text("precious")
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2"), 2)
    assert [step for step, _ in list_steps(steps)] == [2, 4, 6, 8, 10]
    aside = sorted(path.name.split("-")[0] for path in steps.glob(".*"))
    assert aside == [".step00000006.damaged", ".step00000008.damaged"]
    assert next(steps.glob(".step00000008.damaged-*/mine.txt")).read_text() == "precious"


@pytest.mark.parametrize("damage", ["short", "missing", "manifest", "unreadable"])
def test_every_damage_of_the_newest_step_falls_back(shards: Path, tmp_path: Path, damage: str) -> None:
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2", "stop_at_step=4"))
    folder = tmp_path / "run/steps/step00000004"
    file = folder / "optim-00000-of-00001.safetensors"
    match damage:
        case "short":
            os.truncate(file, 100)
        case "missing":
            file.unlink()
        case "manifest":
            os.truncate(folder / "manifest.json", 100)
        case "unreadable":  # a folder where a file should be: EISDIR stands for EIO
            file.unlink()
            file.mkdir()
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2", "stop_at_step=6"))
    assert [step for step, _ in list_steps(tmp_path / "run/steps")] == [2, 4, 6]
    assert len(list((tmp_path / "run/steps").glob(".step00000004.damaged-*"))) == 1


def test_suspect_steps_are_not_taken_up(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2", "stop_at_step=6"))
    (tmp_path / "run/suspect.json").write_text('{"after_step": 2}')
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2", "stop_at_step=8"))
    steps = tmp_path / "run/steps"
    assert [step for step, _ in list_steps(steps)] == [2, 4, 6, 8]
    assert sorted(path.name.split("-")[0] for path in steps.glob(".*")) == [".step00000004.suspect", ".step00000006.suspect"]
    assert not (tmp_path / "run/suspect.json").exists()


def test_a_kill_while_the_folder_is_entered_leaves_it_usable(shards: Path, tmp_path: Path) -> None:
    """The lock goes with its process, however that ends."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    code = f"import fcntl, os, signal; f = open('{run_dir}/.lock', 'a+'); fcntl.flock(f, 2); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    run_training(small(shards, run_dir, "stop_at_step=2"))
