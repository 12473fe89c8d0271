"""Stragglers: the rank that the others wait for is found by who waits least, with FSDP and with replicas; nothing else changes."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from olmo_train.attempt import node_name
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Loader, open_sources
from olmo_train.data.order import DataOrder
from olmo_train.metrics import PhaseTimer
from olmo_train.parallel.mesh import init_distributed
from olmo_train.parallel.stragglers import CollectiveClock, RankTimes, compare
from olmo_train.schema import load_config
from olmo_train.train import build, draw_weights
from olmo_train.train_step import TrainStep
from tests.distributed import spawn
from tests.runs import metrics, run_training, small


def test_who_waits_least_is_the_slowest_and_is_named_with_its_node() -> None:
    # Ten steps of 1 s, of which moving data takes 0.1 s; rank 2 needs all of it, the others wait 0.4 s for it.
    ranks = [RankTimes(f"n{i}", 10.0, 1.0 if i == 2 else 5.0, 0.5 if i == 2 else 0.0) for i in range(4)]
    values, warning = compare(ranks, 10, straggler_frac=0.2)
    assert values["own_s"] == {"min": 0.6, "median": 0.6, "max": 1.0}
    assert values["collectives_s"] == {"min": 0.1, "median": 0.5, "max": 0.5}
    assert values["data_s"] == {"min": 0.0, "median": 0.0, "max": 0.05}
    assert values["slowest"] == {"rank": 2, "node": "n2", "excess": pytest.approx(2 / 3, abs=1e-4)}
    assert values["straggler"] == 2
    assert warning == (
        "rank 2 on node n2 holds up the others: its own work takes 1.000 s a step (0.050 s of it waiting for data), "
        "the median rank's 0.600 s"
    )


@pytest.mark.parametrize("waits", [[1.0, 1.0], [1.0, 1.5, 1.5, 1.5], [0.0, 0.0, 0.0]])
def test_ranks_that_are_alike_are_not_called_stragglers(waits: list[float]) -> None:
    values, warning = compare([RankTimes("n", 10.0, wait, 0.0) for wait in waits], 10, straggler_frac=0.2)
    assert warning is None
    assert "straggler" not in values


def test_of_two_ranks_the_slower_one_is_compared_with_the_other() -> None:
    assert compare([RankTimes("a", 3.0, 0.0, 0.0), RankTimes("b", 3.0, 1.5, 0.0)], 1, 0.2)[0]["slowest"]["excess"] == 1.0


def test_steps_of_milliseconds_warn_of_nothing() -> None:
    assert compare([RankTimes("a", 0.3, 0.0, 0.0), RankTimes("b", 0.3, 0.2, 0.0)], 10, 0.2)[1] is None


@pytest.mark.parametrize("words", [[], ["parallel.shard_size=1"]], ids=["fsdp", "replicas"])
def test_a_slow_rank_is_named_in_the_metrics(shards: Path, tmp_path: Path, words: list[str]) -> None:
    drill = "faults.drill=[{kind: slow, rank: 1, step: 5, seconds: 1.0}]"
    run = ["max_tokens=1536", "metrics.log_every=2", "data.micro_batch_size=128", drill, *words]
    run_training(small(shards, tmp_path / "run", *run), 2)
    ranks = metrics(tmp_path / "run")[-1]["ranks"]
    assert (ranks["slowest"]["rank"], ranks["slowest"]["node"], ranks["straggler"]) == (1, node_name(), 1)
    assert ranks["own_s"]["max"] - ranks["own_s"]["min"] > 0.5
    assert ranks["own_s"]["min"] <= ranks["own_s"]["median"] <= ranks["own_s"]["max"]


def test_one_rank_has_nobody_to_compare_with(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "run", "max_tokens=768"), 1)
    assert "ranks" not in metrics(tmp_path / "run")[-1]


def three_steps(overrides: list[str], is_timed: bool) -> tuple[bytes, float]:
    """The weights after three steps, and the seconds in collectives."""
    run = load_config("train", TrainConfig, overrides)
    layout = init_distributed(run.parallel)
    order = DataOrder(open_sources(run.data, Path()), run.seed, run.data.seq_len, run.data.global_batch_size)
    live = build(run, layout, order)
    draw_weights(run, live)
    clock = CollectiveClock(layout.device) if is_timed else None
    step = TrainStep(live.model, live.optimizer, live.guard, layout, run, clock)
    for _, rows in Loader(order, run.data, layout.rank, layout.n_ranks).steps(1, 3):
        step(rows, 1e-2, PhaseTimer(layout.device))
    return b"".join(
        w.tensor.view(torch.uint8).numpy().tobytes() for w in live.weights.values()
    ), 0.0 if clock is None else clock.read()


LAYOUTS = {
    "fsdp": (2, []),
    "replicas of sums apart": (
        4,
        ["parallel.shard_size=2", "data.micro_batch_size=32", "parallel.compute_dtype=bfloat16", "optim.weight_dtype=bfloat16",
         "optim.moment_dtype=float32"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_timing_changes_no_bit(shards: Path, tmp_path: Path, name: str) -> None:
    n_ranks, words = LAYOUTS[name]
    overrides = small(shards, tmp_path / "run", *words)
    timed, plain = (spawn(three_steps, n_ranks, overrides, is_timed) for is_timed in (True, False))
    assert [weights for weights, _ in timed] == [weights for weights, _ in plain]
    assert all(seconds > 0 for _, seconds in timed)


def collective_after_a_pause(pause_s: float) -> tuple[float, float, float]:
    """Seconds that the clock of a rank counts for a collective which rank 0 comes to late: counted, off, on the host."""
    layout = init_distributed(load_config("train", TrainConfig, ["run_name=x", "data.sources.x.path=none"]).parallel)
    clock, value = CollectiveClock(layout.device), torch.ones(4)

    def late() -> None:
        if layout.is_main:
            time.sleep(pause_s)

    dist.barrier(group=layout.control)
    late()
    with clock.inside():
        dist.all_reduce(value)
    counted = clock.read()
    late()
    with clock.off(), clock.inside():
        dist.all_reduce(value)
    off = clock.read()
    late()
    with clock.inside(on_host=True):
        dist.all_reduce(value, group=layout.control)
    return counted, off, clock.read()


def test_the_clock_counts_waiting_and_nothing_while_it_is_off() -> None:
    _, (counted, off, on_host) = spawn(collective_after_a_pause, 2, 0.5)
    assert counted > 0.3
    assert off == 0.0
    assert on_host > 0.3
