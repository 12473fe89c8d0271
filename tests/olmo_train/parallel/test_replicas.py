"""Replicas that no longer agree are found bit by bit, the odd one is named where a majority tells, and its steps are not trusted."""

import json
from pathlib import Path

import pytest
import torch

from olmo_train.attempt import node_name
from olmo_train.config.train import ParallelConfig
from olmo_train.errors import CorruptionError
from olmo_train.parallel import replicas
from olmo_train.parallel.mesh import init_distributed
from olmo_train.parallel.replicas import check_replicas, checksum
from olmo_train.step_folder import list_steps
from tests.distributed import RankError, collect, spawn, start
from tests.runs import metrics, run_training, small, train_here, weights, without_times

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).mul(50).to(dtype)
    before = int(checksum(values))
    assert before == int(checksum(values.clone()))
    data = values.view(-1).view(torch.uint8)
    for place in range(len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            assert int(checksum(values)) != before
            data[place] ^= 1 << bit
    assert int(checksum(values)) == before


def test_the_checksum_is_the_sum_by_definition_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "CHUNK", 16)
    values = torch.randint(-(2**31), 2**31 - 1, (5, 9), dtype=torch.int32)
    expected = sum(int(v) * (2 * i + 1) for i, v in enumerate(values.flatten().tolist()))
    assert int(checksum(values)) == (expected + 2**63) % 2**64 - 2**63
    assert int(checksum(torch.empty(0, 3))) == 0  # a rank without rows of a small weight
    assert int(checksum(torch.tensor(1.0))) == int(torch.tensor(1.0).view(torch.int32))


def test_numbers_that_changed_places_and_signs_of_zero_are_seen() -> None:
    assert int(checksum(torch.tensor([1.0, 2.0]))) != int(checksum(torch.tensor([2.0, 1.0])))
    assert int(checksum(torch.tensor([0.0]))) != int(checksum(torch.tensor([-0.0])))


def outcome(shard_size: int, changed: list[int]) -> tuple[str, list[str]]:
    """What the check says on this rank when `changed` ranks hold another number."""
    layout = init_distributed(ParallelConfig(shard_size=shard_size, threads_per_rank=1))
    tensors = {"a": torch.ones(5), "b": torch.zeros(3, dtype=torch.bfloat16), "c": torch.ones(2)}
    if layout.rank in changed:
        tensors["b"][1] = 1 + layout.rank
    try:
        check_replicas(layout, tensors, "after step 7")
    except CorruptionError as error:
        return str(error), error.nodes
    return "", []


def test_replicas_that_agree_pass() -> None:
    assert spawn(outcome, 4, 2, []) == [("", [])] * 4


def test_of_two_replicas_both_are_named_and_no_node_is_blamed() -> None:
    results = spawn(outcome, 4, 2, [3])
    assert results == [results[0]] * 4
    here = f"on node {node_name()}"
    assert results[0][1] == []
    assert results[0][0] == (
        f"the replicas of b are not equal bit by bit after step 7: rank 1 {here}, rank 3 {here} differ, and two replicas cannot "
        "say which of them is right (faults.replica_check_every)"
    )


def test_of_three_replicas_the_odd_one_is_named() -> None:
    message, nodes = spawn(outcome, 3, 1, [2])[0]
    assert f"rank 2 on node {node_name()} differs from the other replicas" in message
    assert nodes == [node_name()]


FLIPPED = ["parallel.shard_size=1", "faults.replica_check_every=3", "checkpoint.save_every=2", "data.micro_batch_size=128"]


def test_a_flipped_bit_is_found_before_it_is_saved_and_the_next_start_ends_as_if_nothing_had_been(
    shards: Path, tmp_path: Path
) -> None:
    words = small(shards, tmp_path / "run", *FLIPPED, "faults.drill=[{kind: flip, rank: 1, step: 6}]")
    failures = collect(start(train_here, 2, words))
    for failure in failures:
        assert isinstance(failure, RankError)
        assert "CorruptionError: the replicas of " in str(failure)
        assert "after step 6: rank 0 on node" in str(failure)
    assert list_steps(tmp_path / "run/steps")[-1][0] == 4
    assert json.loads((tmp_path / "run/suspect.json").read_text()) == {"after_step": 4}
    run_training(words, 2)
    assert not (tmp_path / "run/suspect.json").exists()
    run_training(small(shards, tmp_path / "calm", *FLIPPED), 2)
    assert weights(tmp_path / "run", 10) == weights(tmp_path / "calm", 10)
    assert without_times(metrics(tmp_path / "run")) == without_times(metrics(tmp_path / "calm"))
    assert metrics(tmp_path / "calm")[-1]["seconds"]["check"] > 0
