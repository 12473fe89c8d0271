"""Documents that do not exist for any answer: a suffix array of them alone, to take away from what the index says."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydivsufsort import divsufsort

from data_tools.trace.answer import Place
from data_tools.trace.index_folder import KEY, STRIDE, PartRecord, top_dtype
from data_tools.trace.parts import Index, Part


@dataclass
class Blocked:
    """What is blocked in some indexes."""

    parts: list[Part] = field(default_factory=list)
    """One per index that holds blocked documents; in memory, about 25 bytes per token of theirs."""
    n_documents: int = 0
    unknown: list[str] = field(default_factory=list)
    """Ids that no index holds (a takedown list is of many corpora), sorted."""
    _spans: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    """int64 (2, documents) by (index, file): their token offsets, sorted."""

    def spans(self, corpus: int, file: int) -> np.ndarray:
        """int64 (2, documents): token offsets [start, end) of the blocked documents of a file, sorted."""
        return self._spans.get((corpus, file), np.zeros((2, 0), np.int64))

    def holds(self, place: Place) -> bool:
        """Whether a place is in a blocked document."""
        starts, ends = self.spans(place.corpus, place.file)
        at = int(np.searchsorted(starts, place.offset, side="right")) - 1
        return at >= 0 and place.offset < int(ends[at])

    def unigrams(self, vocab_size: int) -> np.ndarray:
        """int64 (vocab_size,): tokens of blocked training documents."""
        counts = np.zeros(vocab_size, np.int64)
        for part in self.parts:
            counts += np.bincount(part.tokens[part.sa["train"]], minlength=vocab_size)
        return counts


def block_documents(indexes: Sequence[Index], ids: Collection[str]) -> Blocked:
    """Look the documents up and sort their suffixes.

    Raises:
        ShardError: a document that is to be blocked cannot be read.
    """
    blocked = Blocked()
    known: set[str] = set()
    for number, index in enumerate(indexes):
        documents: list[tuple[int, int]] = []
        for document_id in sorted(set(ids)):
            found = index.corpus.find_document(document_id)
            documents += found
            if found:
                known.add(document_id)
        if documents:
            _block(blocked, number, index, sorted(documents))
    blocked.unknown = sorted(set(ids) - known)
    return blocked


def _block(blocked: Blocked, number: int, index: Index, documents: list[tuple[int, int]]) -> None:
    """Add documents, given by (file, ordinal), of one index."""
    files = index.corpus.files
    spans = [(file, *files[file].index.span(ordinal)) for file, ordinal in documents]
    heldout = np.array([files[file].index.train_position(start) is None for file, start, _ in spans], np.bool_)
    tokens = np.concatenate([files[file].read(start, end) for file, start, end in spans])
    tokens.flags.writeable = False
    ends = np.cumsum([end - start for _, start, end in spans])
    positions = sort_suffixes(tokens, ends, index.rank_V)
    is_heldout = np.repeat(heldout, np.diff(ends, prepend=0))[positions]
    sa = {"train": positions[~is_heldout], "heldout": positions[is_heldout]}
    kind = top_dtype(len(index.rank_V))
    top = {split: _leading_ranks(array, tokens, ends, index.rank_V).astype(kind) for split, array in sa.items()}
    for array in (*sa.values(), *top.values()):
        array.flags.writeable = False  # as what is mapped, so that the kernels are not compiled a second time
    record = PartRecord(-1, -1, 0, len(tokens), len(sa["train"]), len(sa["heldout"]), False, {})
    blocked.parts.append(Part(number, record, tokens, index.rank_V, ends, sa, top))
    blocked.n_documents += len(documents)
    for file in {file for file, _, _ in spans}:
        blocked._spans[number, file] = np.array([(start, end) for f, start, end in spans if f == file], np.int64).T.copy()


def sort_suffixes(tokens: np.ndarray, ends: np.ndarray, rank_V: np.ndarray) -> np.ndarray:
    """uint32: positions of tokens in the order of their suffixes, each ending with its document; ends: ends of the documents.

    Three bytes per rank, three of zero after each document. The index itself is sorted by shorter codes (codes.py).
    """
    n = len(tokens) + len(ends)
    at = np.arange(len(tokens)) + np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    ranks = np.zeros(n, ">u4")
    ranks[at] = rank_V[tokens]
    token_of = np.zeros(n, np.uint32)
    token_of[at] = np.arange(len(tokens))
    order = divsufsort(np.ascontiguousarray(ranks.view(np.uint8).reshape(n, 4)[:, 1:]).reshape(-1)).astype(np.int64)
    whole = order[order % 3 == 0] // 3
    return token_of[whole[ranks[whole] > 0]]


def _leading_ranks(sa: np.ndarray, tokens: np.ndarray, ends: np.ndarray, rank_V: np.ndarray) -> np.ndarray:
    """uint32 (rows, KEY): the table of index_folder.py."""
    positions = sa[::STRIDE].astype(np.int64)
    limit = ends[np.searchsorted(ends, positions, side="right")]
    at = positions[:, None] + np.arange(KEY)
    return np.where(at < limit[:, None], rank_V[tokens[np.minimum(at, len(tokens) - 1)]], 0).astype(np.uint32)
