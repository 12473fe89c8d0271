"""Schedules at their corners, and OLMoE's at the steps its release reports."""

import pytest

from olmo_train.config.optim import ScheduleConfig, ScheduleKind
from olmo_train.config.train import TrainConfig
from olmo_train.optim.schedule import multiplier
from olmo_train.schema import load_config


def at(kind: str, tokens: int, max_tokens: int = 1000, **values: object) -> float:
    return multiplier(ScheduleConfig(kind=ScheduleKind(kind), **values), tokens, max_tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [kind.value for kind in ScheduleKind])
def test_warmup_is_a_line_from_its_fraction_to_one(kind: str) -> None:
    values = {"warmup_tokens": 100, "warmup_start_frac": 0.1, "decay_tokens": 500}
    assert at(kind, 0, **values) == pytest.approx(0.1)
    assert at(kind, 50, **values) == pytest.approx(0.55)
    assert at(kind, 100, **values) == pytest.approx(1.0)


def test_cosine_reaches_its_floor_and_stays() -> None:
    values = {"warmup_tokens": 100, "decay_tokens": 900, "final_frac": 0.1}
    assert at("cosine", 500, **values) == pytest.approx(0.55)
    assert at("cosine", 900, **values) == pytest.approx(0.1)
    assert at("cosine", 950, **values) == pytest.approx(0.1)
    assert at("cosine", 1000, final_frac=0.0) == pytest.approx(0.0)  # decay_tokens=null: the run's end


def test_linear_anneals_to_zero() -> None:
    assert [at("linear", t) for t in (0, 250, 1000)] == pytest.approx([1.0, 0.75, 0.0])


def test_wsd_holds_and_then_decays() -> None:
    values = {"warmup_tokens": 100, "decay_tokens": 200, "final_frac": 0.2}
    assert [at("wsd", t, **values) for t in (100, 800, 900, 1000)] == pytest.approx([1.0, 1.0, 0.6, 0.2])


def test_constant_is_constant() -> None:
    assert {at("constant", t) for t in (1, 500, 1000)} == {1.0}


def test_olmoe_has_the_learning_rates_of_its_release() -> None:
    """configs/OLMoE-1B-7B-0924.yml: from 4e-5 to 4e-4 over 2,500 steps, cosine to 4e-5 at 5T tokens, constant after."""
    run = load_config("train", TrainConfig, ["run_name=x", "experiment=olmoe_1b_7b"])
    batch, peak = run.data.global_batch_size, run.optim.lr
    assert peak is not None
    lr = {
        step: peak * multiplier(run.optim.schedule, step * batch, run.max_tokens)
        for step in (1, 1250, 2500, 1_192_093, 1_200_000)
    }
    assert lr[1] == pytest.approx(4e-5 + 3.6e-4 / 2500)
    assert lr[1250] == pytest.approx(2.2e-4)
    assert lr[2500] == pytest.approx(4e-4)
    assert lr[1_192_093] == pytest.approx(4e-5)
    assert lr[1_200_000] == pytest.approx(4e-5)
