"""Random corpora of few different tokens, in which everything repeats, and brute force over them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from olmo_train.data.document_index import is_heldout
from olmo_train.data.shards import ShardWriter, WriterOptions

EOS = 0
HELDOUT = 0.2


@dataclass(frozen=True)
class Shape:
    """What to write. alphabet: ids 1 .. alphabet stand in documents."""

    alphabet: int = 3
    n_documents: int = 40
    max_length: int = 30
    dtype: str = "uint16"
    ends_in_eos: bool = True
    max_tokens_per_part: int = 2**20
    max_tokens_per_file: int = 250
    sources: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class SmallCorpus:
    """What was written. train, heldout: ids of documents to their tokens."""

    shards: Path
    index: Path
    vocab_size: int
    train: dict[str, list[int]]
    heldout: dict[str, list[int]]

    def without(self, blocked: set[str]) -> "SmallCorpus":
        """The same without some documents."""
        train, heldout = ({name: ids for name, ids in d.items() if name not in blocked} for d in (self.train, self.heldout))
        return SmallCorpus(self.shards, self.index, self.vocab_size, train, heldout)

    def occurrences(self, ids: list[int], heldout: bool = False) -> list[tuple[str, int]]:
        """(document, offset) of every occurrence."""
        documents = self.heldout if heldout else self.train
        n = len(ids)
        return [(name, i) for name, d in documents.items() for i in range(len(d) - n + 1) if d[i : i + n] == list(ids)]

    def next_counts(self, ids: list[int]) -> Counter[int]:
        """Tokens after each occurrence; the end of a document is EOS."""
        after = Counter(
            (self.train[name] + [EOS])[i + len(ids)] for name, i in self.occurrences(ids) if i + len(ids) <= len(self.train[name])
        )
        return after if ids else Counter(t for d in self.train.values() for t in d)

    def runs(self, n: int) -> Iterator[tuple[int, ...]]:
        """Every run of n tokens without EOS, as often as it stands in training documents."""
        for document in self.train.values():
            for i in range(len(document) - n + 1):
                if EOS not in document[i : i + n]:
                    yield tuple(document[i : i + n])


def write_small(folder: Path, seed: int, shape: Shape = Shape()) -> SmallCorpus:
    """Write shards and an index; about a fifth of the documents is held out, one in ten is a copy, one in ten one token alone."""
    rng = np.random.default_rng(seed)
    vocab_size = 70_000 if shape.dtype == "uint32" else shape.alphabet + 1
    # With 32 bits, the ids are spread over the vocabulary.
    names = np.sort(rng.choice(np.arange(1, vocab_size), shape.alphabet, replace=False)).tolist()
    train: dict[str, list[int]] = {}
    heldout: dict[str, list[int]] = {}
    documents: list[list[int]] = []
    options = WriterOptions(shape.dtype, vocab_size, EOS, HELDOUT, shape.max_tokens_per_file)
    with ShardWriter(folder / "shards", options) as writer:
        for n in range(shape.n_documents):
            kind = rng.random()
            length = int(rng.integers(1, shape.max_length))
            if documents and kind < 0.1:
                ids = documents[int(rng.integers(len(documents)))]
            elif kind < 0.2:
                ids = [names[0]] * length
            else:
                ids = [names[i] for i in rng.integers(0, len(names), length)]
            documents.append(ids)
            ids = [*ids, EOS] if shape.ends_in_eos else ids
            name, source = f"d{n}", shape.sources[n % len(shape.sources)]
            writer.add(source, (name, f"{source}.jsonl", n + 1), np.array(ids), 2 * len(ids))
            (heldout if is_heldout(name, HELDOUT) else train)[name] = ids
        writer.close()
    index = build(IndexConfig(str(folder / "shards"), max_tokens_per_part=shape.max_tokens_per_part, processes=1))
    return SmallCorpus(folder / "shards", index, vocab_size, train, heldout)


SHAPES = {
    "16 bits": Shape(),
    "32 bits": Shape(dtype="uint32"),
    "many parts": Shape(max_tokens_per_part=60),
    "no end-of-text": Shape(ends_in_eos=False, max_tokens_per_part=90),
    "two tokens": Shape(alphabet=2, n_documents=25),
    "many tokens": Shape(alphabet=40, n_documents=80, dtype="uint32", max_tokens_per_part=200),
}

_FOLDER = TemporaryDirectory(prefix="small-corpora-")


@cache
def small_corpus(name: str) -> SmallCorpus:
    """The corpus of one of SHAPES; made once in a session. Read only."""
    return write_small(Path(_FOLDER.name) / name, len(name), SHAPES[name])


def queries(corpus: SmallCorpus, n: int, seed: int = 0) -> Iterator[list[int]]:
    """Token sequences, most of which stand in the corpus: pieces of documents, some with one token changed."""
    rng = np.random.default_rng(seed)
    documents = [ids for ids in [*corpus.train.values(), *corpus.heldout.values()] if len(ids) > 1]
    for _ in range(n):
        document = documents[int(rng.integers(len(documents)))]
        start = int(rng.integers(len(document)))
        ids = [t for t in document[start : start + int(rng.integers(1, 9))] if t != EOS] or [document[0]]
        if rng.random() < 0.3:
            ids[int(rng.integers(len(ids)))] = document[int(rng.integers(len(document) - 1))]
        yield ids
