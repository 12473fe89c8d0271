"""Fixtures of more than one test file."""

import os
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton kernels run in Triton's own interpreter; it reads this when a kernel is defined, so before any import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.corpora import write_corpus
from tests.slurm.fixtures import any_cluster, cables, cluster, flat_cluster, networked_cluster  # noqa: F401 - fixtures

LONGEST = (
    "test_faults.py",
    "test_supervise.py",
    "test_readme.py",
    "test_replay.py",
    "test_training.py",
    "test_page.py",
    "test_publish.py",
    "test_resume.py",
    "test_card.py",
    "test_mirror.py",
    "test_downstream.py",
    "test_train_command.py",
    "test_launch.py",
)
"""Files that take minutes: they begin first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay whole and in order, the longest ones first (`--no-loadscope-reorder` keeps it so)."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with two sources and held-out documents. Read only."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder)
    return folder
