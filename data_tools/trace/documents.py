"""The documents in which spans stand: drawn, made one where their tokens are equal, with the places of each span in them.

matches of a text -> documents with places -> (bm25, privacy, when in trace_text.py) -> FoundDocument
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from data_tools.trace.answer import Place
from data_tools.trace.config import DocumentsConfig
from data_tools.trace.metadata import Metadata
from data_tools.trace.searcher import Searcher
from data_tools.trace.snippets import Context, SnippetReader
from data_tools.trace.spans import Match
from olmo_train.data.document_index import ROWS_PER_BLOCK, DocumentRow, RowBlock

MOST_DRAWN = 32
"""Times `per_span`: places looked at where many hold copies of few documents."""
MOST_SNIPPETS = 3
"""Of one span in one document."""
MOST_COPIES = 20
"""Of one document that are named."""
BLOCKS_KEPT = 256
"""Blocks of rows kept in memory, about 100 KB each."""
_CHUNK = 2**20
"""Tokens compared at once; documents that differ differ mostly in the first."""
_HEAD = 256
"""Tokens compared first."""


@dataclass(frozen=True)
class DocumentKey:
    """Which document."""

    corpus: int
    file: int
    ordinal: int
    start: int
    end: int
    """Token offsets in the file, end-of-text included."""


@dataclass
class Held:
    """A document that holds spans."""

    key: DocumentKey
    offsets: dict[int, list[int]] = field(default_factory=dict)
    """By number of the span: token offsets in the document."""
    copies: list[DocumentKey] = field(default_factory=list)


class DocumentReader:
    """Reads documents of opened indexes; keeps rows, and which documents are equal. Thread-safe."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.is_equal = lru_cache(maxsize=2**16)(self._is_equal)
        self._blocks: OrderedDict[tuple[int, int, int], RowBlock] = OrderedDict()

    @cached_property
    def _snippets(self) -> SnippetReader:
        return SnippetReader(self.searcher.tokenizer, self.searcher.vocab_size)

    @cached_property
    def _metadata(self) -> list[Metadata | None]:
        return [Metadata.of(folder) for folder in self.searcher.folders]

    def hold(self, matches: Sequence[Match], config: DocumentsConfig) -> list[Held]:
        """The documents of all matches, up to `per_span` of different text for each; by place in the corpora."""
        found: dict[int, list[Held]] = {}  # by length: only documents of one length are compared
        for number, match in enumerate(matches):
            for key, offsets in self._draw(match, config).items():
                held = self._held(found, key)
                if held.key == key:
                    held.offsets[number] = sorted({*held.offsets.get(number, []), *offsets})
                else:
                    held.offsets.setdefault(number, offsets)
                held.offsets[number] = held.offsets[number][:MOST_SNIPPETS]
        return sorted((held for same in found.values() for held in same), key=lambda h: (h.key.corpus, h.key.file, h.key.ordinal))

    def key_of(self, place: Place) -> DocumentKey:
        """The document that holds a place."""
        index = self.searcher.file(place).index
        ordinal = index.documents_between(place.offset, place.offset + 1)[0]
        return DocumentKey(place.corpus, place.file, ordinal, *index.span(ordinal))

    def text_end(self, key: DocumentKey) -> int:
        """Offset in the token file where the document ends, its end-of-text token left out."""
        corpus = self.searcher.corpora[key.corpus]
        eos = corpus.manifest.eos_id
        ends_in_eos = eos is not None and key.end > key.start and int(corpus.files[key.file].read(key.end - 1, key.end)[0]) == eos
        return key.end - ends_in_eos

    def context(self, key: DocumentKey, offset: int, n_tokens: int, context: int) -> Context:
        """A span with the tokens around it. `offset`: in the document."""
        file, end = self.searcher.corpora[key.corpus].files[key.file], self.text_end(key)
        at = key.start + offset
        return self._snippets.read(file, (key.start, max(end, at + n_tokens)), (at, at + n_tokens), context)

    def row(self, key: DocumentKey) -> DocumentRow:
        """Id and origin of a document."""
        number = (key.corpus, key.file, key.ordinal // ROWS_PER_BLOCK)
        block, index = self._blocks.get(number), self.searcher.corpora[key.corpus].files[key.file].index
        if block is None:
            block = index.read_block(number[2])
            self._blocks[number] = block
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return index.checked_row(block, key.ordinal)

    def metadata(self, key: DocumentKey) -> dict:
        """As the documents had it; empty if the index was built without them."""
        metadata = self._metadata[key.corpus]
        return {} if metadata is None else metadata.get(key.file, key.ordinal)

    def _draw(self, match: Match, config: DocumentsConfig) -> dict[DocumentKey, list[int]]:
        """Documents of a match with its offsets in each, of `per_span` texts: more are drawn where copies are found."""
        limit = 2 * config.per_span
        while True:
            places = self.searcher.places(match.ranges, limit, config.seed)
            documents = self._documents(places)
            texts: dict[int, list[Held]] = {}
            chosen: dict[DocumentKey, list[int]] = {}
            for n in np.random.default_rng(config.seed).permutation(len(documents)).tolist():
                key, offsets = documents[n]
                size = sum(map(len, texts.values()))
                if size == config.per_span and not self._is_known(texts, key):
                    continue
                self._held(texts, key)
                chosen[key] = offsets
            n_texts = sum(map(len, texts.values()))
            if n_texts >= config.per_span or len(places) < limit or limit >= MOST_DRAWN * config.per_span:
                return chosen
            limit = min(8 * limit, MOST_DRAWN * config.per_span)

    def _documents(self, places: Sequence[Place]) -> list[tuple[DocumentKey, list[int]]]:
        """The documents of places, each once, with the offsets in it, by place."""
        by_file: dict[tuple[int, int], list[int]] = {}
        for place in places:
            by_file.setdefault((place.corpus, place.file), []).append(place.offset)
        found: dict[DocumentKey, list[int]] = {}
        for (corpus, file), offsets in sorted(by_file.items()):
            starts = np.asarray(self.searcher.corpora[corpus].files[file].index.starts)
            offsets.sort()
            ordinals = np.searchsorted(starts, np.array(offsets, np.uint64), side="right") - 1
            for ordinal, start, end, offset in zip(
                ordinals.tolist(), starts[ordinals].tolist(), starts[ordinals + 1].tolist(), offsets, strict=True
            ):
                found.setdefault(DocumentKey(corpus, file, ordinal, start, end), []).append(offset - start)
        return list(found.items())

    def _is_known(self, found: dict[int, list[Held]], key: DocumentKey) -> bool:
        return any(h.key == key or self.is_equal(h.key, key) for h in found.get(key.end - key.start, []))

    def _held(self, found: dict[int, list[Held]], key: DocumentKey) -> Held:
        """The document of equal tokens that was found before, or else this one."""
        same_length = found.setdefault(key.end - key.start, [])
        for held in same_length:
            if held.key == key or key in held.copies:
                return held
        for held in same_length:
            if self.is_equal(held.key, key):
                if len(held.copies) < MOST_COPIES:
                    held.copies.append(key)
                return held
        same_length.append(Held(key))
        return same_length[-1]

    def _is_equal(self, a: DocumentKey, b: DocumentKey) -> bool:
        """Whether two documents of one length have the same tokens: the first ones are compared first, the rest in pieces."""
        files = [self.searcher.corpora[key.corpus].files[key.file] for key in (a, b)]
        n, at, size = a.end - a.start, 0, _HEAD
        while at < n:
            stop = min(n, at + size)
            x, y = (file.read(key.start + at, key.start + stop) for file, key in zip(files, (a, b), strict=True))
            if not np.array_equal(x, y):
                return False
            at, size = stop, _CHUNK
        return True
