"""A corpus with planted documents, its index and a run on it."""

from pathlib import Path

import pytest

from tests.data_tools.trace.traced import Traced, write_traced


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """Read only."""
    return write_traced(Path(tmp_path_factory.mktemp("traced")))
