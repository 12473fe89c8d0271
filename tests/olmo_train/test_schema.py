"""Composition and conversion: every problem at once, with a name, a value, a rule and a remedy."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pytest
from omegaconf import MISSING

from olmo_train.config.model import BalanceScope, MoEConfig
from olmo_train.config.optim import ParamKind
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.schema import load_config, read_yaml, to_dataclass, to_plain, to_yaml


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config("train", TrainConfig, list(overrides))
    return caught.value.problems


def compose(*overrides: str) -> TrainConfig:
    return load_config("train", TrainConfig, ["run_name=x", *overrides])


def test_values_groups_and_experiments_compose_in_this_order() -> None:
    run = compose("experiment=demo", "model=tiny_dense", "seed=7", "optim.lr=0.5")
    assert run.model.moe is None
    assert (run.seed, run.optim.lr, run.run_dir) == (7, 0.5, "runs/x")
    assert run.checkpoint.save_every == 100  # the experiment over the primary file
    assert compose("experiment=demo", "optim.lr=0.5").optim.lr == 0.5  # the command line over the experiment


def test_types_are_those_of_the_dataclass() -> None:
    run = compose(
        "optim.lr=1",
        "optim.no_decay=[norm, router]",
        "model.moe.load_balancing_scope=local",
        "data.sources.more={path: y, weight: 2}",
    )
    assert isinstance(run.optim.lr, float)
    assert run.optim.no_decay == [ParamKind.NORM, ParamKind.ROUTER]
    assert run.model.moe is not None
    assert run.model.moe.load_balancing_scope is BalanceScope.LOCAL
    assert run.data.sources["more"].weight == 2.0


def test_a_section_that_is_null_can_be_filled_by_names() -> None:
    run = compose(
        "model=tiny_dense",
        "model.moe={n_experts: 4, top_k: 2, d_expert: 8, load_balancing_loss_weight: 0, router_z_loss_weight: 0}",
    )
    assert isinstance(run.model.moe, MoEConfig)
    run = compose("model=tiny_dense", "optim.skip=null", "metrics.wandb.project=p")
    assert run.optim.skip is None
    assert run.metrics.wandb is not None
    assert run.metrics.wandb.mode == "auto"


def test_a_saved_config_reads_back_equal(tmp_path: Path) -> None:
    run = compose("optim.lr=1e-4", "optim.eps=1e-8", "experiment=olmoe_1b_7b")
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert read_yaml(tmp_path / "config.yaml", TrainConfig) == run
    assert "!!python" not in to_yaml(run)


def test_one_message_lists_every_problem() -> None:
    found = problems("optim.lrr=1", "model=tiny_mo", "data.seq_len=abc", "nonsense", "optim.lr=fast", "model.moe.gate=softmx")
    assert len(found) == 7
    text = "\n".join(found)
    for part in (
        "optim.lrr is not a field of OptimConfig (did you mean lr?); fields: ",
        "model=tiny_mo: configs/model/ has no 'tiny_mo' (did you mean tiny_moe?); options: ",
        "data.seq_len='abc' is a str, must be a int",
        "'nonsense' is not an override: ",
        "optim.lr='fast' is a str, must be a float",
        "model.moe.gate=softmx is not one of softmax, sigmoid (did you mean softmax?)",
        "run_name is missing: give run_name=<str>",
    ):
        assert part in text


def test_semantic_problems_are_listed_beside_typos() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            "train", TrainConfig, ["run_name=x", "optim.lrr=1", "seed=1.5"], check=lambda run: [f"checked seed {run.seed}"]
        )
    assert len(caught.value.problems) == 3
    assert caught.value.problems[-1] == "checked seed 6198"  # with the value from the file in place of the bad one


def test_appending_an_undeclared_key_is_refused() -> None:
    assert "model.moe.foo is not a field of MoEConfig" in problems("run_name=x", "+model.moe.foo=1")[0]
    assert "foo is not a field of TrainConfig" in problems("run_name=x", "++foo=1")[0]
    assert "optim.lr is a float and has no fields" in problems("run_name=x", "optim.lr.peak=1")[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_tokens=4e6", "max_tokens=4000000.0 is a float, must be a int; write 4000000"),
        ("parallel.compile=1", "parallel.compile=1 is a int, must be a bool; write true or false"),
        ("optim.no_decay=norm", "optim.no_decay='norm' is a str, must be a list"),
        (
            "optim.no_decay=[norms]",
            "optim.no_decay[0]=norms is not one of embedding, lm_head, norm, router, matrix (did you mean norm?)",
        ),
        ("model.moe=3", "model.moe=3 is not a section with fields of MoEConfig"),
        ("data.sources=[a]", "data.sources=[a]: Error merging override"),
        ("run_dir=${nowhere}", "run_dir: Interpolation key 'nowhere' not found"),
        ("experiment=[demo,nope]", "configs/experiment/ has no 'nope'"),
    ],
)
def test_each_kind_of_bad_value_has_its_message(override: str, message: str) -> None:
    found = problems("run_name=x", override)
    assert len(found) == 1
    assert message in found[0]


class Colour(StrEnum):
    RED = "red"


@dataclass
class Inner:
    must: int = MISSING
    may: int = 3


@dataclass
class Outer:
    inner: Inner = MISSING
    colour: Colour = Colour.RED
    maybe: Inner | None = None
    many: list[float] = field(default_factory=list)


def test_a_missing_value_inside_a_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"inner\.must is missing: give inner\.must=<int>"):
        to_dataclass({}, Outer)
    assert to_dataclass({"inner": {"must": 1}, "many": [1, 2.5]}, Outer) == Outer(Inner(1), many=[1.0, 2.5])


def test_plain_values_hold_no_enum() -> None:
    assert to_plain(Outer(Inner(1))) == {"inner": {"must": 1, "may": 3}, "colour": "red", "maybe": None, "many": []}


def test_reading_a_config_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; it is written when a run starts"):
        read_yaml(tmp_path / "config.yaml", TrainConfig)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "config.yaml", TrainConfig)
    (tmp_path / "config.yaml").write_text("seed: x\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: seed='x' is a str, must be a int"):
        read_yaml(tmp_path / "config.yaml", TrainConfig)
