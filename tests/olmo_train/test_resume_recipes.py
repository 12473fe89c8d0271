"""Optimizer states of every kind through real step folders: saved, resumed, cut anew, and converted."""

import shutil
from pathlib import Path

import pytest

from olmo_train.checkpoint import read_manifest, read_state
from tests.runs import losses, run_training, small, weights

BF16 = ["parallel.compute_dtype=bfloat16", "optim.weight_dtype=bfloat16"]
INT8 = ["optim.moment_dtype=int8"]
MUON = [*BF16, "optim.moment_dtype=bfloat16", "optim.muon={}"]


@pytest.mark.parametrize("recipe", [INT8, MUON], ids=["int8 moments", "bf16 weights, muon"])
def test_ten_steps_are_five_and_five_bit_for_bit_and_other_ranks_agree(shards: Path, tmp_path: Path, recipe: list[str]) -> None:
    run_training(small(shards, tmp_path / "whole", *recipe), 2)
    run_training(small(shards, tmp_path / "cut", *recipe, "stop_at_step=5"), 2)
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    run_training(small(shards, tmp_path / "cut", *recipe), 2)
    assert weights(tmp_path / "cut", 10) == weights(tmp_path / "whole", 10)
    run_training(small(shards, tmp_path / "moved", *recipe), 1)
    assert losses(tmp_path / "moved")[:5] == losses(tmp_path / "whole")[:5]
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=3e-3)  # the products run in bfloat16


def test_a_checkpoint_of_one_recipe_begins_a_run_of_another(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "exact", "stop_at_step=5"))
    step = tmp_path / "exact/steps/step00000005"
    run_training(small(shards, tmp_path / "compact", *BF16, *INT8, f"load.path={step}", "stop_at_step=5"))
    tensors = read_manifest(tmp_path / "compact/steps/step00000005")["tensors"]
    assert tensors["model"]["embedding.weight"]["dtype"] == "BF16"
    assert tensors["optim"]["exp_avg/embedding.weight"]["dtype"] == "U8"
    assert tensors["optim"]["exp_avg_sq.scale/blocks.0.moe.w_in"]["shape"] == [4, 4]  # 32 * 32 entries of an expert
    assert tensors["optim"]["exp_avg/norm.weight"]["dtype"] == "F32"
    assert losses(tmp_path / "compact")[0] < losses(tmp_path / "exact")[0] - 0.1
    step = tmp_path / "compact/steps/step00000005"
    run_training(small(shards, tmp_path / "back", f"load.path={step}", "stop_at_step=1"))
    assert losses(tmp_path / "back")[0] < losses(tmp_path / "compact")[0]
    assert read_state(tmp_path / "back/steps/step00000001")["optimizer_steps"] == 11  # the moments came along: 5 + 5 + 1
    with pytest.raises(AssertionError, match=r"no momentum of .*load\.optimizer_state=false"):
        run_training(small(shards, tmp_path / "muon", "optim.muon={}", f"load.path={step}"))
    run_training(small(shards, tmp_path / "muon", "optim.muon={}", f"load.path={step}", "load.optimizer_state=false"))


def test_a_run_keeps_its_recipe(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "run", "stop_at_step=1"))
    with pytest.raises(AssertionError) as caught:
        run_training(small(shards, tmp_path / "run", "optim.moment_dtype=bfloat16", "optim.muon={}"))
    assert "optim.moment_dtype=bfloat16, but " in str(caught.value)
    assert "optim.muon.momentum=0.95, but " in str(caught.value)
