"""Every named config composes into a valid run, and every model is the one it is named after."""

from pathlib import Path

import pytest

from checkpoints.publish.command import PublishConfig
from data_tools.decontaminate.config import DecontaminateConfig
from data_tools.dedupe.config import DedupeConfig
from data_tools.ingest.config import IngestConfig
from data_tools.ingest.gather_text import GatherConfig
from data_tools.mix.config import MixConfig
from data_tools.publish.command import PublishDataConfig
from data_tools.tag.config import TagConfig
from data_tools.tokenize.command import TokenizeConfig
from data_tools.tokenize.train_tokenizer import TokenizerConfig
from data_tools.write_manifest import ManifestConfig
from olmo_train.config.train import TrainConfig
from olmo_train.model.size import count_params, flops_per_token
from olmo_train.problems import find_problems
from olmo_train.schema import CONFIG_DIR, load_config

GROUPS = ("model", "data", "optim", "parallel", "experiment")
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]
# The two that need a value of the user's.
NEEDS = {"experiment=anneal": ["load.path=somewhere"]}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_without_a_problem(option: str) -> None:
    run = load_config("train", TrainConfig, ["run_name=test", option, *NEEDS.get(option, [])])
    # What depends on this machine's disk is not the config's fault.
    problems = [
        p
        for p in find_problems(run, n_ranks=256 if "olmoe" in option else 1)
        if "does not exist" not in p and "load.path" not in p
    ]
    wrong_scale = {"model", "optim", "parallel"}  # one group alone is a mixture of scales: a tiny run with a cluster's schedule
    if option.split("=")[0] in wrong_scale:
        problems = [p for p in problems if not p.startswith(("optim.schedule", "parallel.shard_size", "data.global_batch_size"))]
    if option == "data=olmoe_mix":
        problems = [p for p in problems if not p.startswith("max_tokens")]
    assert problems == []


@pytest.mark.parametrize(
    ("name", "schema", "overrides"),
    [
        ("gather", GatherConfig, []),
        ("tokenizer", TokenizerConfig, ["documents=[x]", "output=y"]),
        ("tokenize", TokenizeConfig, ["documents=[x]", "tokenizer=y", "output=z"]),
        ("publish", PublishConfig, ["run=x", "target=y"]),
        ("ingest", IngestConfig, ["output=x", "sources={a: {kind: text, paths: [b]}}"]),
        ("tag", TagConfig, ["documents=[x]", "name=y", "taggers=[gopher]"]),
        ("dedupe", DedupeConfig, ["documents=[x]", "name=y", "by=minhash"]),
        ("decontaminate", DecontaminateConfig, ["documents=[x]", "name=y"]),
        ("mix", MixConfig, ["sources.a.documents=[x]", "output=y"]),
        ("publish_data", PublishDataConfig, ["folders=[x]", "target=y", "name=z"]),
        ("manifest", ManifestConfig, ["sources={a: [b]}", "folder=c", "dtype=uint16", "vocab_size=10"]),
    ],
)
def test_every_primary_config_composes(name: str, schema: type, overrides: list[str]) -> None:
    assert isinstance(load_config(name, schema, overrides), schema)


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_is_a_small_delta_with_a_hypothesis(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert len(lines) <= 15


@pytest.mark.parametrize(
    ("model", "total", "active", "gflops"),
    [
        # Counted by the released models (docs/models.md); FLOPs per token at 4096.
        ("olmoe_1b_7b", 6_919_161_856, 1_282_017_280, 7.8787),
        ("olmo_1b", 1_176_764_416, 1_176_764_416, 7.8661),
        ("olmo2_1b", 1_484_916_736, 1_484_916_736, 8.4811),
        ("olmo2_7b", 7_298_617_344, 7_298_617_344, None),
        ("olmo2_13b", 13_716_198_400, 13_716_198_400, None),
        ("olmo2_32b", 32_234_279_936, 32_234_279_936, None),
        ("olmo3_7b", 7_298_617_344, 7_298_617_344, None),
    ],
)
def test_released_models_have_their_size(model: str, total: int, active: int, gflops: float | None) -> None:
    run = load_config("train", TrainConfig, ["run_name=test", f"model={model}"])
    counts = count_params(run.model)
    assert (counts.total, counts.active) == (total, active)
    if gflops is not None:
        assert round(flops_per_token(run.model, 4096) / 1e9, 4) == gflops


def test_the_small_models_have_the_size_of_their_name() -> None:
    sizes = {}
    for model in ("dense_190m", "moe_1b"):
        sizes[model] = count_params(load_config("train", TrainConfig, ["run_name=test", f"model={model}"]).model)
    assert 185e6 < sizes["dense_190m"].total < 195e6
    assert 0.9e9 < sizes["moe_1b"].total < 1.1e9


def test_the_reference_run_is_the_published_recipe() -> None:
    run = load_config("train", TrainConfig, ["run_name=test", "experiment=olmoe_1b_7b"])
    moe = run.model.moe
    assert moe is not None
    assert (moe.n_experts, moe.top_k, moe.d_expert, moe.normalize_top_k) == (64, 8, 1024, False)
    assert moe.load_balancing_loss_weight == 0.01
    assert moe.router_z_loss_weight == 0.001 / 8  # the fork divides by top_k
    assert (run.optim.lr, run.optim.beta1, run.optim.beta2, run.optim.eps, run.optim.weight_decay) == (4e-4, 0.9, 0.95, 1e-8, 0.1)
    assert run.optim.no_decay == []
    assert run.data.global_batch_size == 1024 * 4096
    assert run.optim.schedule.warmup_tokens == 2500 * run.data.global_batch_size
    assert run.max_tokens == 1_200_000 * run.data.global_batch_size
