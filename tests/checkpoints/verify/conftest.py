"""Releases of the finished run, with optimizer states."""

import shutil
from pathlib import Path

import pytest

from checkpoints.publish.signature import write_key_pair
from tests.checkpoints.verify.releases import assemble_series


@pytest.fixture(scope="session")
def releases(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of releases of steps 0, 1, 2, 4, 5 and 10. Read only: see `store`."""
    folder = tmp_path_factory.mktemp("releases")
    assemble_series(run, [0, 1, 2, 4, 5, 10], folder)
    return folder


@pytest.fixture
def store(releases: Path, tmp_path: Path) -> Path:
    """A copy of the releases, to damage."""
    return Path(shutil.copytree(releases, tmp_path / "store"))


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key; the public one lies beside it, with `.pub`."""
    file = tmp_path_factory.mktemp("keys") / "ours"
    write_key_pair(file)
    return file
