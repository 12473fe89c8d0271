"""Muon against a naive one, one matrix at a time; and the same on any number of ranks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from olmo_train.config.dtypes import FloatType, MomentType
from olmo_train.config.model import ModelConfig
from olmo_train.config.optim import MuonConfig, OptimConfig, ParamKind, ScheduleConfig, ScheduleKind
from olmo_train.config.train import Device, ParallelConfig, TrainConfig
from olmo_train.model.shapes import stacked_rows
from olmo_train.optim.build import build_optimizer
from olmo_train.optim.newton_schulz import orthogonalize, orthogonalize_stacked
from olmo_train.optim.parts import Part
from olmo_train.parallel.mesh import init_distributed
from olmo_train.schema import load_config
from tests.distributed import spawn

SHAPES = {
    "a.w_qkv.weight": ((14, 8), (6, 4, 4)),
    "b.w_qkv.weight": ((14, 8), (6, 4, 4)),
    "c.w_qkv.weight": ((14, 8), (6, 4, 4)),
    "a.w_out.weight": ((8, 12), (8,)),
    "b.w_in.weight": ((2, 8), (1, 1)),  # fewer rows than ranks
    "moe.w_in": ((3, 10, 8), (5, 5)),
    "moe.w_out": ((3, 8, 5), (8,)),
}
LR, STEPS = 0.02, 3


def normal(name: str, what: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * what + list(SHAPES).index(name))
    return torch.randn(SHAPES[name][0], generator=generator)


def naive(weight: Tensor, name: str) -> Tensor:
    """One matrix at a time, the orthogonal factor from an SVD, in float64."""
    weight, momentum = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    matrices, columns = weight.view(-1, *weight.shape[-2:]), weight.shape[-1]
    for step in range(STEPS):
        g = normal(name, 1 + step).double() / 2
        momentum = 0.95 * momentum + g
        ahead = (g + 0.95 * momentum).view_as(matrices)
        ends = torch.tensor([0, *SHAPES[name][1]]).cumsum(0).tolist()
        for matrix, update in zip(matrices, ahead, strict=True):
            for start, stop in pairwise(ends):
                u, _, vt = torch.linalg.svd(update[start:stop], full_matrices=False)
                matrix[start:stop] -= LR * (0.1 * matrix[start:stop] + 0.2 * max(stop - start, columns) ** 0.5 * u @ vt)
    return weight


def train(weight_dtype: FloatType, n_iterations: int) -> dict[str, np.ndarray]:
    """On this rank's rows: STEPS steps; returns its rows, in float32."""
    layout = init_distributed(ParallelConfig(device=Device.CPU, compute_dtype=FloatType.FLOAT32))
    n, rank = layout.n_ranks, layout.rank
    dtype = torch.float32 if weight_dtype == FloatType.FLOAT32 else torch.bfloat16

    def cut(tensor: Tensor) -> tuple[Tensor, int]:
        per_rank = -(-len(tensor) // n)
        start = min(rank * per_rank, len(tensor))
        return tensor[start : start + per_rank].clone(), start

    parts = {}
    for name, (shape, stacked) in SHAPES.items():
        rows, start = cut(normal(name, 0))
        parts[name] = Part(rows.to(dtype), ParamKind.MATRIX, shape, start, stacked)
    rows, start = cut(torch.ones(5))
    parts["norm"] = Part(rows.to(dtype), ParamKind.NORM, (5,), start)
    muon = MuonConfig(n_iterations=n_iterations)
    schedule = ScheduleConfig(kind=ScheduleKind.CONSTANT)
    formats = {"weight_dtype": weight_dtype, "moment_dtype": MomentType.FLOAT32}
    optimizer = build_optimizer(parts, OptimConfig(lr=LR, muon=muon, schedule=schedule, **formats), 3, layout.shard_group)
    for step in range(STEPS):
        grads = {name: cut(normal(name, 1 + step))[0] for name in SHAPES} | {"norm": torch.ones(parts["norm"].tensor.shape)}
        optimizer.step(grads, LR, torch.tensor(2.0), torch.zeros(()))
    dist.destroy_process_group()
    return {name: part.tensor.float().numpy() for name, part in parts.items()}


def join(ranks: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.concatenate([rank[name] for rank in ranks])) for name in ranks[0]}


def test_it_is_the_naive_one() -> None:
    trained = join(spawn(train, 1, FloatType.FLOAT32, 9))  # so many iterations that nothing is left of the approximation
    for name in SHAPES:
        torch.testing.assert_close(trained[name].double(), naive(normal(name, 0), name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight_dtype", list(FloatType))
def test_the_number_of_ranks_changes_nothing(weight_dtype: FloatType) -> None:
    one = join(spawn(train, 1, weight_dtype, 5))
    for n_ranks in (2, 4):
        several = join(spawn(train, n_ranks, weight_dtype, 5))
        for name, expected in one.items():
            got = several[name]
            has_bf16_weights = weight_dtype == FloatType.BFLOAT16
            if has_bf16_weights:  # the same random bits: only a sum's last bit can cross a boundary
                assert (got != expected).float().mean() < 0.02, name
            torch.testing.assert_close(got, expected, rtol=2**-7 if has_bf16_weights else 0, atol=2e-6)


def test_singular_values_end_near_one_and_the_vectors_stay() -> None:
    x = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(x, 5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.84
    assert values.max() < 1.13
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(orthogonalize(x, 9), u @ vt, rtol=0, atol=1e-5)
    assert not orthogonalize(torch.zeros(1, 4, 6), 5).any()


def test_bfloat16_products_are_good_enough() -> None:
    x = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    exact, rough = orthogonalize(x, 5), orthogonalize(x.bfloat16(), 5).float()
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.999


def test_an_update_has_the_size_of_adamws() -> None:
    """Root mean square 0.2 for any shape (arXiv 2502.16982), where AdamW's is 0.2 to 0.4."""
    for shape, stacked in (((2, 96, 32), (48, 48)), ((1, 32, 96), (32,)), ((1, 64, 64), (32, 16, 16))):
        update = orthogonalize_stacked(torch.randn(shape, generator=torch.Generator().manual_seed(0)), stacked, 9)
        for matrix in update.split(stacked, 1):
            assert matrix.square().mean().sqrt().item() == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "name", "shape", "expected"),
    [
        ("olmoe_1b_7b", "blocks.0.attention.w_qkv.weight", (6144, 2048), (2048, 2048, 2048)),
        ("olmoe_1b_7b", "blocks.0.moe.w_in", (64, 2048, 2048), (1024, 1024)),
        ("olmoe_1b_7b", "blocks.0.moe.w_out", (64, 2048, 1024), (2048,)),
        ("olmo2_1b", "blocks.0.feed_forward.w_in.weight", (16384, 2048), (8192, 8192)),
        ("olmo2_1b", "blocks.0.attention.w_out.weight", (2048, 2048), (2048,)),
        ("olmo2_1b", "norm.weight", (2048,), ()),
    ],
)
def test_matrices_that_share_a_parameter_are_told_apart(
    model: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    config: ModelConfig = load_config("train", TrainConfig, ["run_name=x", f"model={model}"]).model
    assert stacked_rows(name, shape, config) == expected


def test_fewer_kv_heads_are_smaller_matrices() -> None:
    overrides = ["run_name=x", "model=tiny_moe", "model.n_heads=4", "model.n_kv_heads=2"]
    config = load_config("train", TrainConfig, overrides).model
    assert stacked_rows("blocks.0.attention.w_qkv.weight", (8 * 16, 128), config) == (64, 32, 32)
