"""What all ranks must have in common before they compute together: code, config, versions."""

import platform
from dataclasses import asdict
from typing import Any

import torch

from olmo_train.code import ROOT, code_sha256
from olmo_train.config.train import TrainConfig
from olmo_train.conversion import by_dotted_name

MOST_TOLD = 8


def facts_of(run: TrainConfig, n_ranks: int) -> dict[str, Any]:
    """What this rank runs, to be compared with the others by `differences`."""
    return {
        "code": f"{code_sha256()[:16]} in {ROOT}",
        "config": {name: str(value) for name, value in by_dotted_name(asdict(run)).items()},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "number of ranks": n_ranks,
    }


def differences(facts: dict[int, dict[str, Any]]) -> list[str]:
    """Problems: where a rank differs from rank 0; ranks of one node that differ alike are told once."""
    first = facts[0]
    groups: dict[tuple[str, str], list[int]] = {}
    for rank, theirs in sorted(facts.items()):
        for what in _unlike(first, theirs):
            groups.setdefault((theirs["node"], what), []).append(rank)
    told = [f"{_names(ranks)} on {node}: {what} on rank 0 on {first['node']}" for (node, what), ranks in groups.items()]
    if len(told) > MOST_TOLD:
        told = [*told[:MOST_TOLD], f"and {len(told) - MOST_TOLD} more differences between ranks"]
    return [f"ranks differ: {text}; all must run the same code and config" for text in told]


def _unlike(first: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    found = [
        f"{name} is {theirs[name]}, and {first[name]}"
        for name in ("torch", "python", "number of ranks")
        if theirs[name] != first[name]
    ]
    if theirs["code"].split()[0] != first["code"].split()[0]:
        found.append(f"code is {theirs['code']}, and {first['code']}")
    for name in sorted(first["config"].keys() | theirs["config"].keys()):
        here, there = first["config"].get(name, "missing"), theirs["config"].get(name, "missing")
        if here != there:
            found.append(f"{name}={there}, and {here}")
    return found


def _names(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {ranks[0]}-{ranks[-1]}" if ranks[-1] - ranks[0] == len(ranks) - 1 else f"{len(ranks)} ranks from {ranks[0]}"
