"""A micro-step taken twice: equal on sound hardware and without a trace in the run; a rank that computes otherwise is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from olmo_train.attempt import node_name
from olmo_train.config.train import ParallelConfig
from olmo_train.errors import CorruptionError
from olmo_train.parallel.mesh import init_distributed
from olmo_train.parallel.replay import check_replay
from tests.distributed import spawn
from tests.runs import metrics, run_training, small, weights, without_times


def outcome(tolerance: float, where: str, size: float, faulty_rank: int = 1) -> tuple[str, list[str]]:
    """What the check says on this rank when the second time something differs by `size` on one rank."""
    layout = init_distributed(ParallelConfig(threads_per_rank=1))
    embedding, calls = nn.Embedding(5, 3), iter(range(9))
    nn.init.ones_(embedding.weight)

    def micro_step() -> tuple[Tensor, dict[str, Tensor]]:
        is_faulty = next(calls) == 1 and layout.rank == faulty_rank
        hidden = embedding(torch.tensor([1, 2]))
        loss = (hidden * (1 + size * (is_faulty and where == "local"))).sum()
        loss.backward()
        assert embedding.weight.grad is not None
        grad = embedding.weight.grad * (1 + size * (is_faulty and where == "sum"))
        embedding.weight.grad = None
        return loss.detach(), {"weight": grad}

    try:
        check_replay(layout, embedding, micro_step, tolerance, 12)
    except CorruptionError as error:
        return str(error), error.nodes
    return "", []


def test_equal_results_pass() -> None:
    assert spawn(outcome, 2, 0.0, "nowhere", 1.0) == [("", [])] * 2
    assert spawn(outcome, 2, 1e-3, "nowhere", 1.0) == [("", [])] * 2


def test_the_rank_whose_own_values_change_is_named() -> None:
    results = spawn(outcome, 2, 0.0, "local", 1e-6)
    assert results == [results[0]] * 2
    assert results[0][1] == [node_name()]
    assert results[0][0] == (
        f"a micro-step of step 12, taken twice, came out differently on rank 1 on node {node_name()}: loss, gradient at the "
        "embedding (faults.replay_check_every; kernels with atomic sums need faults.replay_tolerance)"
    )


def test_where_only_the_sum_changes_nobody_is_blamed() -> None:
    message, nodes = spawn(outcome, 2, 0.0, "sum", 1e-6)[0]
    assert "the sums of gradients of rank 1, to which all ranks contribute, so that none can be named" in message
    assert nodes == []


def test_a_tolerance_allows_what_is_within_it() -> None:
    assert spawn(outcome, 2, 1e-3, "local", 1e-4) == [("", [])] * 2
    assert "rank 1 on node" in spawn(outcome, 2, 1e-3, "local", 1e-2)[0][0]


def test_a_loss_that_is_not_finite_both_times_is_no_fault_of_the_hardware() -> None:
    for tolerance in (0.0, 1e-3):
        assert spawn(nonfinite, 1, tolerance) == [""]


def nonfinite(tolerance: float) -> str:
    layout = init_distributed(ParallelConfig(threads_per_rank=1))

    embedding = nn.Embedding(2, 2)

    def micro_step() -> Any:
        (embedding(torch.tensor([1])) * torch.nan).sum().backward()
        return torch.tensor(torch.nan), {"weight": torch.tensor([torch.inf, 1.0])}

    check_replay(layout, embedding, micro_step, tolerance, 1)
    return ""


LAYOUTS = {
    "one rank": (1, []),
    "fsdp": (2, ["parallel.reduce_every_micro_step=false"]),
    "replicas, sums apart": (
        4,
        ["parallel.shard_size=2", "data.micro_batch_size=32", "parallel.compute_dtype=bfloat16", "optim.weight_dtype=bfloat16",
         "optim.moment_dtype=float32", "faults.replica_check_every=2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_checks_leave_no_trace_in_the_run(shards: Path, tmp_path: Path, name: str) -> None:
    n_ranks, words = LAYOUTS[name]
    words = ["max_tokens=1280", "checkpoint.save_every=3", *words]
    run_training(small(shards, tmp_path / "checked", *words, "faults.replay_check_every=2"), n_ranks)
    plain = [word for word in words if "faults" not in word]
    run_training(small(shards, tmp_path / "plain", *plain), n_ranks)
    assert metrics(tmp_path / "checked")[-1]["seconds"].get("check", 0) >= 0
    assert any("check" in line.get("seconds", {}) for line in metrics(tmp_path / "checked"))
    assert weights(tmp_path / "checked", 5) == weights(tmp_path / "plain", 5)
    assert without_times(metrics(tmp_path / "checked")) == without_times(metrics(tmp_path / "plain"))
