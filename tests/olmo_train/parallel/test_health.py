"""The health check: a device or a link that computes wrongly is found and named on every rank; healthy ones pass."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from olmo_train.attempt import node_name
from olmo_train.config.faults import FaultsConfig
from olmo_train.config.train import ParallelConfig
from olmo_train.errors import UnhealthyError
from olmo_train.parallel import health
from olmo_train.parallel.health import DTYPES, check_health, check_products
from olmo_train.parallel.mesh import init_distributed
from tests.distributed import spawn

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_healthy_device_passes_and_one_wrong_number_of_many_does_not(dtype: torch.dtype) -> None:
    assert list(check_products(CPU, dtype)) == []
    (problem,) = check_products(CPU, dtype, is_sick=True)
    assert "is wrong in 1 of 65536 places, at [128, 85] it is" in problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_known_product_is_the_product(dtype: torch.dtype) -> None:
    left, right = health._factors(96)
    expected = left @ right
    assert expected.abs().max() < 256  # bfloat16 holds it
    assert torch.equal((left.to(dtype) @ right.to(dtype)).long(), expected)
    assert torch.equal(left[:7], left[7:14])
    assert torch.equal(right[:, :5], right[:, 5:10])


def failing_memory(device: torch.device) -> Any:
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nand more")


def test_an_error_of_the_device_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "check_products", lambda device, dtype, is_sick: failing_memory(device))
    assert list(health._device_problems(CPU, False)) == ["the device fails: CUDA error: uncorrectable ECC error encountered"]


def outcome(faults: FaultsConfig, sick_rank: int | None, damage: str | None) -> tuple[str, list[str]]:
    """What check_health says on this rank; `damage`: the collective in which rank 1's part goes out wrong."""
    layout = init_distributed(ParallelConfig(threads_per_rank=1))
    if damage == "all_gather" and layout.rank == 1:
        honest = dist.all_gather

        def all_gather(parts: list[torch.Tensor], mine: torch.Tensor) -> None:
            mine[5] += 1
            honest(parts, mine)
            mine[5] -= 1

        dist.all_gather = all_gather
    if damage == "all_reduce" and layout.rank == 1:
        honest_reduce = dist.all_reduce

        def all_reduce(tensor: torch.Tensor) -> None:
            tensor[7] += 1
            honest_reduce(tensor)

        dist.all_reduce = all_reduce
    try:
        check_health(layout, faults, is_sick=layout.rank == sick_rank)
    except UnhealthyError as error:
        return str(error), error.nodes
    dist.barrier(layout.control)  # without a check nobody waits for the others to be there, and rank 0 holds the store
    return "", []


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_healthy_ranks_pass(n_ranks: int) -> None:
    assert spawn(outcome, n_ranks, FaultsConfig(), None, None) == [("", [])] * n_ranks


def test_a_sick_rank_is_named_on_all_ranks() -> None:
    results = spawn(outcome, 3, FaultsConfig(), 1, None)
    message, nodes = results[0]
    assert results == [results[0]] * 3
    assert message.startswith(f"health check: rank 1 on node {node_name()}: a matrix product in float32 is wrong in 1 of")
    assert "a matrix product in bfloat16" in message
    assert message.endswith(f"start again without {node_name()} (faults.health_check=false leaves it out)")
    assert nodes == [node_name()]


def test_who_sends_wrong_values_is_named_by_the_others() -> None:
    results = spawn(outcome, 3, FaultsConfig(), None, "all_gather")
    message, nodes = results[0]
    assert results == [results[0]] * 3
    assert f"rank 0 on node {node_name()}: an all-gather brought wrong values from rank 1" in message
    assert nodes == [node_name()]


def test_a_wrong_sum_is_found_and_blames_no_node() -> None:
    message, nodes = spawn(outcome, 3, FaultsConfig(), None, "all_reduce")[2]
    assert "an all-reduce over 3 ranks is wrong in 1 of 262144 places" in message
    assert "it shows no single node at fault: look at the network" in message
    assert nodes == []


def test_it_can_be_left_out() -> None:
    assert spawn(outcome, 2, FaultsConfig(health_check=False), 1, None) == [("", [])] * 2


def report(rank: int, *bad_sources: int) -> Any:
    return health._Report(rank, f"node{rank}", ["an all-gather brought wrong values"] if bad_sources else [], list(bad_sources))


def test_blame_falls_on_the_sender_that_most_complain_of_or_the_receiver_that_complains_of_most() -> None:
    assert health._blamed([report(0, 2), report(1, 2), report(2), report(3, 2)]) == [2]
    assert health._blamed([report(0), report(1, 0, 2, 3), report(2), report(3)]) == [1]
    assert health._blamed([report(0, 1), report(1), report(2), report(3)]) == []
