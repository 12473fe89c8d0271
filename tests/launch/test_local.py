"""Several ranks on this machine: checked before any starts, and known by their exit status."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import local_command, main
from olmo_train.errors import EXIT_STOPPED, EXIT_USAGE, ConfigError
from olmo_train.step_folder import list_steps
from tests.runs import metrics, small

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "olmo_train.cli", "launch", "local", "--ranks", "2"]


def environment() -> dict[str, str]:
    """Ours without what torchrun would set, and without a home that holds keys."""
    mine = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "WANDB_API_KEY")
    }
    return mine | {"PYTHONPATH": str(ROOT)}


def launch(folder: Path, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCH, *overrides], capture_output=True, text=True, cwd=folder, env=environment())


def test_a_dry_run_prints_a_command_for_the_shell_and_starts_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*small(shards, tmp_path / "a run"), "data.repetition_mask={max_count: 4, max_period: 13}"]
    main(["--ranks", "2", "--dry-run", *overrides])
    (line,) = capsys.readouterr().out.splitlines()
    assert shlex.split(line) == local_command(2, overrides)
    assert shlex.split(line)[-len(overrides) :] == overrides
    assert "--nproc-per-node=2" in line
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_config_is_one_message_before_any_rank_starts(shards: Path, tmp_path: Path) -> None:
    wrong = ["optim.lrr=1", "seed=one", "data.micro_batch_size=96", "data.sources.demo.select=c"]
    done = launch(tmp_path, small(shards, tmp_path / "run", *wrong))
    assert done.returncode == EXIT_USAGE
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "error: 4 problems in the configuration:"
    for number, part in enumerate(
        (
            "optim.lrr is not a field of OptimConfig (did you mean lr?)",
            "seed='one' is a str, must be a int",
            "data.global_batch_size=256 tokens is not a multiple of micro_batch_size * n_ranks = 96 * 2 = 192; nearest: 192 or 384",
            "data.sources.demo.select=c is not a source of ",
        ),
        1,
    ):
        assert lines[number].startswith(f"  {number}. {part}")
    assert len(lines) == 5
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_ranks_is_checked(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--ranks=0 must be at least 1"):
        main(["--ranks", "0", *small(shards, tmp_path / "run")])
    with pytest.raises(ConfigError, match=r"micro_batch_size \* n_ranks = 64 \* 3 = 192"):
        main(["--ranks", "3", *small(shards, tmp_path / "run")])
    with pytest.raises(ConfigError, match="--restarts=-1 must be at least 0; 0 never starts again"):
        main(["--ranks", "1", "--restarts", "-1", *small(shards, tmp_path / "run")])
    for words in ([], ["--ranks", "two"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == EXIT_USAGE
    assert "the following arguments are required: --ranks" in capsys.readouterr().err


def test_two_ranks_train_to_the_end(shards: Path, tmp_path: Path) -> None:
    done = launch(tmp_path, small(shards, tmp_path / "run", "max_tokens=512", "optim.schedule.warmup_tokens=256"))
    assert done.returncode == 0, done.stderr
    assert "rank 0: run run: step 2 of 2 is saved in " in done.stderr
    assert "OMP_NUM_THREADS" not in done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    names = {path.name for path in (tmp_path / "run/steps/step00000002").glob("model-*")}
    assert names == {"model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"}


def test_a_signal_saves_and_the_status_says_so(shards: Path, tmp_path: Path) -> None:
    overrides = small(shards, tmp_path / "run", "max_tokens=25_600_000", "checkpoint.save_every=1000000", "metrics.log_every=1")
    process = subprocess.Popen([*LAUNCH, *overrides], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment())
    try:
        path = tmp_path / "run/metrics.jsonl"
        while process.poll() is None and not (path.exists() and path.read_text().count("\n") >= 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == EXIT_STOPPED, err
    ((step, _),) = list_steps(tmp_path / "run/steps")
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, step + 1))
    assert f"stopped by a signal after step {step}, which is saved; the same command continues" in err
    assert "Traceback" not in err


def test_with_restarts_a_killed_rank_costs_only_the_steps_since_the_last_save(shards: Path, tmp_path: Path) -> None:
    words = ["max_tokens=1024", "optim.schedule.warmup_tokens=256", "checkpoint.save_every=2", "faults.health_check=false"]
    drill = "faults.drill=[{kind: kill, rank: 1, step: 4}]"
    done = launch(tmp_path, ["--restarts", "1", *small(shards, tmp_path / "run", "metrics.log_every=1", *words, drill)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]
    story = (tmp_path / "run/jobs/0001/job-local.log").read_text()
    assert story == done.stdout
    for part in (
        "attempt 1 from the beginning, 2 ranks on 1 node",
        "FIRST ERROR: ended without a word (killed, or the node is lost): rank 1 ",
        "next: start again at once: it had saved up to step 2, which counts as progress",
        "attempt 2 from step 2",
        "the end: the run is complete and saved",
    ):
        assert part in story
