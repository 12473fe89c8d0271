"""A small run in which one document stands many times."""

import pytest

from tests.checkpoints.trace.planted import Planted, write_planted


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A finished run with checkpoints at steps 0, 1, 2, 4, 8, 10, 20, ..., 60, and an index. Read only."""
    return write_planted(tmp_path_factory.mktemp("planted"))
