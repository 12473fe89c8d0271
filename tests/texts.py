"""A corpus of text for tests: documents, a tokenizer trained on them and their shards, all by the commands a user has."""

import random
from dataclasses import dataclass
from pathlib import Path

from data_tools.documents import Document, write_documents
from data_tools.tokenize import command as tokenize_corpus
from data_tools.tokenize import train_tokenizer

WORDS = [
    "the", "a", "cat", "dog", "bird", "fish", "sees", "hears", "follows", "finds", "red", "small",
    "old", "wet", "house", "tree", "river", "stone", "and", "then", "it", "stays",
]  # fmt: skip
VOCAB = 300


@dataclass(frozen=True)
class TextCorpus:
    """Where the parts lie."""

    documents: Path
    tokenizer: Path
    shards: Path


def write_text_corpus(folder: Path, n_documents: int = 200) -> TextCorpus:
    """Write documents of two sources, a tokenizer of VOCAB ids and shards with held-out documents."""
    rng = random.Random(0)
    corpus = TextCorpus(folder / "documents", folder / "tokenizer.json", folder / "shards")
    for source in ("animals", "places"):
        documents = (
            Document(f"{source} {n}", " ".join(rng.choices(WORDS, k=rng.randint(5, 60))), source) for n in range(n_documents)
        )
        write_documents(corpus.documents / f"{source}.jsonl", documents)
    train_tokenizer.main([f"documents=[{corpus.documents}]", f"output={corpus.tokenizer}", f"vocab_size={VOCAB}"])
    words = [f"documents=[{corpus.documents}]", f"tokenizer={corpus.tokenizer}", f"output={corpus.shards}", "heldout_frac=0.1"]
    tokenize_corpus.main(words)
    return corpus
