"""The simulation of failures against closed forms, and the table against its source."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks.goodput import (
    CAUSES,
    CRASH,
    HANG,
    LOST,
    Policy,
    Saving,
    best_interval,
    daly,
    daly_goodput,
    main,
    mtbf_s,
    simulate,
    young,
)

AT_ONCE = {CRASH: 0.0, HANG: 0.0, LOST: 0.0}
SIMPLE = Policy("simple", AT_ONCE, restart_s=600.0, in_place=True, spares=10**9)
HOUR = 3600.0


def test_the_causes_are_those_of_llama_3_and_add_up() -> None:
    assert sum(cause.count for cause in CAUSES) == 419
    assert mtbf_s(16384) == pytest.approx(54 * 86400 / 419)
    assert mtbf_s(1024) == pytest.approx(16 * mtbf_s(16384))
    assert mtbf_s(1024, factor=2) == pytest.approx(mtbf_s(2048))


@pytest.mark.parametrize(("mtbf_h", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_the_best_interval_is_that_of_dalys_figures(mtbf_h: float, minutes: float) -> None:
    """Daly 2006, figures 3 to 5: a dump of 5 minutes."""
    assert daly(300, mtbf_h * HOUR) / 60 == pytest.approx(minutes, rel=0.01)


def test_young_is_the_limit_of_daly_for_cheap_saves_and_saves_that_cost_more_than_a_failure_are_rare() -> None:
    assert daly(1e-3, 1e6) == pytest.approx(young(1e-3, 1e6), rel=1e-3)
    assert daly(500.0, 200.0) == 200.0


@pytest.mark.parametrize("mtbf", [1 * HOUR, 6 * HOUR, 48 * HOUR])
@pytest.mark.parametrize("interval", [300.0, 1800.0])
def test_the_simulation_agrees_with_dalys_closed_form(mtbf: float, interval: float) -> None:
    out = simulate(SIMPLE, Saving(interval, stall_s=60.0), mtbf, failures=20_000)
    # The standard error of a sum of 20,000 exponential times is 0.7 %; of the time lost, which is what differs, likewise.
    assert 1 - out.goodput == pytest.approx(1 - daly_goodput(interval, 60.0, 600.0, mtbf), rel=0.03)
    assert out.wall / out.failures == pytest.approx(mtbf, rel=0.03)


def test_the_best_interval_of_the_simulation_is_dalys_and_its_goodput_is_flat_around_it() -> None:
    mtbf, saving = 6 * HOUR, Saving(1.0, stall_s=60.0)
    interval, best = best_interval(SIMPLE, saving, mtbf, failures=20_000)
    assert interval == pytest.approx(daly(60.0, mtbf), rel=0.35)
    assert best.goodput == pytest.approx(daly_goodput(daly(60.0, mtbf), 60.0, 600.0, mtbf), abs=0.003)


def test_every_second_is_counted_once_and_each_delay_where_it_belongs() -> None:
    policy = Policy("all", {CRASH: 30.0, HANG: 30.0, LOST: 30.0}, 120.0, requeue_s=121.0, queue_wait_s=500.0, response_s=900.0)
    out = simulate(policy, Saving(600.0, 1.0, 60.0), 10 * HOUR, failures=5000)
    assert out.goodput + sum(out.lost().values()) == pytest.approx(1)
    assert out.detection == 30.0 * out.failures
    assert out.requeues == out.failures == 5000
    assert out.queue / out.failures == pytest.approx(621, rel=0.05)
    assert out.response / out.failures == pytest.approx(900, rel=0.05)
    # Half a cycle and the write on average: what was trained since the newest save that counted.
    assert out.repeated / out.failures == pytest.approx(300 + 60, rel=0.05)


def test_a_spare_replaces_a_bad_node_and_only_an_allocation_without_one_goes_to_the_queue() -> None:
    saving, mtbf = Saving(600.0, 1.0), 10 * HOUR
    out = {n: simulate(replace(SIMPLE, spares=n, requeue_s=100.0), saving, mtbf, 5000) for n in (0, 1, 4)}
    bad = sum(cause.count for cause in CAUSES if cause.node_is_bad) / 419
    for n, outcome in out.items():
        assert outcome.requeues / outcome.failures == pytest.approx(bad / (n + 1), rel=0.05)
    assert simulate(replace(SIMPLE, in_place=False), saving, mtbf, 500).requeues == 500


def test_causes_are_detected_as_they_are_seen() -> None:
    out = simulate(replace(SIMPLE, detect_s={CRASH: 1.0, HANG: 0.0, LOST: 1000.0}), Saving(600.0, 1.0), 10 * HOUR, 20_000)
    share = {way: sum(cause.count for cause in CAUSES if cause.seen_as == way) / 419 for way in (CRASH, LOST)}
    assert out.detection / out.failures == pytest.approx(share[CRASH] + 1000 * share[LOST], rel=0.1)


def test_an_allocation_that_ends_loses_a_start_and_the_queue_but_no_work() -> None:
    policy = replace(SIMPLE, requeue_s=100.0)
    out = simulate(policy, Saving(600.0, 1.0, 9.0), 1e5 * HOUR, failures=1, limit_s=24 * HOUR)
    assert out.requeues > 100
    assert out.restart / out.requeues == pytest.approx(600, rel=0.01)
    assert out.queue == 100 * out.requeues
    assert out.repeated < 700
    assert out.goodput == pytest.approx((24 * HOUR - 600 - 10) / (24 * HOUR + 100) * 600 / 601, rel=1e-3)


def test_failures_while_starting_train_nothing_and_saves_overlap_nothing() -> None:
    out = simulate(replace(SIMPLE, restart_s=1e9), Saving(600.0, 1.0), HOUR, failures=100)
    assert (out.useful, out.stall, out.repeated) == (0.0, 0.0, 0.0)
    assert math.isclose(out.restart, out.wall)
    with pytest.raises(ValueError, match=r"interval_s=10.0 must be at least write_s=60.0: one save at a time"):
        simulate(SIMPLE, Saving(10.0, 1.0, 60.0), HOUR, failures=1)


def test_the_command_prints_what_it_assumes_and_a_row_for_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--gpus", "1024", "--queue-wait-s", "0", "--failures", "200", "--spares", "2", "--restart-s", "77"])
    out = capsys.readouterr().out
    assert "0.474 per 1,000 GPU-days" in out
    assert "All: 77 s from launch to the first step" in out
    assert "1,024 GPUs: a failure every 49.5 h" in out
    for name in ("olmo launch, 2 spare", "olmo launch, no spare", "script that requeues itself", "started again by hand"):
        assert name in out
    main(["--gpus", "1024", "16384", "--queue-wait-s", "0", "60", "--failures", "200", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 * 2 * 4
    goodputs = [row["goodput"] for row in rows if row["gpus"] == 1024 and row["queue_wait_s"] == 60]
    assert goodputs == sorted(goodputs, reverse=True)
    spare = rows[0]
    assert spare["per_allocated_gpu"] == pytest.approx(spare["goodput"] * 128 / 129)
