"""Third phase: one range of keys of a source -> a token file with its sidecar and index."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_tools.files import BLOCK
from data_tools.tokenize.plan_part import dropped_path, is_in, plan_path
from data_tools.tokenize.runs import BATCH_TOKENS, Segment, find_rows, read_bytes, read_column, read_name, run_path, split_place
from data_tools.work.part import PartContext
from olmo_train.data.document_index import SUFFIXES, DocumentRow, write_index
from olmo_train.data.shards import file_entry, hash_file


@dataclass(frozen=True)
class WritePlan:
    """What all parts are told."""

    output: str
    srcs: list[str]
    """Of the input files, as the sidecars name them."""
    itemsize: int
    heldout_frac: float


def entry_path(folder: Path, part: str) -> Path:
    """The manifest's entry of a token file."""
    return folder / "scratch" / "entries" / f"{part}.json"


def write_file(context: PartContext, plan: WritePlan) -> None:
    """Payload: (number of the source, its name, number of the file)."""
    number, source, file_number = context.part.payload
    stem = f"{source}/part-{file_number:05d}"
    names = (f"{stem}.npy", f"index/{stem}", f"{stem}.csv.gz")
    output = Path(plan.output)
    tokens, rows = context.output(output / names[0]), context.output(output / names[2])
    prefix = context.folder / "scratch" / f".index-{context.part.name}-{os.getpid()}"
    documents = _Documents(context, plan, number, file_number)
    with open(tokens, "wb", buffering=BLOCK) as out:
        counts = write_index(prefix, rows, documents.write(out), documents.tokens, plan.heldout_frac)
    for suffix in SUFFIXES:
        written = prefix.with_name(prefix.name + suffix)
        os.replace(written, context.output(output / f"{names[1]}{suffix}"))
    entry = file_entry(names[0], source, documents.tokens, counts, names[1:], (documents.text_bytes, *hash_file(tokens)))
    context.output(entry_path(context.folder, context.part.name)).write_text(json.dumps(asdict(entry)))
    row = {"documents": counts.documents, "text_bytes": documents.text_bytes, "tokens": documents.tokens}
    heldout = {"heldout_documents": counts.heldout_documents, "heldout_tokens": counts.heldout_tokens}
    context.counts.update(
        documents_out=counts.documents, text_bytes_out=documents.text_bytes, tokens_out=documents.tokens,
        by_source={source: row | heldout},
    )  # fmt: skip


class _Documents:
    """The documents of one file, in their order."""

    def __init__(self, context: PartContext, plan: WritePlan, number: int, file_number: int) -> None:
        self.context, self.plan, self.folder = context, plan, context.folder
        values = json.loads(plan_path(self.folder, number).read_text())
        low, high = values["borders"][file_number : file_number + 2]
        slices = [find_rows(self.folder, Segment(**each), low, high) for each in values["segments"]]
        self.slices = [s for s in slices if s.first < s.last]
        keys = np.concatenate([read_column(self.folder, s, "keys") for s in self.slices])
        self.rows = np.concatenate([read_column(self.folder, s, "rows") for s in self.slices])
        self.owner = np.repeat(np.arange(len(self.slices)), [s.last - s.first for s in self.slices])
        dropped = np.load(dropped_path(self.folder, number), mmap_mode="r")
        self.order = np.lexsort((self.rows["place"], keys))
        self.order = self.order[~is_in(self.rows["place"][self.order], dropped)]
        self._sort_equal_keys(keys)
        self.tokens = int(self.rows["tokens"][self.order].sum())
        self.text_bytes = int(self.rows["text_bytes"][self.order].sum())

    def _sort_equal_keys(self, keys: np.ndarray) -> None:
        """By the ids: the order must not follow from where documents stood. One in 2**64 pairs of documents comes here."""
        for at in np.flatnonzero(np.diff(keys[self.order]) == 0).tolist():
            while at >= 0 and keys[self.order[at]] == keys[self.order[at + 1]] and self._name(at) > self._name(at + 1):
                self.order[[at, at + 1]] = self.order[[at + 1, at]]
                at -= 1

    def _name(self, at: int) -> str:
        i = int(self.order[at])
        return read_name(self.folder, self.slices[int(self.owner[i])].run, self.rows[i])

    def write(self, out: BinaryIO) -> Iterator[DocumentRow]:
        """Write the ids; give the rows."""
        sizes = self.rows["tokens"][self.order].astype(np.int64) * self.plan.itemsize
        ends = np.cumsum(sizes)
        limit = self.context.memory_mb * 10**6 // 8
        at = end = 0
        while at < len(sizes):
            begin = int(ends[at - 1]) if at else 0
            stop = max(int(np.searchsorted(ends, begin + limit, "right")), at + 1)
            batch = self.order[at:stop]
            if stop == at + 1:
                self._copy(out, int(batch[0]))
            else:
                self._gather(out, batch)
            names = self._names(batch)
            places, tokens = self.rows["place"][batch].tolist(), self.rows["tokens"][batch].tolist()
            for name, place, n in zip(names, places, tokens, strict=True):
                file, line = split_place(place)
                yield DocumentRow(end, end + n, name, self.plan.srcs[file], line)
                end += n
            self.context.tick(int(ends[stop - 1]) - begin)
            at = stop

    def _copy(self, out: BinaryIO, i: int) -> None:
        """One document of any length."""
        path = run_path(self.folder, self.slices[int(self.owner[i])].run, "tokens")
        first, size = int(self.rows["start"][i]) * self.plan.itemsize, int(self.rows["tokens"][i]) * self.plan.itemsize
        for start in range(first, first + size, 8 * BATCH_TOKENS):
            out.write(read_bytes(path, start, min(start + 8 * BATCH_TOKENS, first + size)))

    def _gather(self, out: BinaryIO, batch: np.ndarray) -> None:
        """Many documents: what each run has of them lies in one piece there, duplicates between them apart."""
        pieces: list[memoryview] = [memoryview(b"")] * len(batch)
        owners = self.owner[batch]
        by_owner = np.argsort(owners, kind="stable")
        begins = [0, *(np.flatnonzero(np.diff(owners[by_owner])) + 1).tolist(), len(batch)]
        size = self.plan.itemsize
        for first, last in pairwise(begins):
            mine = by_owner[first:last]
            rows = self.rows[batch[mine]]
            starts, ends = rows["start"].astype(np.int64) * size, (rows["start"] + rows["tokens"]).astype(np.int64) * size
            begin = int(starts.min())
            path = run_path(self.folder, self.slices[int(owners[mine[0]])].run, "tokens")
            view = memoryview(read_bytes(path, begin, int(ends.max())))
            for i, a, b in zip(mine.tolist(), (starts - begin).tolist(), (ends - begin).tolist(), strict=True):
                pieces[i] = view[a:b]
        out.writelines(pieces)

    def _names(self, batch: np.ndarray) -> list[str]:
        """Ids of documents, read in one piece from each run."""
        names = [""] * len(batch)
        for owner in np.unique(self.owner[batch]).tolist():
            mine = np.flatnonzero(self.owner[batch] == owner)
            rows = self.rows[batch[mine]]
            starts, ends = rows["name"].astype(np.int64), (rows["name"] + rows["name_bytes"]).astype(np.int64)
            begin = int(starts.min())
            data = read_bytes(run_path(self.folder, self.slices[owner].run, "names"), begin, int(ends.max()))
            for i, a, b in zip(mine.tolist(), (starts - begin).tolist(), (ends - begin).tolist(), strict=True):
                names[i] = data[a:b].decode("utf-8")
        return names
