"""The pipeline's output, made once; read only."""

import shutil
from pathlib import Path

import pytest

from tests.data_tools.inspect.pipeline import Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Made:
    """Raw files, a dataset with attributes, a mixed one, and shards."""
    return make(tmp_path_factory.mktemp("pipeline"), tokenizer)


@pytest.fixture
def own(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A copy to be damaged; the working folder is in it, so that recorded names lead into it."""
    shutil.copytree(made.folder, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    return Made(tmp_path / "own")
