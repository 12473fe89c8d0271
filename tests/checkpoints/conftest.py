"""A finished run on text, with checkpoints at steps 0, 1, 2, 4, 5 and 10, and held-out losses."""

import shutil
from pathlib import Path

import pytest

from tests.runs import run_on_text
from tests.texts import TextCorpus, write_text_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    """Documents, tokenizer and shards. Read only."""
    return write_text_corpus(tmp_path_factory.mktemp("text corpus"))


@pytest.fixture(scope="session")
def run(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run; two ranks wrote it. Read only: see `copy`."""
    return run_on_text(corpus, tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))
