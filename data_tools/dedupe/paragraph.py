"""Paragraphs that stand more than once: all but the first are told as spans, with the share of each document that they are.

scratch/<file>.{names,rows,keys}, scratch/<range>.removed    as in exact.py; the items are paragraphs that have words
scratch/<file>.lengths                uint32: characters of every paragraph without its separator
<dataset>/attributes/<name>/<file>    <name>__paragraph__duplicate: spans, with the separator that follows, adjacent ones as one;
                                      <name>__paragraph__duplicate_frac: [[0, characters, share of them that are in those]]
filter/                               with paragraph.exact=false: the Bloom filter of this corpus (bloom.py)

Within a corpus equal paragraphs are found by their hashes of 128 bits whether or not there is a filter; filters are for what
earlier corpora hold. So no order of insertion decides anything, and no paragraph is taken for another of its own corpus.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_tools.datasets import DocumentFile
from data_tools.dedupe.bloom import Filter, FilterPart, Header, Shape, filter_problems, part_path, refuse_own, write_header
from data_tools.dedupe.config import DedupeConfig, ParagraphConfig
from data_tools.dedupe.exact import Task, file_parts, open_table, scratch_file
from data_tools.dedupe.keys import PLACE, KeyWriter, find_equal, range_bits, read_range, read_removed, write_removed
from data_tools.dedupe.paragraphs import Splitter
from data_tools.dedupe.spans import SpanWriter
from data_tools.dedupe.table import TableWriter
from data_tools.documents import Line
from data_tools.files import LineWriter
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Stage
from olmo_train.errors import ShardError

BATCH = 2**16
"""Paragraphs that are held before they go to the runs of keys."""
FILTER_MB = 64
"""Memory of a part of a filter that is made, one that is looked into, and the positions of a batch of keys."""


def paragraph_problems(config: ParagraphConfig) -> list[str]:
    """What is wrong with a config."""
    problems = []
    if not config.separator:
        problems.append("paragraph.separator is empty; give what stands between two paragraphs")
    if config.min_words < 0:
        problems.append(f"paragraph.min_words={config.min_words} must not be negative")
    if not 0 < config.false_positive_rate < 1:
        problems.append(f"paragraph.false_positive_rate={config.false_positive_rate} is not in (0, 1)")
    if config.expected is not None and config.expected < 1:
        problems.append(f"paragraph.expected={config.expected} must be positive; null counts them first")
    return problems + filter_problems(config)


@dataclass(frozen=True)
class Compared:
    """How ranges are compared."""

    n_files: int
    bits: int
    """log2 of the number of ranges."""
    shape: Shape | None
    """Of the filter that is written."""
    seen: tuple[str, ...]

    @property
    def part_bits(self) -> int:
        """log2 of the number of parts: one for each part of the filter, though it may have several ranges."""
        return self.bits if self.shape is None else self.shape.part_bits


def run_paragraphs(stage: Stage, files: list[DocumentFile], config: DedupeConfig) -> Counts:
    """All phases; returns the totals."""
    options = config.paragraph
    refuse_own(options.seen, [file.path for file in files])
    task = Task(config.by, config.name, config.normalize, tuple(config.priority), tuple(files))
    parts = file_parts(files)
    records = stage.run("keys", parts, write_keys, (task, options.separator, options.min_words))
    n_keys = sum(record.counts["keys"] for record in records)
    bits, shape = range_bits(n_keys, config.memory_mb - (0 if options.exact else FILTER_MB)), None
    if not options.exact:
        shape = Shape.of(options.expected or max(n_keys, 1), options.false_positive_rate)
        bits = max(bits, shape.part_bits)
    compared = Compared(len(files), bits, shape, tuple(options.seen))
    ranges = [Part(f"{i:06d}", i, 24 * n_keys >> compared.part_bits) for i in range(1 << compared.part_bits)]
    held = sum(record.counts["held"] for record in stage.run("compare", ranges, compare_range, compared))
    if shape is not None:
        _finish_filter(stage, config, Header(shape, options.separator, options.min_words, options.expected or n_keys,
                                             options.false_positive_rate, held, _inputs(files)))  # fmt: skip
    total: Counts = {}
    for record in stage.run("attributes", parts, write_spans, (task, bits, len(options.separator))):
        add_counts(total, record.counts)
    names = {f"{task.attribute}{end}": total["documents_with_duplicates"] for end in ("", "_frac")}
    return {**total, "attributes": names}


def _inputs(files: list[DocumentFile]) -> dict[str, int]:
    return {str(file.path.absolute()): file.path.stat().st_size for file in files}


def _finish_filter(stage: Stage, config: DedupeConfig, header: Header) -> None:
    if header.paragraphs > header.expected:
        raise ShardError(
            f"paragraph.expected={header.expected:,}, but there are {header.paragraphs:,} different paragraphs: more of others "
            f"than {config.paragraph.false_positive_rate} would be taken for held; remove {stage.folder} and give more, or null"
        )
    write_header(stage.folder / "filter", header)


# ---- keys --------------------------------------------------------------------------------------------------------------------


class _Items:
    """Paragraphs on their way from the splitter to the runs of keys."""

    def __init__(self, splitter: Splitter, keys: KeyWriter, lengths: BinaryIO) -> None:
        self._splitter, self._keys, self._lengths = splitter, keys, lengths
        self._priority = self._taken = 0

    def add(self, line: Line, priority: int) -> tuple[int, int, int]:
        """One document; returns its characters, bytes, and the paragraphs up to its end."""
        if priority != self._priority:
            self.take()
            self._priority = priority
        characters = size = 0
        for more, more_bytes in self._splitter.split(line):
            characters, size = characters + more, size + more_bytes
            if len(self._splitter) >= BATCH:
                self.take()
        return characters, size, self._taken + len(self._splitter)

    def take(self) -> None:
        """Of all documents so far."""
        found, lengths, has_words = self._splitter.take()
        ordinals = np.flatnonzero(has_words)
        self._keys.add_many(found[ordinals], self._priority, ordinals.astype(np.uint64) + np.uint64(self._taken))
        self._lengths.write(lengths.data)
        self._taken += len(lengths)


def write_keys(context: PartContext, shared: tuple[Task, str, int]) -> None:
    """First phase, of one file: the key of every paragraph that has words, the length of every one, and its documents."""
    task, separator, min_words = shared
    number: int = context.part.payload
    kinds = ("names", "rows", "keys", "lengths")
    names, rows, keys_path, lengths = (context.output(scratch_file(context.folder, number, kind)) for kind in kinds)
    table, keys = TableWriter(names, rows), KeyWriter(keys_path, number)
    with open(lengths, "wb") as out:
        items = _Items(Splitter(separator, min_words), keys, out)
        for line in context.read(task.files[number].path):
            table.add(line, *items.add(line, task.priority_of(line.source)))
            line.release()
        items.take()
    table.close()
    keys.close()
    context.counts.update(keys=keys.written)


# ---- ranges ------------------------------------------------------------------------------------------------------------------


def compare_range(context: PartContext, compared: Compared) -> None:
    """Second phase, of one part of the filter (or one range): which paragraphs are duplicates; and the bits of the others."""
    number: int = context.part.payload
    files = [scratch_file(context.folder, file, "keys") for file in range(compared.n_files)]
    part = FilterPart(compared.shape) if compared.shape is not None else None
    seen = [Filter(Path(name)) for name in compared.seen]
    more, held = compared.bits - compared.part_bits, 0
    for each in range(number << more, (number + 1) << more):
        found = find_equal(read_range(files, each, compared.bits))
        first, old = found.first, np.zeros(len(found.first.hi), np.bool_)
        for other in seen:
            old |= other.holds(first.hi, first.lo)
        removed, kept = (np.concatenate([column, first.place[old] & PLACE]) for column in (found.removed, found.kept))
        write_removed(context.output(scratch_file(context.folder, each, "removed")), removed, kept)
        held += int((~old).sum())
        if part is not None:
            part.add(first.hi[~old], first.lo[~old])
    if part is not None:
        part.write(context.output(part_path(context.folder / "filter", number)))
    context.counts.update(held=held)


# ---- attributes --------------------------------------------------------------------------------------------------------------


def write_spans(context: PartContext, shared: tuple[Task, int, int]) -> None:
    """Third phase, of one file: a line of attributes for each document."""
    task, bits, separator = shared
    number: int = context.part.payload
    table = open_table(context.folder, number)
    out = LineWriter(context.output(task.files[number].attributes(task.name)))
    ranges, duplicate = [scratch_file(context.folder, each, "removed") for each in range(1 << bits)], 0
    path = scratch_file(context.folder, number, "lengths")
    with open(path, "rb") as lengths:
        spans = SpanWriter(out, table, lengths, separator, task.attribute)
        for end, paragraphs, _ in read_removed(scratch_file(context.folder, number, "keys"), ranges, number):
            spans.add(end, paragraphs)
            duplicate += len(paragraphs)
        spans.close()
    context.counts.update(spans.counts(), paragraphs=path.stat().st_size // 4, paragraphs_duplicate=duplicate)
