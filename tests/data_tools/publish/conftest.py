"""The pipeline's output and releases of it, made once; a hub and a store of this machine."""

import os
from pathlib import Path

import pytest

from data_tools.publish import command, stores
from tests.data_tools.inspect.pipeline import Made, make
from tests.data_tools.publish.releases import SMALL, WORDS
from tests.stores import hub, moto, s3

__all__ = ["hub", "moto", "s3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Made:
    return make(tmp_path_factory.mktemp("published"), tokenizer)


@pytest.fixture(scope="module")
def release(made: Made) -> Path:
    """A release in a folder; read only."""
    before = os.getcwd()
    os.chdir(made.folder)
    try:
        command.main([*WORDS, "target=release"])
    finally:
        os.chdir(before)
    return made.folder / "release"


@pytest.fixture(scope="module")
def small(made: Made) -> Path:
    """One of fewer files, for places that take a request for each."""
    before = os.getcwd()
    os.chdir(made.folder)
    try:
        command.main([*SMALL, "target=small"])
    finally:
        os.chdir(before)
    return made.folder / "small"


@pytest.fixture
def here(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The working folder of the pipeline."""
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(stores, "FIRST_WAIT_S", 0.01)
    return made
