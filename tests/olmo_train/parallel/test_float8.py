"""float8 projections: which layers take them, what is refused, and that training with them still learns the same."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import Float8, ParallelConfig
from olmo_train.parallel.float8 import find_float8_problems, use_float8
from tests.runs import losses, run_training, small

pytest.importorskip("torchao")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(float8: Float8, dtype: FloatType = FloatType.BFLOAT16) -> ParallelConfig:
    return ParallelConfig(compute_dtype=dtype, float8=float8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fits = nn.Linear(32, 16, bias=False)
        self.odd = nn.Linear(24, 32, bias=False)
        self.router = nn.Parameter(torch.empty(4, 32))


@pytest.mark.parametrize("kind", [Float8.TENSORWISE, Float8.ROWWISE])
def test_only_linear_layers_of_fitting_widths_are_converted(kind: Float8) -> None:
    block = Block()
    names = list(dict(block.named_parameters()))
    assert use_float8([block], kind, CPU) == 1
    assert type(block.fits).__name__ == "Float8Linear"
    assert type(block.odd) is nn.Linear
    assert list(dict(block.named_parameters())) == names


@pytest.mark.parametrize("kind", [Float8.TENSORWISE, Float8.ROWWISE])
def test_products_are_those_of_rounded_operands(kind: Float8) -> None:
    torch.manual_seed(0)
    block, x = Block().bfloat16(), torch.randn(64, 32).bfloat16().requires_grad_()
    expected = block.fits(x)
    expected_grads = torch.autograd.grad(expected.float().square().sum(), (x, block.fits.weight))
    use_float8([block], kind, CPU)
    ours = block.fits(x)
    grads = torch.autograd.grad(ours.float().square().sum(), (x, block.fits.weight))
    for a, b in zip((ours, *grads), (expected, *expected_grads), strict=True):
        error = float(((a.float() - b.float()).norm() / b.float().norm()).detach())
        assert 1e-3 < error < 0.1  # float8 has 3 bits of mantissa: rounded, and not much more than that


def test_training_with_float8_projections_follows_training_without(tmp_path: Path, shards: Path) -> None:
    runs = {}
    for kind in ("none", "tensorwise"):
        run_training(small(shards, tmp_path / kind, f"parallel.float8={kind}"))
        runs[kind] = losses(tmp_path / kind)
    assert runs["none"] != runs["tensorwise"]
    assert runs["tensorwise"] == pytest.approx(runs["none"], rel=0.03)


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(find_float8_problems(config(Float8.NONE, FloatType.FLOAT32), CUDA)) == []
    assert list(find_float8_problems(config(Float8.ROWWISE), CPU)) == []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert list(find_float8_problems(config(Float8.TENSORWISE, FloatType.FLOAT32), CUDA)) == [
        "parallel.float8=tensorwise needs torchao; pip install 'olmo-train[torchao]', or parallel.float8=none",
        "parallel.float8=tensorwise needs parallel.compute_dtype=bfloat16, it is float32; set it, or parallel.float8=none",
        "parallel.float8=tensorwise needs a GPU with float8 products (compute capability 8.9 or newer); use parallel.float8=none",
    ]
