"""Seeds that any machine derives alike, and generator states that come back exactly."""

import random

import numpy as np
import pytest
import torch

from olmo_train.rng import rng_state, seed_everything, seed_of, set_rng_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _leave_the_generators_alone():  # type: ignore[no-untyped-def]
    before = rng_state(CPU)
    yield
    set_rng_state(before, CPU)


def draw() -> list[object]:
    """A few numbers of every generator, of kinds that leave something behind for the next draw."""
    return [
        random.random(), random.gauss(0, 1), random.getrandbits(100), np.random.rand(), np.random.standard_normal(3).tolist(),
        np.random.permutation(10).tolist(), torch.rand(3).tolist(), torch.randn(5).tolist(), torch.randperm(10).tolist(),
    ]  # fmt: skip


# ---- seeds -----------------------------------------------------------------------------------------------------------------


def test_seeds_are_the_same_on_every_machine() -> None:
    """Changing these changes the weights that every config starts from."""
    assert seed_of() == 4090036724241674979
    assert seed_of("run", 0, 0) == 6142166212074136900
    assert seed_of("init", 1234, "embed", None, ["ü", 0.5, True]) == 5771141109927483106


def test_a_seed_is_63_bits_and_fits_every_generator() -> None:
    seeds = [seed_of("x", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):  # each bit is set about as often as not
        assert 850 < sum(seed >> bit & 1 for seed in seeds) < 1150
    torch.Generator().manual_seed(max(seeds))


def test_parts_are_kept_apart() -> None:
    parts = [("a", "b"), ("ab",), ("a", "b", ""), (["a", "b"],), ("1",), (1,), (1.0,), (True,), (None,), ("null",), (), ("",)]
    assert len({seed_of(*part) for part in parts}) == len(parts)


def test_what_json_cannot_write_is_no_part_of_a_seed() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        seed_of(object())


def test_a_seed_and_a_rank_decide_all_generators() -> None:
    draws = []
    for seed, rank in ((0, 0), (0, 0), (0, 1), (1, 0), (10**12, 511)):
        seed_everything(seed, rank)
        draws.append(draw())
    assert draws[0] == draws[1]
    for i in range(len(draws[0])):  # no generator draws alike on two ranks or for two seeds
        assert len({repr(d[i]) for d in draws[1:]}) == 4


# ---- states ----------------------------------------------------------------------------------------------------------------


def test_a_restored_state_draws_what_came_next() -> None:
    seed_everything(3, 0)
    draw()  # an odd number of normals: a cached second half is part of the state
    state = rng_state(CPU)
    following = [draw(), draw()]
    seed_everything(4, 0)
    draw()
    set_rng_state(state, CPU)
    assert [draw(), draw()] == following


def test_reading_the_state_draws_nothing() -> None:
    seed_everything(3, 0)
    rng_state(CPU)
    once = draw()
    seed_everything(3, 0)
    assert draw() == once


def test_a_state_is_bytes_that_a_checkpoint_can_hold() -> None:
    seed_everything(3, 0)
    np.random.standard_normal()
    random.gauss(0, 1)
    state = rng_state(CPU)
    assert sorted(state) == ["python_numpy", "torch"]
    assert all(tensor.dtype is torch.uint8 and tensor.ndim == 1 for tensor in state.values())
    copy = {name: torch.tensor(tensor.tolist(), dtype=torch.uint8) for name, tensor in state.items()}
    following = draw()
    set_rng_state(copy, CPU)
    assert draw() == following
    set_rng_state(state, CPU)
    again = rng_state(CPU)
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_state_of_the_device_is_kept_too() -> None:
    device = torch.device("cuda")
    state = rng_state(device)
    following = torch.rand(5, device=device)
    set_rng_state(state, device)
    assert torch.equal(torch.rand(5, device=device), following)
