"""Every recipe of number formats: skips, saved state, conversion of one recipe's state into another's, and bytes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from olmo_train.config.dtypes import FloatType, MomentType
from olmo_train.config.optim import MuonConfig, OptimConfig, ParamKind, ScheduleConfig, ScheduleKind
from olmo_train.errors import CheckpointError
from olmo_train.optim.build import Optimizer, build_optimizer
from olmo_train.optim.parts import Part

F32, BF16, INT8 = MomentType.FLOAT32, MomentType.BFLOAT16, MomentType.INT8
ADAMW: list[tuple[FloatType, MomentType, bool]] = [(weight, moment, False) for weight in FloatType for moment in MomentType]
MUON = [(weight, moment, True) for weight in FloatType for moment in (F32, BF16)]
ONE, ZERO = torch.ones(()), torch.zeros(())
SHAPES = {
    "embedding.weight": ((40, 24), ParamKind.EMBEDDING, (40,)),
    "w_in": ((3, 20, 24), ParamKind.MATRIX, (10, 10)),
    "w_out": ((24, 300), ParamKind.MATRIX, (24,)),
    "w_qkv": ((20, 24), ParamKind.MATRIX, (12, 4, 4)),
    "norm.weight": ((24,), ParamKind.NORM, ()),
}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[Any]:
    """A process group of one, and one thread: these tensors are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def config(weight: FloatType, moment: MomentType, is_muon: bool) -> OptimConfig:
    schedule = ScheduleConfig(kind=ScheduleKind.CONSTANT)
    muon = MuonConfig() if is_muon else None
    return OptimConfig(lr=0.1, schedule=schedule, weight_dtype=weight, moment_dtype=moment, muon=muon)


def parts(weight: FloatType) -> dict[str, Part]:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if weight == FloatType.FLOAT32 else torch.bfloat16
    return {
        name: Part(torch.randn(shape, generator=generator).to(dtype), kind, shape, 0, stacked)
        for name, (shape, kind, stacked) in SHAPES.items()
    }


def new(recipe: tuple[FloatType, MomentType, bool]) -> tuple[dict[str, Part], Optimizer]:
    mine = parts(recipe[0])
    return mine, build_optimizer(mine, config(*recipe), 7, dist.group.WORLD)


def grads(mine: dict[str, Part], step: int, factor: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {n: (torch.randn(p.shape, generator=generator) * factor).to(p.tensor.dtype) for n, p in mine.items()}


def state(mine: dict[str, Part], optimizer: Optimizer) -> dict[str, Tensor]:
    return {name: part.tensor for name, part in mine.items()} | optimizer.moments()


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize("recipe", ADAMW + MUON, ids=str)
@pytest.mark.parametrize("bad", [1e30, float("nan")])
def test_a_skipped_step_touches_nothing(recipe: tuple[FloatType, MomentType, bool], bad: float) -> None:
    mine, optimizer = new(recipe)
    optimizer.step(grads(mine, 0, bad), 0.1, torch.tensor(bad), ONE)  # the first of all, too
    assert optimizer.steps_taken == 0
    optimizer.step(grads(mine, 1), 0.1, ONE, ZERO)
    before = copies(state(mine, optimizer))
    optimizer.step(grads(mine, 2, bad), 0.1, torch.tensor(bad), ONE)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(mine, optimizer).items())
    assert optimizer.steps_taken == 1
    others, never_skipped = new(recipe)
    never_skipped.step(grads(others, 1), 0.1, ONE, ZERO)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(others, never_skipped).items())


@pytest.mark.parametrize("recipe", ADAMW + MUON, ids=str)
def test_saved_state_continues_bit_for_bit(recipe: tuple[FloatType, MomentType, bool]) -> None:
    mine, optimizer = new(recipe)
    for step in range(3):
        optimizer.step(grads(mine, step), 0.01, ONE, ZERO)
    others, resumed = new(recipe)
    for name, part in mine.items():
        others[name].tensor.copy_(part.tensor)
    resumed.load(copies(optimizer.moments()), optimizer.steps_taken)
    for step in range(3, 6):
        optimizer.step(grads(mine, step), 0.01, ONE, ZERO)
        resumed.step(grads(others, step), 0.01, ONE, ZERO)
    theirs = state(others, resumed)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state(mine, optimizer).items())
    assert resumed.steps_taken == 6


