"""Second phase: the runs of one source -> which documents stand twice, and where each token file begins and ends."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_tools.documents import Reason, Reject
from data_tools.tokenize.runs import Segment, find_rows, read_column, read_name, segments_of, split_place
from data_tools.work.part import PartContext

MAX_DOCUMENTS = 2**20
"""Of one token file: its rows and index are held in memory while it is written."""
HASHES = 2**64
ROW_BYTES = 120
"""Of one document in memory here, copies while sorting included."""


@dataclass(frozen=True)
class SourcePlan:
    """What all parts are told."""

    runs: list[str]
    """Names, in the order of the input files."""
    paths: list[str]
    """Of the input files."""
    max_tokens: int
    is_shuffled: bool


def plan_path(folder: Path, number: int) -> Path:
    """Segments and borders of a source; `.dropped.idx` beside it: places of the documents left out, sorted."""
    return folder / "scratch" / "plan" / f"{number:05d}.json"


def dropped_path(folder: Path, number: int) -> Path:
    """uint64, sorted: places of documents that stand twice."""
    return plan_path(folder, number).with_suffix(".dropped.idx")


def plan_source(context: PartContext, plan: SourcePlan) -> None:
    """Part's payload: (number of the source, its name)."""
    number, source = context.part.payload
    segments = segments_of(context.folder, plan.runs, source)
    limit = max(context.memory_mb * 10**6 // 4 // ROW_BYTES, 1)
    dropped = _Duplicates(context, plan, source).find(segments, limit)
    sizes = _sizes(context.folder, segments, dropped, limit, plan.is_shuffled)
    documents, tokens, longest = 0, 0, 0
    for _, lengths in sizes:
        documents, tokens, longest = (
            documents + len(lengths),
            tokens + int(lengths.sum()),
            max(longest, int(lengths.max(initial=0))),
        )
    borders = _Borders(plan.max_tokens, documents, tokens, longest)
    for keys, lengths in _sizes(context.folder, segments, dropped, limit, plan.is_shuffled):
        borders.add(keys, lengths)
    values = {"segments": [asdict(segment) for segment in segments], "borders": [0, *borders.found, HASHES]}
    with open(context.output(plan_path(context.folder, number)), "w") as file:
        json.dump(values, file)
    with open(context.output(dropped_path(context.folder, number)), "wb") as out:
        np.save(out, dropped)
    context.counts["files"] = len(borders.found) + 1 if documents else 0


# ---- documents that stand twice ----------------------------------------------------------------------------------------------


class _Duplicates:
    """Equal ids have equal hashes, and meet in one range of them."""

    def __init__(self, context: PartContext, plan: SourcePlan, source: str) -> None:
        self.context, self.plan, self.source, self.folder = context, plan, source, context.folder

    def find(self, segments: list[Segment], limit: int) -> np.ndarray:
        """Places of all but the first of equal documents, sorted."""
        ending = "keys" if self.plan.is_shuffled else "hashes"
        places = [
            place
            for low, high in _hash_ranges(sum(s.last - s.first for s in segments), limit)
            for place in self._in_range([find_rows(self.folder, s, low, high, ending) for s in segments], ending)
        ]
        return np.array(sorted(places), np.uint64)

    def _in_range(self, slices: list[Segment], ending: str) -> list[int]:
        slices = [s for s in slices if s.first < s.last]
        if not slices:
            return []
        columns = [read_column(self.folder, s, ending) for s in slices]
        hashes = np.concatenate([column if ending == "keys" else column["hash"] for column in columns])
        order = np.argsort(hashes, kind="stable")
        is_same = np.diff(hashes[order]) == 0
        if not is_same.any():
            return []
        rows = [np.arange(s.first, s.last) if ending == "keys" else c["row"] for s, c in zip(slices, columns, strict=True)]
        begins = np.cumsum([0, *(len(column) for column in columns)])
        found, at = [], 0
        while at < len(is_same):
            if not is_same[at]:
                at += 1
                continue
            end = at
            while end < len(is_same) and is_same[end]:
                end += 1
            group = []
            for i in order[at : end + 1].tolist():
                n = int(np.searchsorted(begins, i, "right")) - 1
                group.append((slices[n].run, int(rows[n][i - begins[n]])))
            found += self._repeats(group)
            at = end
        return found

    def _repeats(self, group: list[tuple[str, int]]) -> list[int]:
        """Of documents with equal hashes."""
        first: dict[str, int] = {}
        found = []
        named = []
        for run, number in group:
            row = read_column(self.folder, Segment(run, number, number + 1), "rows")[0]
            named.append((int(row["place"]), read_name(self.folder, run, row)))
        for place, name in sorted(named):
            if name in first:
                found.append(place)
                self._reject(name, place, first[name])
            else:
                first[name] = place
        return found

    def _reject(self, name: str, place: int, kept: int) -> None:
        (file, line), (first_file, first_line) = split_place(place), split_place(kept)
        self.context.record.lines -= 1  # the first phase counted it
        detail = (
            f"id {name!r} stands twice in source {self.source!r}, first in {self.plan.paths[first_file]}: line {first_line}; "
            "ids must be unique"
        )
        self.context.reject(Reject(self.plan.paths[file], line, Reason.DUPLICATE_ID, detail))


def _hash_ranges(number: int, limit: int) -> Iterator[tuple[int, int]]:
    """Equal ranges of hashes: each has about `limit` of `number` documents."""
    n = -(-number // limit)
    for i in range(n):
        yield HASHES * i // n, HASHES * (i + 1) // n


# ---- token files -------------------------------------------------------------------------------------------------------------


def _sizes(
    folder: Path, segments: list[Segment], dropped: np.ndarray, limit: int, is_shuffled: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(keys, tokens) of the documents that stay, in the order of the source."""
    if is_shuffled:
        number = sum(s.last - s.first for s in segments)
        groups = ([find_rows(folder, s, low, high) for s in segments] for low, high in _hash_ranges(number, limit))
    else:
        groups = ([Segment(s.run, n, min(n + limit, s.last))] for s in segments for n in range(s.first, s.last, limit))
    for group in groups:
        slices = [s for s in group if s.first < s.last]
        if not slices:
            continue
        keys = np.concatenate([read_column(folder, s, "keys") for s in slices])
        tokens, places = (np.concatenate(column) for column in zip(*(_two_columns(folder, s) for s in slices), strict=True))
        order = np.argsort(keys, kind="stable")
        stays = ~is_in(places[order], dropped)
        yield keys[order][stays], tokens[order][stays].astype(np.int64)


def _two_columns(folder: Path, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    rows = read_column(folder, segment, "rows")
    return rows["tokens"].copy(), rows["place"].copy()


def is_in(places: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Which places are among sorted ones."""
    if not len(dropped):
        return np.zeros(len(places), np.bool_)
    at = np.minimum(np.searchsorted(dropped, places), len(dropped) - 1)
    found: np.ndarray = dropped[at] == places
    return found


class _Borders:
    """Cuts a source into files of about equal size, by the keys of the documents that begin them."""

    def __init__(self, max_tokens: int, documents: int, tokens: int, longest: int) -> None:
        room = max_tokens - min(longest, max_tokens // 8)  # so that no file is full before its share is in it
        self._files = max(-(-tokens // max(room, 1)) if tokens > max_tokens else 1, -(-documents // MAX_DOCUMENTS))
        self._max, self._tokens = max_tokens, tokens
        self.found: list[int] = []
        """Keys: of the first document of each file but the first."""
        self._before = self._begin = self._held = self._number = 0

    def add(self, keys: np.ndarray, tokens: np.ndarray) -> None:
        """The next documents."""
        ends = self._before + np.cumsum(tokens)
        middles = ends - tokens // 2
        at = 0
        while at < len(keys):
            share = self._share()
            full = int(np.searchsorted(ends, self._begin + self._max, "right"))
            stop = min(full, int(np.searchsorted(middles, share, "right")), at + MAX_DOCUMENTS - self._held)
            stop = max(stop, at if self._held else at + 1)  # a document that is larger than a file has one of its own
            if 0 < stop < len(keys) and keys[stop] == keys[stop - 1]:  # different ids of one hash are never parted
                stop = int(np.searchsorted(keys, keys[stop], "right"))
            if stop >= len(keys):
                self._held += len(keys) - at
                break
            self._close(int(keys[stop]), int(ends[stop - 1]) if stop else self._before)
            at = stop
        self._before = int(ends[-1]) if len(ends) else self._before

    def _close(self, key: int, end: int) -> None:
        self.found.append(key)
        self._begin, self._held = end, 0
        self._number += 1
        while self._share() <= end < self._tokens:  # a large document took the share of several
            self._number += 1

    def _share(self) -> int:
        """Tokens of the source up to the end of this file, if all are equal."""
        return self._tokens * min(self._number + 1, self._files) // self._files
