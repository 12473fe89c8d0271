"""Documents that a run leaves out (`data.without`): where they stand in its token files, and in a row."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from olmo_train.config.data import WithoutConfig
from olmo_train.data.order import Piece
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ConfigError

Columns = tuple[int, int, int]
"""Columns [start, end) of a row, and the end-of-text id that takes their places."""
MOST = 10
"""Ids told of in one message."""


class Without:
    """The tokens that are left out, by file. A row without any costs one binary search for each of its pieces."""

    def __init__(self, files: Mapping[str, Iterable[ShardFile]], config: WithoutConfig) -> None:
        """`files`: of each source of the run.

        Raises:
            ConfigError: an id is of no document of these files, or of held-out ones alone, or there is no end-of-text id.
        """
        self.after_step = config.after_step
        whole = [file for source in files.values() for file in source]
        found = {file: _ordinals(file, config.documents) for file in whole}
        problems = [
            *_id_problems(found, config.documents),
            *_eos_problems(file for file, ids in found.items() if any(ids.values())),
        ]
        if problems:
            raise ConfigError(problems)
        self.spans = {file: _joined(file, ids) for file, ids in found.items() if any(ids.values())}
        """By file: int64 (spans, 2), token offsets [start, end), sorted and apart."""

    def columns(self, pieces: Sequence[Piece]) -> list[Columns]:
        """Where a row holds what is left out."""
        found = []
        for piece in pieces:
            spans = self.spans.get(piece.file)
            if spans is None:
                continue
            at = int(np.searchsorted(spans[:, 1], piece.start, side="right"))
            while at < len(spans) and spans[at, 0] < piece.end:
                start, end = max(int(spans[at, 0]), piece.start), min(int(spans[at, 1]), piece.end)
                assert piece.file.eos_id is not None  # _eos_problems
                found.append((piece.column + start - piece.start, piece.column + end - piece.start, piece.file.eos_id))
                at += 1
        return found


def _ordinals(file: ShardFile, ids: Iterable[str]) -> dict[str, list[int]]:
    return {document: file.index.find(document) for document in ids}


def _joined(file: ShardFile, found: Mapping[str, list[int]]) -> np.ndarray:
    """int64 (spans, 2): the documents' spans; those without tokens are none."""
    ordinals = sorted({ordinal for some in found.values() for ordinal in some})
    spans = [file.index.span(ordinal) for ordinal in ordinals]
    return np.array([span for span in spans if span[0] < span[1]], np.int64).reshape(-1, 2)


def _id_problems(found: Mapping[ShardFile, Mapping[str, list[int]]], ids: Sequence[str]) -> list[str]:
    missing, heldout = [], []
    for document in dict.fromkeys(ids):
        places = [(file, ordinal) for file, by_id in found.items() for ordinal in by_id[document]]
        if not places:
            missing.append(document)
        elif all(_is_heldout(file, ordinal) for file, ordinal in places):
            heldout.append(document)
    problems = []
    if missing:
        problems.append(f"data.without.documents: no source has a document {_names(missing)}; give ids as the `.csv.gz` has them")
    if heldout:
        problems.append(
            f"data.without.documents: held out, so no step sees them anyway: {_names(heldout)}; take them out of the list"
        )
    return problems


def _is_heldout(file: ShardFile, ordinal: int) -> bool:
    start, end = file.index.span(ordinal)
    return start < end and file.index.train_position(start) is None


def _eos_problems(files: Iterable[ShardFile]) -> list[str]:
    return [
        f"data.without: the manifest of {file.path} has no end-of-text id (eos_id=null), which takes the place of what is left "
        "out; write it again with `olmo data manifest ... eos_id=ID`"
        for file in files
        if file.eos_id is None
    ][:1]


def _names(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MOST} more" if len(ids) > MOST else ""
    return ", ".join(map(repr, ids[:MOST])) + more
