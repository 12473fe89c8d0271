"""Fixtures of more than one test file."""

import os
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton kernels run in Triton's own interpreter; it reads this when a kernel is defined, so before any import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.corpora import write_corpus


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with two sources and held-out documents. Read only."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder)
    return folder
