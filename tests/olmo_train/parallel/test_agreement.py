"""Ranks that run different things are named, with what differs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from olmo_train.config.train import TrainConfig
from olmo_train.parallel.agreement import differences, facts_of
from olmo_train.schema import load_config
from tests.runs import small


def facts(*overrides: str) -> dict[str, object]:
    run = load_config("train", TrainConfig, small(Path("shards"), Path("run"), *overrides), lambda _: [])
    return facts_of(run, n_ranks=4)


def all_ranks(**others: Mapping[str, object]) -> dict[int, dict[str, object]]:
    base = facts()
    found = {rank: {"node": f"n{rank // 2}", **base} for rank in range(4)}
    return found | {int(rank[1:]): {**found[int(rank[1:])], **values} for rank, values in others.items()}


def test_ranks_that_run_the_same_agree() -> None:
    assert differences(all_ranks()) == []


def test_a_config_that_differs_is_told_by_the_name_of_what_differs() -> None:
    problems = differences(all_ranks(r2=facts("optim.lr=3e-3", "data.global_batch_size=512")))
    assert problems == [
        "ranks differ: rank 2 on n1: data.global_batch_size=512, and 256 on rank 0 on n0; all must run the same code and config",
        "ranks differ: rank 2 on n1: optim.lr=0.003, and 0.01 on rank 0 on n0; all must run the same code and config",
    ]


def test_other_code_is_told_with_the_place_where_it_lies() -> None:
    other = {"code": "0123456789abcdef in /elsewhere"}
    (problem,) = differences(all_ranks(r2=other, r3=other))
    assert problem.startswith("ranks differ: ranks 2-3 on n1: code is 0123456789abcdef in /elsewhere, and ")
    same_code_elsewhere = {"code": str(facts()["code"]).split()[0] + " in /elsewhere"}
    assert differences(all_ranks(r1=same_code_elsewhere)) == []


def test_other_versions_are_told() -> None:
    (problem,) = differences(all_ranks(r1={"torch": "2.4.0"}))
    assert "rank 1 on n0: torch is 2.4.0, and " in problem


def test_many_differences_are_told_short() -> None:
    base = all_ranks()
    many = {rank: {**base[0], "node": f"n{rank}", "torch": f"2.{rank}"} for rank in range(1, 20)}
    problems = differences({0: base[0], **many})
    assert len(problems) == 9
    assert "and 11 more differences between ranks" in problems[-1]


def test_lists_and_missing_sections_of_the_config_are_compared() -> None:
    run = load_config("train", TrainConfig, small(Path("shards"), Path("run")), lambda _: [])
    here, there = facts_of(run, 2), facts_of(replace(run, model=replace(run.model, moe=None)), 2)
    problems = differences({0: {"node": "a", **here}, 1: {"node": "b", **there}})
    assert any("model.moe=None, and missing" in problem for problem in problems)
