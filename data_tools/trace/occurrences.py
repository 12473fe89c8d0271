"""All occurrences of some tokens at once, and the documents they stand in; documents that are blocked have none."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.trace.parts import Part
from data_tools.trace.searcher import Ranges, Searcher

Documents = dict[tuple[int, int], np.ndarray]
"""By (corpus, file): int64, sorted ordinals of documents."""


@dataclass(frozen=True)
class Occurrences:
    """In one part. starts: int64, sorted token offsets in the part's file."""

    part: Part
    starts: np.ndarray


def occurrences(searcher: Searcher, ranges: Ranges) -> Iterator[Occurrences]:
    """Occurrences by part; 8 bytes are held for each in the part at hand."""
    for part, (first, last) in zip(searcher.parts, ranges.ranges_P2.tolist(), strict=True):
        if last > first:
            starts = np.sort(part.sa[ranges.split][first:last]).astype(np.int64) + part.record.start
            yield Occurrences(part, visible(searcher, part, starts) if ranges.n_blocked else starts)


def visible(searcher: Searcher, part: Part, starts: np.ndarray) -> np.ndarray:
    """Those of the token offsets that do not lie in a blocked document."""
    spans_2S = blocked_spans(searcher, part)
    at = np.searchsorted(spans_2S[0], starts, side="right") - 1
    hidden = np.zeros(len(starts), np.bool_)
    hidden[at >= 0] = starts[at >= 0] < spans_2S[1, at[at >= 0]]
    return starts[~hidden]


def blocked_spans(searcher: Searcher, part: Part) -> np.ndarray:
    """int64 (2, spans): starts and ends of the blocked documents in the part's file, sorted."""
    spans_2S: np.ndarray = searcher.blocked.spans(part.corpus, part.record.file)
    return spans_2S


def counts_by_part(searcher: Searcher, ranges: Ranges) -> list[int]:
    """Occurrences in each part."""
    if ranges.n_blocked:
        found = {id(o.part): len(o.starts) for o in occurrences(searcher, ranges)}
        return [found.get(id(part), 0) for part in searcher.parts]
    counts: list[int] = (ranges.ranges_P2[:, 1] - ranges.ranges_P2[:, 0]).tolist()
    return counts


def ordinals(searcher: Searcher, found: Occurrences) -> np.ndarray:
    """int64: the document of each occurrence."""
    starts = searcher.corpora[found.part.corpus].files[found.part.record.file].index.starts
    return np.searchsorted(starts, found.starts.astype(np.uint64), side="right") - 1


def documents(searcher: Searcher, ranges: Ranges) -> Documents:
    """The documents that hold an occurrence."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for part in occurrences(searcher, ranges):
        if len(part.starts):
            found.setdefault((part.part.corpus, part.part.record.file), []).append(np.unique(ordinals(searcher, part)))
    return {key: np.concatenate(parts) for key, parts in found.items()}  # parts of a file come in order and share no document


def n_documents(found: Documents) -> int:
    """How many documents they are."""
    return sum(len(ordinals) for ordinals in found.values())
