"""Fixtures of the data tools: documents, a tokenizer trained on them, and shards made of both. All read only."""

from pathlib import Path

import pytest

from data_tools.tokenize import train_tokenizer
from tests.data_tools.texts import make_documents, tokenize, write_lines

N_DOCUMENTS = 120


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of N_DOCUMENTS documents of two sources."""
    return write_lines(tmp_path_factory.mktemp("documents") / "all.jsonl", make_documents(N_DOCUMENTS))


@pytest.fixture(scope="session")
def tokenizer(documents: Path) -> Path:
    """A tokenizer of 300 ids."""
    output = documents.parent / "tokenizer.json"
    train_tokenizer.main([f"documents=[{documents}]", f"output={output}", "vocab_size=300"])
    return output


@pytest.fixture(scope="session")
def text_shards(documents: Path, tokenizer: Path) -> Path:
    """Shards of the documents, a tenth of them held out, several files per source."""
    return tokenize(documents, tokenizer, documents.parent / "shards", "heldout_frac=0.1", "max_tokens_per_file=2000")
