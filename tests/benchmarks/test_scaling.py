"""The scaling model where its answer is clear, and the scaling benchmark on CPU ranks."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling import main as measure
from benchmarks.scaling_model import (
    DEFAULTS,
    Plan,
    Rates,
    Times,
    all_reduce_seconds,
    best_plan,
    gather_seconds,
    parse_rates,
    plans,
    report,
    step_times,
)
from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.model.memory import CARDS, RESERVE, predict
from olmo_train.model.size import flops_per_token
from olmo_train.schema import load_config
from tests.distributed import spawn

RATES = Rates()
H200 = CARDS["141 GB (H200)"]


@pytest.fixture(scope="module")
def run() -> TrainConfig:
    return load_config("train", TrainConfig, DEFAULTS)


def times(run: TrainConfig, n_ranks: int, rates: Rates = RATES, shard_size: int | None = None, sequences: int = 4) -> Times:
    return step_times(Plan(shard_size or n_ranks, sequences, FloatType.FLOAT32).apply(run), n_ranks, rates)


def test_one_gpu_waits_for_nothing_and_reaches_the_rates(run: TrainConfig) -> None:
    alone = times(run, 1)
    assert alone.waiting == 0
    # With one rate for every product and free memory traffic, the time is FLOPs over rate.
    even = replace(RATES, experts=5e14, attention=5e14, projections=5e14, head=5e14, passes=0)
    once = times(run, 1, even)
    flops = flops_per_token(run.model, run.data.seq_len) * once.tokens_per_rank
    assert once.compute == pytest.approx(flops / 5e14, rel=1e-9)


def test_the_measured_pieces_add_up_to_the_measured_sum(run: TrainConfig) -> None:
    """331 + 53 + 81 + 33 + 50 ms for 32k tokens, from which the rates come."""
    one = times(run, 1, replace(RATES, half_rate_tokens=0), sequences=8)
    assert one.compute / (one.tokens_per_rank / 32768) == pytest.approx(0.548, rel=0.02)


@pytest.mark.parametrize("n_ranks, shard_size", [(8, 8), (64, 64), (64, 8), (1024, 1024), (1024, 8)])
@pytest.mark.parametrize("name", ["nvlink", "nic", "memory", "experts", "head", "projections", "attention"])
def test_more_of_a_rate_is_never_slower(run: TrainConfig, n_ranks: int, shard_size: int, name: str) -> None:
    speeds = [
        times(run, n_ranks, replace(RATES, **{name: getattr(RATES, name) * factor}), shard_size, 1).tokens_per_s
        for factor in (0.1, 0.5, 1, 2, 10)
    ]
    assert speeds == sorted(speeds)


def test_links_without_limits_leave_only_compute_and_optimizer(run: TrainConfig) -> None:
    free = replace(RATES, nvlink=1e30, nic=1e30, latency=0, latency_per_rank=0, contention=1, host=0)
    assert times(run, 1024, free, sequences=1).waiting == pytest.approx(0, abs=1e-12)


def test_replicas_beat_one_mesh_on_a_slow_network_only_if_they_sum_once_a_step(run: TrainConfig) -> None:
    """FSDP's gathers cross the network in every micro-step: 8 bytes per parameter with float32 sums, as many as HSDP's sums."""
    once = replace(RATES, nic=5e9)
    every = replace(once, sums_every_micro_step=1)
    assert times(run, 64, once, shard_size=8).tokens_per_s > 1.5 * times(run, 64, once).tokens_per_s
    assert times(run, 64, every, shard_size=8).tokens_per_s < times(run, 64, every).tokens_per_s
    assert times(run, 64, once).tokens_per_s == times(run, 64, every).tokens_per_s  # without replicas there is nothing to sum


def test_one_mesh_beats_replicas_where_latency_is_nothing_and_the_network_is_as_fast_as_nvlink(run: TrainConfig) -> None:
    """Summing over replicas is work that a single mesh does not have; with little to compute it shows."""
    fast = replace(RATES, nic=5e10, nvlink=4e11, latency=0, latency_per_rank=0)
    assert times(run, 512, fast, sequences=1).tokens_per_s > times(run, 512, fast, shard_size=8, sequences=1).tokens_per_s


def test_collectives_have_the_volumes_of_their_definitions() -> None:
    free = replace(RATES, latency=0, latency_per_rank=0)
    assert gather_seconds(8e9, 1, free) == 0
    assert gather_seconds(8e9, 8, free) == pytest.approx(7e9 / free.nvlink)
    assert gather_seconds(8e9, 16, replace(free, nvlink=1e30)) == pytest.approx(4e9 / (8 * free.nic))
    assert all_reduce_seconds(8e9, 1, free) == 0
    assert all_reduce_seconds(8e9, 4, free) == pytest.approx(2 * 6e9 / free.nic)
    assert gather_seconds(1, 64, RATES) > gather_seconds(1, 8, RATES)


@pytest.mark.parametrize("n_ranks", [8, 64, 1024])
def test_the_chosen_plan_fits_divides_the_batch_and_no_other_is_faster(run: TrainConfig, n_ranks: int) -> None:
    choice = best_plan(run, n_ranks, RATES, H200)
    assert choice is not None
    plan, best = choice
    assert predict(plan.apply(run), n_ranks).peak + RESERVE <= H200
    assert n_ranks % plan.shard_size == 0
    assert run.data.global_batch_size % (plan.sequences * run.data.seq_len * n_ranks) == 0
    for other in plans(run, n_ranks):
        if predict(other.apply(run), n_ranks).peak + RESERVE <= H200:
            assert best.tokens_per_s > 0.995 * step_times(other.apply(run), n_ranks, RATES).tokens_per_s


def test_the_report_names_every_assumption_and_says_where_nothing_fits(run: TrainConfig) -> None:
    lines = list(report(run, [8, 4096], parse_rates(["nic=1e10"]), H200))
    assert "  nic = 1e+10" in lines
    assert all(any(line.startswith(f"  {name} = ") for line in lines) for name in vars(RATES))
    assert lines[-1].startswith(" 4096  no layout fits, or data.global_batch_size has less than a sequence for each GPU")


@pytest.mark.parametrize(
    "word, message",
    [
        ("nic=fast", "--rate nic=fast: 'fast' is not a number"),
        ("nick=1", "--rate nick=1: give a positive number for one of attention"),
    ],
)
def test_a_wrong_rate_is_said(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rates([word])


def test_the_model_needs_no_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, benchmarks.scaling_model; assert 'torch' not in sys.modules"], check=True)


def test_the_benchmark_measures_what_ranks_there_are(tmp_path: Path) -> None:
    out = tmp_path / "scaling.jsonl"
    words = ["--out", str(out), "--warmup", "1", "--steps", "3", "--micro-steps", "2", "data.micro_batch_size=256"]
    for n_ranks in (1, 2):
        spawn(measure, n_ranks, words)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["n_ranks"] for line in lines] == [1, 2]
    assert [line["mesh"] for line in lines] == [{"shard": 1}, {"shard": 2}]
    for line in lines:
        assert line["tokens_per_rank"] == 512  # the same work for each
        assert line["global_batch_size"] == 512 * line["n_ranks"]
        assert line["tokens_per_s_per_rank"] == pytest.approx(512 / line["step_s"]["median"])
        assert line["versions"]["torch"]
        assert line["date"]
