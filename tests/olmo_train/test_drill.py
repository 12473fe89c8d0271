"""Faults on purpose: each happens where it was ordered, once, and training answers as it would to a real one."""

import os
import signal
from pathlib import Path

import pytest
import torch

from olmo_train.attempt import node_name
from olmo_train.config.faults import DrillConfig, DrillKind, FaultsConfig
from olmo_train.drill import Drill, DrillError, flip_one_bit
from olmo_train.parallel.weights import Weight
from tests.distributed import collect, start
from tests.runs import metrics, run_training, small, train_here, weights, without_times


def drill_of(run_dir: Path, *drills: DrillConfig, rank: int = 1, n_ranks: int = 2) -> Drill:
    return Drill(FaultsConfig(drill=list(drills)), rank, n_ranks, run_dir)


def test_a_drill_happens_at_its_step_on_its_rank(tmp_path: Path) -> None:
    fault = DrillConfig(DrillKind.EXCEPTION, rank=1, step=3)
    here, elsewhere = drill_of(tmp_path, fault), drill_of(tmp_path, fault, rank=0)
    for step in (1, 2):
        assert here.begin_step(step, {}) is None
    with pytest.raises(DrillError, match="drill: exception at step 3"):
        here.begin_step(3, {})
    assert elsewhere.begin_step(3, {}) is None


def test_a_drill_on_a_node_is_for_each_of_its_ranks(tmp_path: Path) -> None:
    fault = DrillConfig(DrillKind.EXCEPTION, rank=None, node=node_name(), step=1)
    both = [drill_of(tmp_path, fault, rank=rank) for rank in (0, 1)]  # before one of them says that it is done
    for drill in both:
        with pytest.raises(DrillError):
            drill.begin_step(1, {})
    other = DrillConfig(DrillKind.EXCEPTION, rank=1, node="elsewhere", step=1)
    assert drill_of(tmp_path, other).begin_step(1, {}) is None  # node wins over rank


def test_once_is_once_in_the_life_of_the_run(tmp_path: Path) -> None:
    once = DrillConfig(DrillKind.NAN, rank=1, step=3)
    always = DrillConfig(DrillKind.SPIKE, rank=1, step=4, once=False)
    for attempt in range(3):
        drill = drill_of(tmp_path, once, always)
        factor = drill.begin_step(3, {})
        assert (factor is None) == (attempt > 0)
        assert drill.begin_step(4, {}) == 1000.0
    (tmp_path / "drill.jsonl").open("a").write('{"drill": "cut sho')
    assert drill_of(tmp_path, once).begin_step(3, {}) is None
    changed = DrillConfig(DrillKind.NAN, rank=1, step=5)  # another one than what happened
    assert drill_of(tmp_path, changed).begin_step(5, {}) is not None


def test_a_slow_machine_is_slow_after_a_restart_too(tmp_path: Path) -> None:
    drill = drill_of(tmp_path, DrillConfig(DrillKind.SLOW, rank=1, step=3, seconds=0.001, once=False))
    drill.begin_step(7, {})  # resumed beyond step 3
    assert drill._slow_s == 0.001


def test_a_rank_that_is_not_there_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drill_of(tmp_path, DrillConfig(DrillKind.KILL, rank=3), rank=0, n_ranks=2)
    assert "faults.drill[0].rank=3: there are 2 ranks now, so it does not happen" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flipped_bit_changes_one_number_and_keeps_it_finite(dtype: torch.dtype) -> None:
    tensors = {"small": torch.ones(3, dtype=dtype), "large": torch.linspace(-1, 1, 20, dtype=dtype).view(4, 5)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    flip_one_bit({name: Weight(tensor, None, (0, len(tensor)), tuple(tensor.shape)) for name, tensor in tensors.items()})
    assert torch.equal(tensors["small"], before["small"])
    assert (tensors["large"] != before["large"]).sum() == 1
    assert tensors["large"].isfinite().all()


def test_a_nan_on_one_rank_is_skipped_by_all_and_does_not_happen_again(shards: Path, tmp_path: Path) -> None:
    words = ["checkpoint.save_every=3", "metrics.log_every=1"]
    drill = "faults.drill=[{kind: nan_loss, rank: 1, step: 4}]"
    run_training(small(shards, tmp_path / "run", "stop_at_step=6", drill, *words), 2)
    lines = metrics(tmp_path / "run")
    assert [(line["step"], line["skipped"], line["loss"]) for line in lines if line["skipped"]] == [(4, "nonfinite", None)]
    # From step 3 again, as after a failure: this time without the fault, like the run that never had one.
    for folder in (tmp_path / "run/steps").glob("step*6"):
        folder.rename(tmp_path / folder.name)
    run_training(small(shards, tmp_path / "run", drill, *words), 2)
    run_training(small(shards, tmp_path / "calm", *words), 2)
    assert without_times(metrics(tmp_path / "run")) == without_times(metrics(tmp_path / "calm"))
    assert weights(tmp_path / "run", 10) == weights(tmp_path / "calm", 10)


def test_a_spike_on_one_rank_is_seen_by_all(shards: Path, tmp_path: Path) -> None:
    run_training(
        small(shards, tmp_path / "run", "optim.skip={sigma: 6.0, window: 8, min_history: 4}",
              "faults.drill=[{kind: spike, rank: 1, step: 7}]"), 2,
    )  # fmt: skip
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["skipped"] == "loss"] == [7]
    assert lines[6]["loss"] > 50 * lines[5]["loss"]


def test_a_killed_rank_is_killed_and_the_next_start_finishes(shards: Path, tmp_path: Path) -> None:
    words = small(shards, tmp_path / "run", "checkpoint.save_every=2", "faults.drill=[{kind: kill, rank: 1, step: 6}]")
    ranks = start(train_here, 2, words)
    collect(ranks)
    assert ranks[1].process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run/steps/step00000006").exists()
    run_training(words, 2)
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 11))


def test_a_stopped_rank_is_stopped(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            drill_of(tmp_path, DrillConfig(DrillKind.STOP, rank=1, step=1)).begin_step(1, {})
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
