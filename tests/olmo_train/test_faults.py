"""What a run survives: ranks killed at any moment, signals, and saves that the file system refuses."""

import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from olmo_train.checkpoint import read_manifest, read_state, verify_files
from olmo_train.errors import EXIT_STOPPED, CheckpointError
from olmo_train.saver import Saver
from olmo_train.step_folder import list_steps
from tests.distributed import Rank, RankError, collect, spawn, start
from tests.runs import metrics, run_training, small, train_here, weights, without_times

STEPS = 40
LONG = [f"max_tokens={STEPS * 256}", "checkpoint.save_every=4", "checkpoint.ephemeral_every=1", "metrics.log_every=1"]


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, undisturbed, on two ranks."""
    run_dir = tmp_path_factory.mktemp("calm") / "run"
    run_training(small(shards, run_dir, *LONG), n_ranks=2)
    return run_dir


def assert_no_damage(steps: Path) -> None:
    for _, folder in list_steps(steps):
        assert verify_files(folder, read_manifest(folder)) == []


def wait_for_new(path: Path, pattern: str, ranks: list[Rank]) -> None:
    """Until a new file of `pattern` appears in `path`, or all ranks are gone."""
    before = set(path.glob(pattern))
    while set(path.glob(pattern)) <= before and any(rank.process.is_alive() for rank in ranks):
        time.sleep(0.0005)


def kill_once(rng: random.Random, overrides: list[str], run_dir: Path) -> bool:
    """Start the run, kill -9 one of its ranks: at a random moment after a step, or while a step folder is being written."""
    steps = run_dir / "steps"
    ranks = start(train_here, 2, overrides)
    wait_for_new(steps, "step*", ranks)  # it trains
    if rng.random() < 0.5:
        wait_for_new(steps, ".step*.tmp-*", ranks)
        time.sleep(rng.uniform(0, 0.01))
    else:
        time.sleep(rng.uniform(0, 0.5))
    victim = rng.choice(ranks).process
    was_alive = victim.is_alive()
    if was_alive:
        os.kill(victim.pid, signal.SIGKILL)
    results = collect(ranks)
    assert was_alive == any(isinstance(result, RankError) for result in results)
    return was_alive


@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_ranks_cost_time_and_nothing_else(shards: Path, calm: Path, tmp_path: Path, n_kills: int) -> None:
    rng = random.Random(n_kills)
    kills = round_ = 0
    while kills < n_kills:
        run_dir = tmp_path / f"run{round_}"
        overrides = small(shards, run_dir, *LONG)
        while kills < n_kills:
            was_alive = kill_once(rng, overrides, run_dir)
            kills += was_alive
            assert_no_damage(run_dir / "steps")
            if not was_alive:
                break  # it reached its end
        run_training(overrides, n_ranks=2)
        assert weights(run_dir, STEPS) == weights(calm, STEPS)
        assert without_times(metrics(run_dir)) == without_times(metrics(calm))
        assert (run_dir / "data.jsonl").read_text() == (calm / "data.jsonl").read_text()
        assert [path.name for path in (run_dir / "steps").iterdir() if path.name.startswith(".")] == []
        round_ += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_and_stops_all(shards: Path, calm: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = ["checkpoint.ephemeral_every=null", "checkpoint.save_every=39", "metrics.log_every=7"]
    overrides = small(shards, tmp_path / "run", *LONG, *words)
    ranks = start(train_here, 2, overrides)
    while not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.01)
    os.kill(ranks[1].process.pid, number)
    assert collect(ranks) == [EXIT_STOPPED, EXIT_STOPPED]
    step, folder = list_steps(tmp_path / "run/steps")[-1]
    assert 0 < step < 39
    assert read_manifest(folder)["kind"] == "ephemeral"
    last = metrics(tmp_path / "run")[-1]
    assert (last["step"], last["loss"]) == (step, read_state(folder)["loss"])
    run_training(overrides, n_ranks=2)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, STEPS + 1))
    assert weights(tmp_path / "run", STEPS) == weights(calm, STEPS)


# ---- saves that fail -------------------------------------------------------------------------------------------------------


def train_with_a_small_disk(overrides: list[str], max_bytes: int, poor_rank: int) -> str:
    """Train where writing a file beyond `max_bytes` fails on one rank, as on a full disk; return the error's text."""
    if int(os.environ["RANK"]) == poor_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))
    try:
        train_here(overrides)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("is_async", "poor_rank"),
    [
        ("true", 1),
        ("false", 0),
        pytest.param("true", 0, marks=pytest.mark.slow),
        pytest.param("false", 1, marks=pytest.mark.slow),
    ],
)
def test_saves_that_fail_leave_nothing_and_end_the_run(shards: Path, tmp_path: Path, poor_rank: int, is_async: str) -> None:
    overrides = small(shards, tmp_path / "run", "checkpoint.save_every=2", f"checkpoint.async_save={is_async}")
    errors = collect(start(train_with_a_small_disk, 2, overrides, 30_000, poor_rank))
    assert "3 saves in a row failed, the last at step 6: " in errors[0]
    reason = f"model-0000{poor_rank}-of-00002.safetensors: File too large; free space or mend the file system"
    assert reason in errors[poor_rank]
    assert "on another rank" in errors[1 - poor_rank]
    assert list((tmp_path / "run/steps").iterdir()) == []
    run_training(overrides, n_ranks=2)
    run_training(small(shards, tmp_path / "calm"), n_ranks=2)
    assert weights(tmp_path / "run", 10) == weights(tmp_path / "calm", 10)


def test_the_last_save_may_not_fail_in_silence(shards: Path, tmp_path: Path) -> None:
    overrides = small(shards, tmp_path / "run", "checkpoint.save_every=100")
    errors = collect(start(train_with_a_small_disk, 1, overrides, 30_000, 0))
    assert "1 saves in a row failed, the last at step 10: " in errors[0]
    assert "the same command continues from the newest step saved" in errors[0]


def train_while_a_folder_appears(overrides: list[str], folder: str) -> str:
    """Train in a run into whose steps somebody puts a folder of a step's name after the start."""
    saved, begun = Saver.save, []

    def save(self: Saver, *args: Any) -> None:
        if not begun:
            begun.append(Path(folder).mkdir(parents=True))
            Path(folder, "mine.txt").write_text("precious")
        saved(self, *args)

    Saver.save = save  # type: ignore[method-assign]
    try:
        train_here(overrides)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_step_folder_is_never_overwritten(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/steps/step00000005"
    words = small(shards, tmp_path / "run", "checkpoint.max_failures=1")
    (error,) = spawn(train_while_a_folder_appears, 1, words, str(folder))
    assert "step00000005 exists already; a step folder is never overwritten: move it away" in error
    assert (folder / "mine.txt").read_text() == "precious"
