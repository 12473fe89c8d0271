"""Corpora of few ids, in which much repeats, and what stands in them by looking everywhere."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from data_tools.trace.answer import Place
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.searcher import Searcher
from olmo_train.data.document_index import DocumentRow, is_heldout
from olmo_train.data.shards import ShardFile, ShardWriter, WriterOptions


@dataclass(frozen=True)
class BruteSpec:
    """What to write."""

    vocab: int = 5
    dtype: str = "uint16"
    n_documents: int = 40
    max_length: int = 30
    ends_in_eos: bool = True
    max_tokens_per_file: int = 300
    max_tokens_per_part: int = 120
    heldout_frac: float = 0.2
    seed: int = 0
    tokenizer: str | None = None
    """A file that the manifest names; nothing is tokenized."""


class Brute:
    """Documents, their shards with an index, and exact answers in the slowest way. Id 0 is end-of-text."""

    def __init__(self, folder: Path, spec: BruteSpec) -> None:
        rng = np.random.default_rng(spec.seed)
        self.spec, self.rng, self.folder = spec, rng, folder
        self.documents: dict[str, list[int]] = {}
        self.source: dict[str, str] = {}
        for n in range(spec.n_documents):
            known = list(self.documents.values())
            if known and rng.random() < 0.2:  # a document twice, or one that begins another
                ids = known[rng.integers(len(known))][: int(rng.integers(1, spec.max_length + 2))]
            else:
                ids = rng.integers(1, spec.vocab, int(rng.integers(0, spec.max_length))).tolist()
            self.documents[f"d{n}"] = [*ids, 0] if spec.ends_in_eos and 0 not in ids else ids
            self.source[f"d{n}"] = "ab"[n % 2]
        options = WriterOptions(spec.dtype, spec.vocab, 0, spec.heldout_frac, spec.max_tokens_per_file)
        with ShardWriter(folder / "shards", options) as writer:
            for n, (name, ids) in enumerate(self.documents.items()):
                writer.add(self.source[name], (name, "f", n + 1), np.array(ids, np.int64), len(ids))
            writer.close(tokenizer=None if spec.tokenizer is None else Path(spec.tokenizer))
        config = IndexConfig(str(folder / "shards"), max_tokens_per_part=spec.max_tokens_per_part, processes=1)
        self.index = build(config)
        self.blocked: set[str] = set()

    def split(self, split: str) -> dict[str, list[int]]:
        """Documents of a split that are not blocked."""
        return {
            name: ids
            for name, ids in self.documents.items()
            if is_heldout(name, self.spec.heldout_frac) == (split == "heldout") and name not in self.blocked
        }

    def places(self, query: list[int], split: str = "train") -> list[tuple[str, int]]:
        """(document, offset in it) of each occurrence, sorted."""
        if 0 in query:
            return []
        ids, names, offsets = self._joined(split, frozenset(self.blocked))
        at = np.arange(len(ids) - len(query))
        for k, i in enumerate(query):
            at = at[ids[at + k] == i]
        return sorted((names[i], int(offsets[i])) for i in at.tolist())

    @cache  # noqa: B019 - lives as long as a test
    def _joined(self, split: str, blocked: frozenset[str]) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Ids of all documents with what matches nothing between them; document and offset of each."""
        documents = self.split(split)
        ids = np.array([i for d in documents.values() for i in [*d, -99]] + [-99] * 400)
        names = [name for name, d in documents.items() for _ in range(len(d) + 1)]
        return ids, names, np.array([at for d in documents.values() for at in range(len(d) + 1)])

    def longest(self, query: list[int], split: str = "train") -> list[int]:
        """How many tokens from each position on stand somewhere."""
        found = []
        for start in range(len(query)):
            n = 0
            while start + n < len(query) and self.places(query[start : start + n + 1], split):
                n += 1
            found.append(n)
        return found

    def text(self, number: int) -> list[int]:
        """Some queries, one after the other."""
        return [i for query in self.queries(number) for i in query]

    def queries(self, number: int) -> list[list[int]]:
        """Random ids; pieces of documents; pieces with one id changed, over the end of a document, or beyond the vocabulary."""
        rng, names, found = self.rng, [name for name, ids in self.documents.items() if len(ids) > 1], []
        for _ in range(number):
            ids = self.documents[names[rng.integers(len(names))]]
            start = int(rng.integers(len(ids)))
            piece = ids[start : start + int(rng.integers(1, 20))]
            kind = rng.random()
            if kind < 0.25:
                piece = rng.integers(0, self.spec.vocab, int(rng.integers(1, 12))).tolist()
            elif kind < 0.45:
                piece = [*piece]
                piece[rng.integers(len(piece))] = int(rng.integers(-1, self.spec.vocab + 2))
            elif kind < 0.6:
                other = self.documents[names[rng.integers(len(names))]]
                piece = [*[i for i in ids[-4:] if i], *other[:4]]
            found.append(piece)
        return found


def named(searcher: Searcher, place: Place) -> tuple[str, int]:
    """(document, offset in it)."""
    file = searcher.file(place)
    return _row(file, file.index.documents_between(place.offset, place.offset + 1).start, place.offset)


@cache
def _rows(file: ShardFile) -> list[DocumentRow]:
    return [file.index.row(n) for n in range(len(file.index.starts) - 1)]


def _row(file: ShardFile, ordinal: int, offset: int) -> tuple[str, int]:
    row = _rows(file)[ordinal]
    return row.id, offset - row.start
