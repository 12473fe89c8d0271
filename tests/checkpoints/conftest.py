"""A finished run on text, with checkpoints at steps 0, 1, 2, 4, 5 and 10, and held-out losses."""

import shutil
from pathlib import Path

import pytest

from tests.runs import run_training, small
from tests.texts import VOCAB, TextCorpus, write_text_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    """Documents, tokenizer and shards. Read only."""
    return write_text_corpus(tmp_path_factory.mktemp("text corpus"))


@pytest.fixture(scope="session")
def run(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run; two ranks wrote it. Read only: see `copy`."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = [f"data.sources.demo.path='{corpus.shards}'", f"model.vocab_size={VOCAB}", "eval.eval_every=5"]
    run_training(small(corpus.shards, folder, *words, "checkpoint.save_log_spaced=true"), 2)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))
