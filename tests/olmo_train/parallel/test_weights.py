"""One rank without FSDP2: float32 weights beside the bfloat16 ones that compute; the same training as on several ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from olmo_train.checkpoint import read_manifest
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Loader, open_sources
from olmo_train.data.order import DataOrder
from olmo_train.metrics import PhaseTimer
from olmo_train.parallel.mesh import init_distributed
from olmo_train.schema import load_config
from olmo_train.train import build, draw_weights
from olmo_train.train_step import TrainStep
from tests.distributed import spawn
from tests.runs import losses, run_training, small, weights

BF16 = "parallel.compute_dtype=bfloat16"
RECIPES = {
    "AdamW": [], "bf16 moments": ["optim.moment_dtype=bfloat16"], "int8 moments": ["optim.moment_dtype=int8"],
    "Muon": ["optim.muon={}"], "bf16 weights": ["optim.weight_dtype=bfloat16"],
}  # fmt: skip


def three_steps(overrides: list[str]) -> dict[str, Any]:
    """What stands after three steps of one rank."""
    run = load_config("train", TrainConfig, overrides)
    layout = init_distributed(run.parallel)
    order = DataOrder(open_sources(run.data, Path()), run.seed, run.data.seq_len, run.data.global_batch_size)
    live = build(run, layout, order)
    draw_weights(run, live)
    at_first = all(w.copy is None or torch.equal(w.copy, w.tensor.bfloat16()) for w in live.weights.values())
    before = {name: w.tensor.clone() for name, w in live.weights.items()}
    step = TrainStep(live.model, live.optimizer, live.guard, layout, run)
    for _, rows in Loader(order, run.data, 0, 1).steps(1, 3):
        step(rows, 1e-2, PhaseTimer(layout.device))
    params = dict(live.model.named_parameters())
    return {
        "fsdp": isinstance(live.model, FSDPModule),
        "computes in": {p.dtype for p in params.values()},
        "updates": {w.tensor.dtype for w in live.weights.values()},
        "in step at first": at_first,
        "in step": all(torch.equal(params[name], w.tensor.bfloat16()) for name, w in live.weights.items()),
        "moved": all(not torch.equal(before[name], w.tensor) for name, w in live.weights.items()),
        "no gradient left": all(p.grad is None for p in params.values()),
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_weights_that_compute_are_the_updated_ones_rounded(shards: Path, tmp_path: Path, recipe: str) -> None:
    (found,) = spawn(three_steps, 1, small(shards, tmp_path / "run", BF16, *RECIPES[recipe]))
    updated = torch.bfloat16 if recipe == "bf16 weights" else torch.float32
    assert found == {
        "fsdp": False, "computes in": {torch.bfloat16}, "updates": {updated}, "in step at first": True, "in step": True,
        "moved": True, "no gradient left": True,
    }  # fmt: skip


def test_one_rank_trains_as_two_do_and_saves_float32(shards: Path, tmp_path: Path) -> None:
    """In bfloat16 with micro-steps, whose gradients both add up in float32."""
    for n in (1, 2):
        run_training(small(shards, tmp_path / f"ranks{n}", BF16), n)
    assert losses(tmp_path / "ranks1") == pytest.approx(losses(tmp_path / "ranks2"), rel=2e-3)
    manifest = read_manifest(tmp_path / "ranks1/steps/step00000010")
    assert {entry["dtype"] for entry in manifest["tensors"]["model"].values()} == {"F32"}


def test_a_stopped_run_goes_on_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "whole", BF16))
    stopped = small(shards, tmp_path / "stopped", BF16)
    run_training([*stopped, "stop_at_step=4"])
    run_training(stopped)
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert weights(tmp_path / "whole", 10) == weights(tmp_path / "stopped", 10)
