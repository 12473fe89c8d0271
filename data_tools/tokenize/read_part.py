"""First phase: one file of documents -> a run of ids in scratch."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data_tools.documents import SOURCE, Line, Reason, Reject
from data_tools.tokenize.cuts import LONGEST, NoCutError
from data_tools.tokenize.encoder import Encoder, EncoderChoice
from data_tools.tokenize.runs import Entry, RunWriter, place_of
from data_tools.work.counts import add_counts, count
from data_tools.work.part import MOST_RAW, PartContext
from olmo_train.errors import ShardError

OURS = re.compile(r"(stages|index)(/.*)?|(.*/)?part-\d{5,}\..*")
"""Names that the output has for other things."""
LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255."""
BATCH_BYTES = 2**19
"""Of text, handed to the encoder at once."""
LONG = 2**20
"""Characters of a text from which it is encoded piece by piece."""
CHECKED_FRAC = 0.001
"""Of documents, whose ids are compared with those of `tokenizers`."""
LONGEST_CHECKED = 100_000
"""Characters of such a document."""


@dataclass(frozen=True)
class ReadPlan:
    """What all parts are told."""

    tokenizer: str
    encoder: EncoderChoice
    dtype: str
    frame: tuple[list[int], list[int]]
    seed: int
    is_shuffled: bool


def source_problem(source: str) -> str | None:
    """Why a source cannot name a folder of the output; None: it can."""
    if not SOURCE.fullmatch(source):
        return "it takes words that start with a letter or digit, with slashes between"
    if OURS.fullmatch(source):
        return "the output has this name for something else"
    if max(len(name.encode("utf-8")) for name in source.split("/")) > LONGEST_NAME or len(source.encode("utf-8")) > 1000:
        return f"names of folders have at most {LONGEST_NAME} bytes"
    return None


_encoders: dict[tuple[str, EncoderChoice], Encoder] = {}
"""Of this process: made once, with its gate. At most one."""


def encoder_of(path: str, choice: EncoderChoice) -> Encoder:
    """The encoder of this process for a tokenizer file."""
    key = (path, choice)
    if key not in _encoders:
        _encoders.clear()
        made = _encoders[key] = Encoder(Path(path), choice=choice)
        if made.why_slow:
            print(f"tokenize: gigatoken is not used: {made.why_slow}", file=sys.stderr)
        if not made.can_cut:
            print(f"tokenize: {path} may join any words: long texts are encoded whole, and need memory", file=sys.stderr)
    return _encoders[key]


def document_key(source: str, document_id: str, seed: int) -> int:
    """64 bits of the seed, the source and the id alone: the order of a shuffled source; equal for equal ids."""
    return xxhash.xxh3_64_intdigest(b"%b\0%b" % (source.encode("utf-8"), document_id.encode("utf-8")), seed)


def read_file(context: PartContext, plan: ReadPlan) -> None:
    """Encode the documents of one file. The part's payload: (number of the file, its path)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core is the measure; it is read at every call
    number, path = context.part.payload
    writer = RunWriter(context, plan.dtype, plan.frame, context.memory_mb * 10**6 // 10)
    reader = _Reader(context, plan, number, writer)
    for line in reader.lines(Path(path)):
        reader.take(line)
    reader.encode()
    writer.close()
    add_counts(context.counts, {"encoders": {reader.encoder.name: 1}})


class _Reader:
    """The documents of one file on their way into a run."""

    def __init__(self, context: PartContext, plan: ReadPlan, number: int, writer: RunWriter) -> None:
        self.context, self.plan, self.number, self.writer = context, plan, number, writer
        self.encoder = encoder_of(plan.tokenizer, plan.encoder)
        self._held: list[tuple[Line, int]] = []
        self._held_bytes = 0
        self._problems: dict[str, str | None] = {}

    def lines(self, path: Path) -> Iterator[Line]:
        """Documents that go on."""
        for line in self.context.read(path):
            if line.source not in self._problems:
                self._problems[line.source] = source_problem(line.source)
            problem = self._problems[line.source]
            if problem is not None:
                detail = f"source={line.source!r} cannot name a folder of the output; {problem}"
                self._reject(line, Reason.BAD_SOURCE, detail)
            elif not line.is_long and not line.text:
                self.context.drop(line, "empty")
                count(self.context.counts, "dropped_empty")
            else:
                yield line

    def _reject(self, line: Line, reason: Reason, detail: str) -> None:
        self.context.record.lines -= 1  # the reader and the reject count it
        self.context.reject(Reject(line.path, line.line, reason, detail, bytes(line.raw[: MOST_RAW + 1])))

    def take(self, line: Line) -> None:
        """One document: now if it is long, with others if not."""
        count(self.context.counts, "documents_in")
        if line.is_long or len(line.text) > LONG:
            self.encode()
            self._encode_long(line)
            line.release()
            return
        size = len(line.text) if line.text.isascii() else len(line.text.encode("utf-8"))
        self._held.append((line, size))
        self._held_bytes += size
        if self._held_bytes >= BATCH_BYTES:
            self.encode()

    def encode(self) -> None:
        """What is held."""
        if not self._held:
            return
        found, begins = self.encoder.encode([line.text for line, _ in self._held])
        ids, at = self.writer.narrow(found), begins.tolist()
        for i, (line, size) in enumerate(self._held):
            mine = ids[at[i] : at[i + 1]]
            key = document_key(line.source, line.id, self.plan.seed)
            if key % 2**32 < CHECKED_FRAC * 2**32 and len(line.text) <= LONGEST_CHECKED:
                self._check(line, mine)
            self.writer.add(self._entry(line, key, size), mine)
            self._count(line.source, size, len(mine))
        self._held, self._held_bytes = [], 0

    def _encode_long(self, line: Line) -> None:
        document, size = self.writer.open_long(), 0

        def pieces() -> Iterator[str]:
            nonlocal size
            for piece in line.pieces():
                size += len(piece.encode("utf-8"))
                yield piece

        try:
            for ids in self.encoder.encode_pieces(pieces()):
                document.write(ids)
        except NoCutError:
            document.discard()
            self._reject(line, Reason.TOO_LONG, f"text has a stretch of {LONGEST:,} characters without white space or the like")
            return
        document.close(self._entry(line, document_key(line.source, line.id, self.plan.seed), size))
        self._count(line.source, size, document.tokens - self.writer.n_frame)

    def _entry(self, line: Line, key: int, size: int) -> Entry:
        place = place_of(self.number, line.line)
        order = key if self.plan.is_shuffled else place
        return Entry(self.writer.source(line.source), order, place, size, key, line.id.encode("utf-8"))

    def _count(self, source: str, size: int, tokens: int) -> None:
        counts = self.context.counts
        count(counts, "text_bytes_in", size)
        row = counts.setdefault("by_source", {}).setdefault(source, {"documents": 0, "tokens": 0})
        row["documents"] += 1
        row["tokens"] += tokens + self.writer.n_frame

    def _check(self, line: Line, ids: np.ndarray) -> None:
        """Raises:
        ShardError: gigatoken gave other ids than tokenizers."""
        count(self.context.counts, "checked")
        if not np.array_equal(ids, self.encoder.reference_ids(line.text)):
            raise ShardError(
                f"{line.path}: line {line.line}: {self.encoder.name} gives document {line.id!r} other ids than tokenizers; "
                "give encoder=tokenizers, and tell its authors"
            )
