"""A mirror holds only whole steps; nothing is deleted here that it does not hold; and a run comes back from it bit for bit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints.mirror.command import follow, main, mirror_once, restore
from checkpoints.mirror.place import Place
from checkpoints.publish.retry import Patience
from olmo_train.checkpoint import read_manifest, verify_files
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.step_folder import list_steps
from tests.runs import metrics, run_training, small, weights, without_times

ONCE = Patience(attempts=1)
"""No second try."""


def steps_in(folder: Path) -> list[int]:
    return [step for step, _ in list_steps(folder / "steps")]


def place_at(where: Path | str, said: list[str] | None = None) -> Place:
    return Place(str(where), (said if said is not None else []).append, ONCE)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_mirrored_run_comes_back_byte_for_byte(
    copy: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(tmp_path / "there") if kind == "folder" else request.getfixturevalue("s3")
    main([str(copy), where])
    assert f"step00000010 is at {where}: " in capsys.readouterr().err
    main([str(copy), where])
    assert capsys.readouterr().err == ""  # all is there
    (tmp_path / "back").mkdir()
    main([str(tmp_path / "back"), where, "--restore"])
    assert f"step00000010 is restored from {where} in" in capsys.readouterr().err
    assert steps_in(tmp_path / "back") == [10]
    assert files_of(tmp_path / "back/steps/step00000010") == files_of(copy / "steps/step00000010")
    for name in ("config.yaml", "provenance.json", "metrics.jsonl", "data.jsonl"):
        assert (tmp_path / "back" / name).read_bytes() == (copy / name).read_bytes()
    with pytest.raises(ConfigError, match="has steps already; restore into an empty run folder, or move them away"):
        main([str(tmp_path / "back"), where, "--restore"])


def test_an_empty_mirror_gives_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(tmp_path / "run", place_at(tmp_path / "none")) is None
    assert "holds no step: nothing to restore" in capsys.readouterr().err


def test_a_damaged_newest_step_of_the_mirror_costs_one_step(copy: Path, tmp_path: Path) -> None:
    mirror_once(copy, place_at(tmp_path / "there"), None)
    flip(tmp_path / "there/steps/step00000010/optim-00000-of-00002.safetensors")
    (tmp_path / "there/steps/step00000005/model-00001-of-00002.safetensors").unlink()
    assert restore(tmp_path / "back", place_at(tmp_path / "there")) == 4
    assert sorted(path.name for path in (tmp_path / "back/steps").iterdir()) == ["step00000004"]
    for folder in (tmp_path / "there/steps").iterdir():
        (folder / "model-00000-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 6 steps could be restored: .*SHA-256"):
        restore(tmp_path / "again", place_at(tmp_path / "there"))
    assert list((tmp_path / "again/steps").iterdir()) == []


# ---- what is not whole -------------------------------------------------------------------------------------------------


def test_a_step_damaged_here_is_told_and_not_mirrored(copy: Path, tmp_path: Path) -> None:
    flip(copy / "steps/step00000005/model-00001-of-00002.safetensors")
    with pytest.raises(
        CheckpointError, match=r"model-00001-of-00002.safetensors: SHA-256 .*: its content changed; step00000005 is not"
    ):
        mirror_once(copy, place_at(tmp_path / "there"), keep_local=1)
    assert steps_in(tmp_path / "there") == [0, 1, 2, 4, 10]
    assert steps_in(copy) == [5, 10]  # what the mirror does not hold stays


def test_bytes_that_the_mirror_changes_are_found_out(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_at(tmp_path / "there")
    upload = place._upload

    def badly(source: Path, name: str, path: str) -> None:
        upload(source, name, path)
        if path == "optim-00001-of-00002.safetensors":
            flip(tmp_path / "there" / name / path)

    monkeypatch.setattr(place, "_upload", badly)
    with pytest.raises(
        CheckpointError, match="optim-00001-of-00002.safetensors was read back with SHA-256 .*; step00000000 is not"
    ):
        mirror_once(copy, place, keep_local=1)
    assert steps_in(tmp_path / "there") == []
    assert steps_in(copy) == [0, 1, 2, 4, 5, 10]


def test_what_was_copied_before_a_break_is_read_and_not_copied_again(copy: Path, tmp_path: Path) -> None:
    place = place_at(tmp_path / "there")
    mirror_once(copy, place, None)
    folder = tmp_path / "there/steps/step00000010"
    (folder / "manifest.json").unlink()
    flip(folder / "model-00000-of-00002.safetensors")  # of the right size, and wrong
    kept = (folder / "optim-00000-of-00002.safetensors").stat().st_mtime_ns
    assert place.steps() == [0, 1, 2, 4, 5]
    mirror_once(copy, place, None)
    assert (folder / "optim-00000-of-00002.safetensors").stat().st_mtime_ns == kept
    assert verify_files(folder, read_manifest(folder)) == []


def test_a_step_that_was_taken_again_replaces_the_one_there(copy: Path, tmp_path: Path) -> None:
    place = place_at(tmp_path / "there")
    mirror_once(copy, place, None)
    folder = copy / "steps/step00000010"
    (folder / "manifest.json").write_text(json.dumps(read_manifest(folder)))  # other bytes, as of another number of ranks
    assert not place.holds(folder)
    mirror_once(copy, place, None)
    assert place.holds(folder)


def test_only_as_many_steps_stay_as_wanted(copy: Path, tmp_path: Path) -> None:
    mirror_once(copy, place_at(tmp_path / "there"), keep_local=2)
    assert (steps_in(copy), steps_in(tmp_path / "there")) == ([5, 10], [0, 1, 2, 4, 5, 10])


def test_a_place_belongs_to_one_run(copy: Path, tmp_path: Path) -> None:
    mirror_once(copy, place_at(tmp_path / "there"), None)
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    (other / "provenance.json").write_text('{"starts": [{"attempt": "feed"}]}')
    with pytest.raises(
        ConfigError, match=r"is the mirror of another run \(its first start is [0-9a-f]{8}, not feed\); give another"
    ):
        mirror_once(other, place_at(tmp_path / "there"), None)


# ---- a place that fails ------------------------------------------------------------------------------------------------


def test_a_place_that_fails_is_tried_again_and_told(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").write_text("a file where the folder should be")
    looks = iter(range(100))

    def ended() -> bool:
        if next(looks) == 1:
            (tmp_path / "there").unlink()
        return (tmp_path / "there").is_dir()

    import checkpoints.mirror.command as command

    command.MAX_WAIT_S, before = 0.0, command.MAX_WAIT_S
    try:
        follow(copy, place_at(tmp_path / "there"), None, ended)
    finally:
        command.MAX_WAIT_S = before
    assert "failed (1 in a row), training goes on and it is tried again: " in capsys.readouterr().err
    assert steps_in(tmp_path / "there") == steps_in(copy)


def test_a_full_place_is_an_error_that_names_it(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("checkpoints.mirror.place.copy_hashed", full)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/there/steps/step\d+/.*: .*No space left on device; the same command"):
        mirror_once(copy, place_at(tmp_path / "there"), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "there"], "none is not the folder of a run (it has no config.yaml); e.g. runs/first"),
        (["none", "there", "--keep-local", "0"], "--keep-local 0 must be at least 1: a run resumes from what is here"),
        (["none", "s3://key:secret@host/b"], "s3://...@host/b holds credentials; give them by the environment or fsspec's"),
        (["none", "nosuch://b"], "Protocol not known: nosuch"),
    ],
)  # fmt: skip
def test_wrong_words_get_one_message(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(words)
    assert message in str(caught.value)


# ---- beside training ---------------------------------------------------------------------------------------------------


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_ends_with_whoever_started_it_and_not_by_a_signal(copy: Path, tmp_path: Path) -> None:
    from olmo_train.mirror import _start

    process = _start([str(copy), str(tmp_path / "there"), "--follow", "--until-stdin-closes", "--poll", "0.1"])
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)  # as a scheduler does, to all of a job
    wait_until(lambda: steps_in(tmp_path / "there") == [0, 1, 2, 4, 5, 10])
    os.rename(tmp_path / "there/steps/step00000010", tmp_path / "gone")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0
    assert steps_in(tmp_path / "there") == [0, 1, 2, 4, 5, 10]  # a last round


def test_followed_by_hand_it_ends_with_the_run(copy: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "checkpoints.mirror.command", str(copy), str(tmp_path / "there"), "--follow", "--poll", "0.1"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert steps_in(tmp_path / "there") == steps_in(copy)


def test_a_run_whose_folder_is_lost_goes_on_from_its_mirror(shards: Path, tmp_path: Path) -> None:
    words = ["checkpoint.save_every=2", f"checkpoint.mirror={tmp_path}/there", "checkpoint.keep_local=1"]
    run_training(small(shards, tmp_path / "calm", "checkpoint.save_every=2"))
    run_training(small(shards, tmp_path / "run", *words))
    assert steps_in(tmp_path / "there") == [2, 4, 6, 8, 10]
    assert steps_in(tmp_path / "run") == [10]
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "there/steps/step00000010")
    run_training(small(shards, tmp_path / "run", *words))
    starts = json.loads((tmp_path / "run/provenance.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 8]
    assert weights(tmp_path / "run", 10) == weights(tmp_path / "calm", 10)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 11))
    first, again = (without_times(metrics(tmp_path / name)) for name in ("calm", "run"))
    assert [line["loss"] for line in first] == [line["loss"] for line in again]


@pytest.mark.slow
def test_suspect_steps_do_not_come_back_from_the_mirror(shards: Path, tmp_path: Path) -> None:
    words = small(
        shards, tmp_path / "run", "checkpoint.save_every=2", f"checkpoint.mirror={tmp_path}/there", "checkpoint.keep_local=1"
    )
    run_training(words)
    for after, resumed_from in ((4, 4), (1, 0)):  # the second time there is no good one at all
        (tmp_path / "run/suspect.json").write_text(json.dumps({"after_step": after}))
        run_training(words)
        starts = json.loads((tmp_path / "run/provenance.json").read_text())["starts"]
        assert starts[-1]["from_step"] == resumed_from
        assert not (tmp_path / "run/suspect.json").exists()
        assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 11))
        assert steps_in(tmp_path / "run") == [10]
        assert steps_in(tmp_path / "there") == [2, 4, 6, 8, 10]


def test_a_mirror_that_cannot_be_asked_stops_a_run_without_steps(shards: Path, tmp_path: Path) -> None:
    """Beginning anew would silently lose what it holds."""
    with pytest.raises(
        AssertionError, match=r"a run without steps asks its mirror for them, and that failed .* checkpoint.mirror=null"
    ):
        run_training(small(shards, tmp_path / "run", "checkpoint.mirror='nosuch://x'"))


@pytest.mark.slow
def test_another_runs_mirror_is_refused(shards: Path, tmp_path: Path) -> None:
    words = [f"checkpoint.mirror={tmp_path}/there", "checkpoint.save_every=5"]
    run_training(small(shards, tmp_path / "run", *words, "max_tokens=1280"), 2)
    with pytest.raises(AssertionError, match=r"checkpoint.mirror=.*there holds another run: optim.lr=0.5, but"):
        run_training(small(shards, tmp_path / "other", *words, "optim.lr=0.5", "max_tokens=1280"))
