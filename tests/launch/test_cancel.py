"""Ending a run without Slurm, and what cannot be ended; with a real Slurm: tests/slurm/test_jobs.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.cancel import main
from olmo_train.errors import ConfigError
from tests.launch.folders import make_job, make_run

TRAINER = """
# olmo_train stand-in: holds the lock, and on the signal saves a step and ends
import fcntl, os, pathlib, signal, sys
from olmo_train.attempt import node_name
run = pathlib.Path(sys.argv[1])
lock = open(run / ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
lock.write(f"pid {os.getpid()} on {node_name()}\\n")
lock.flush()
print("ready", flush=True)
while not asked:
    signal.pause()
if sys.argv[2] == "saves":
    folder = run / "steps/step00000007"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
else:
    signal.pause()
"""


def start_trainer(run: Path, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", TRAINER, str(run), what], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_run_of_this_machine_saves_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    job = make_job(run)
    process = start_trainer(run, "saves")
    try:
        main([str(run)])
        assert process.wait(60) == 0
    finally:
        process.kill()
    out = capsys.readouterr().out
    assert f"process {process.pid} was asked to save and end" in out
    assert f"it has ended; step 7 is the newest saved in {run / 'steps'}" in out
    assert (job / "cancelled").exists()


def test_one_that_does_not_end_in_time_is_said_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    process = start_trainer(run, "hangs")
    try:
        with pytest.raises(
            ConfigError, match=f"--now is for jobs of Slurm; .* is trained by process {process.pid} on this machine"
        ):
            main([str(run), "--now"])
        with pytest.raises(SystemExit) as caught:
            main([str(run), "--wait-s", "0.1"])
        assert caught.value.code == 1
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert f"process {process.pid} has not ended in 0.1 s and still may; no step is saved" in capsys.readouterr().out


def test_what_does_not_run_here_cannot_be_cancelled(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ConfigError, match=r"first: nothing of it waits or runs; see `olmo jobs first`"):
        main(["first", "--runs", str(tmp_path)])
    process = start_trainer(run, "saves")
    try:
        (run / ".lock").write_text("pid 12 on elsewhere\n")  # a process of another machine, as a shared file system shows it
        with pytest.raises(ConfigError, match="first: pid 12 on elsewhere, not of this machine, trains in it; end it there"):
            main([str(run)])
    finally:
        process.kill()
        process.wait()


def test_without_slurm_a_job_of_slurm_is_an_error_that_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    job = make_job(run, "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main([str(run)])
    assert caught.value.code == 1
    assert "error: squeue: not found; run this where Slurm's tools are" in capsys.readouterr().err
    assert not (job / "cancelled").exists()
