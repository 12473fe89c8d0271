"""Corpora and runs of MinHash for the tests; as a module, a run that can be killed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.datasets import find_document_files
from data_tools.dedupe.config import By, DedupeConfig, MinhashConfig
from data_tools.dedupe.minhash import run_minhash
from data_tools.documents import find_files
from data_tools.files import InputFile, lines
from data_tools.work.counts import Counts
from data_tools.work.stage import Plan, Stage, settings_of

VOCABULARY = [f"w{i}" for i in range(3000)]


def config_of(dataset: Path, minhash: dict[str, Any] | None = None, **values: Any) -> DedupeConfig:
    """Of a dataset."""
    fields = {"documents": [str(dataset)], "name": "near", "by": By.MINHASH, "processes": 1, **values}
    return DedupeConfig(minhash=MinhashConfig(**(minhash or {})), **fields)


def run(config: DedupeConfig) -> Counts:
    """The stage."""
    files = find_document_files(config.documents)
    plan = Plan("dedupe", settings_of(config), find_files(config.documents))
    with Stage(Path(files[0].dataset, "stages/near"), plan, config) as stage:
        if not stage.is_finished:
            stage.finish(run_minhash(stage, files, config), remove=["scratch"])
        totals: Counts = stage.summary()["totals"]
    return totals


def words(rng: np.random.Generator, n: int) -> list[str]:
    """A text."""
    return [VOCABULARY[i] for i in rng.integers(0, len(VOCABULARY), n)]


def edited(rng: np.random.Generator, text: list[str], n: int) -> list[str]:
    """With n words replaced."""
    text = list(text)
    for i in rng.choice(len(text), n, replace=False):
        text[i] = f"new{rng.integers(10**6)}"
    return text


def shingles(text: str, size: int = 5) -> frozenset[tuple[str, ...]]:
    """Of words that are separated by spaces."""
    each = text.split()
    return frozenset(tuple(each[i : i + size]) for i in range(max(1, len(each) - size + 1)))


def jaccard(one: str, other: str) -> float:
    """Of the shingles of two texts."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file, in order."""
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl*")) for line in lines(path, InputFile(path))]


def results(dataset: Path) -> dict[str, bytes]:
    """What a run leaves: attributes and records of duplicates."""
    found = [p for folder in ("attributes", "stages/near/duplicates") for p in sorted((dataset / folder).rglob("*.jsonl*"))]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in found}


if __name__ == "__main__":
    print(json.dumps(run(config_of(Path(sys.argv[1])))))
