"""Fixtures of more than one test file."""

from pathlib import Path

import pytest

from tests.corpora import write_corpus


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with two sources and held-out documents. Read only."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_corpus(folder)
    return folder