@pytest.mark.parametrize("recipe", ADAMW + MUON, ids=str)
def test_every_recipe_follows_float32(recipe: tuple[FloatType, MomentType, bool]) -> None:
    """The direction in which weights have moved after 20 steps, against float32's."""
    ends = []
    for each in (recipe, (FloatType.FLOAT32, F32, recipe[2])):
        mine, optimizer = new(each)
        begin = copies({name: part.tensor.float() for name, part in mine.items()})
        for step in range(20):
            optimizer.step(grads(mine, step), 0.05, torch.tensor(3.0), ZERO)
        ends.append(torch.cat([(part.tensor.float() - begin[name]).flatten() for name, part in mine.items()]))
    assert torch.cosine_similarity(*ends, dim=0) > 0.99
    assert (ends[0].norm() / ends[1].norm()).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("before", ADAMW, ids=str)
@pytest.mark.parametrize("after", ADAMW, ids=str)
def test_moments_of_one_recipe_load_into_another(
    before: tuple[FloatType, MomentType, bool], after: tuple[FloatType, MomentType, bool]
) -> None:
    mine, optimizer = new(before)
    for step in range(3):
        optimizer.step(grads(mine, step), 0.01, ONE, ZERO)
    _, other = new(after)
    other.load(copies(optimizer.moments()), 3)
    exact, through = new((FloatType.FLOAT32, F32, False))[1], new((FloatType.FLOAT32, F32, False))[1]
    exact.load(copies(optimizer.moments()), 3)
    through.load(copies(other.moments()), 3)
    for name, expected in exact.moments().items():
        expected = expected.sqrt() if "exp_avg_sq" in name else expected
        got = through.moments()[name]
        got = got.sqrt() if "exp_avg_sq" in name else got
        tolerance = 0.008 if INT8 in (after[1],) else 2**-8 if BF16 in (after[1],) else 1e-6
        assert ((got - expected).abs().max() / expected.abs().max()) <= tolerance, name
    assert other.steps_taken == 3


def test_muon_cannot_take_adamws_moments() -> None:
    mine, adamw = new((FloatType.FLOAT32, F32, False))
    adamw.step(grads(mine, 0), 0.01, ONE, ZERO)
    _, muon = new((FloatType.FLOAT32, F32, True))
    with pytest.raises(
        CheckpointError, match=r"no momentum of w_in: it was written by another optimizer.*load\.optimizer_state=false"
    ):
        muon.load(adamw.moments(), 1)


@pytest.mark.parametrize(
    ("recipe", "n_bytes"),
    [
        ((FloatType.FLOAT32, F32, False), 12), ((FloatType.FLOAT32, BF16, False), 8), ((FloatType.BFLOAT16, BF16, False), 6),
        ((FloatType.BFLOAT16, INT8, False), 4), ((FloatType.FLOAT32, INT8, False), 6), ((FloatType.BFLOAT16, BF16, True), 4),
        ((FloatType.FLOAT32, F32, True), 8),
    ],
)  # fmt: skip
def test_bytes_per_parameter_are_what_the_docs_say(recipe: tuple[FloatType, MomentType, bool], n_bytes: int) -> None:
    """Weights and moments of a matrix; scales of 8-bit moments are 1/32 byte."""
    dtype = torch.float32 if recipe[0] == FloatType.FLOAT32 else torch.bfloat16
    mine = {
        "w": Part(torch.zeros(64, 512, dtype=dtype), ParamKind.MATRIX, (64, 512), 0, (64,)),
        "n": Part(torch.zeros(1, dtype=dtype), ParamKind.NORM, (1,), 0),
    }
    optimizer = build_optimizer(mine, config(*recipe), 7, dist.group.WORLD)
    moments = [tensor for name, tensor in optimizer.moments().items() if name.endswith("/w")]
    found = sum(tensor.nbytes for tensor in [mine["w"].tensor, *moments]) / mine["w"].tensor.numel()
    assert found == n_bytes + (1 / 32 if recipe[1] == INT8 else 0)


@pytest.mark.parametrize("recipe", ADAMW + MUON, ids=str)
def test_empty_parts_are_fine(recipe: tuple[FloatType, MomentType, bool]) -> None:
    mine = {n: Part(p.tensor[:0].clone(), p.kind, p.shape, p.shape[0], p.stacked) for n, p in parts(recipe[0]).items()}
    optimizer = build_optimizer(mine, config(*recipe), 7, dist.group.WORLD)
    empty = {name: part.tensor.clone() for name, part in mine.items()}
    optimizer.step(empty, 0.1, ONE, ZERO)
    optimizer.load(copies(optimizer.moments()), 1)
    assert all(len(tensor) == 0 for tensor in optimizer.moments().values())
