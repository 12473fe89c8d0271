"""Documents of equal text, id or URL: one is kept, the others are told, with what was kept for them.

scratch/<file>.{names,rows,keys}                 of each file of documents (keys.py, table.py); removed at the end
scratch/<range>.removed                          of each range of keys
<dataset>/attributes/<name>/<file>               <name>__<by>__duplicate: [[0, characters, 1.0]] of what is to be removed
duplicates/attributes-<part>.jsonl.zst           id, source, path, line of it, and the same of what is `kept`
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import xxhash

from data_tools.datasets import DocumentFile, part_names
from data_tools.dedupe.config import By, DedupeConfig, Normalize
from data_tools.dedupe.keys import KeyWriter, find_equal, range_bits, read_range, read_removed, write_removed
from data_tools.dedupe.table import Row, Table, TableWriter
from data_tools.dedupe.urls import url_in
from data_tools.documents import Line
from data_tools.files import LineWriter
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part, PartContext, Record
from data_tools.work.stage import Stage

SCRATCH = "scratch"
KINDS = ("names", "rows", "keys")


@dataclass(frozen=True)
class Task:
    """What the phases share."""

    by: By
    name: str
    normalize: Normalize
    priority: tuple[str, ...]
    files: tuple[DocumentFile, ...]

    @property
    def attribute(self) -> str:
        """Its name."""
        return f"{self.name}__{self.by}__duplicate"

    def priority_of(self, source: str) -> int:
        """Smaller is kept."""
        return self.priority.index(source) if source in self.priority else len(self.priority)


def run_exact(stage: Stage, files: list[DocumentFile], config: DedupeConfig) -> Counts:
    """All phases; returns the totals."""
    task = Task(config.by, config.name, config.normalize, tuple(config.priority), tuple(files))
    parts = file_parts(files)
    records = stage.run("keys", parts, write_keys, task)
    bits = range_bits(sum(record.counts["keys"] for record in records), config.memory_mb)
    stage.run("compare", range_parts(records, bits), compare_range, (len(files), bits))
    records = stage.run("attributes", parts, write_duplicates, (task, bits))
    return total_of(records, task.attribute)


def file_parts(files: Sequence[DocumentFile]) -> list[Part]:
    """One for each file of documents; payload: its number."""
    return [
        Part(name, number, file.path.stat().st_size)
        for number, (name, file) in enumerate(zip(part_names(list(files)), files, strict=True))
    ]


def range_parts(records: list[Record], bits: int) -> list[Part]:
    """One for each range of keys; payload: its number."""
    size = 24 * sum(record.counts["keys"] for record in records) >> bits
    return [Part(f"{number:06d}", number, size) for number in range(1 << bits)]


def total_of(records: list[Record], attribute: str) -> Counts:
    """Counts of all parts, and how many documents have the attribute."""
    total: Counts = {}
    for record in records:
        add_counts(total, record.counts)
    return {**total, "attributes": {attribute: total.get("documents_duplicate", 0)}}


def scratch_file(folder: Path, number: int, kind: str) -> Path:
    """Of a file of documents or a range, by its number."""
    return folder / SCRATCH / f"{number:06d}.{kind}"


def open_table(folder: Path, number: int) -> Table:
    """Of a file of documents."""
    return Table(*(scratch_file(folder, number, kind) for kind in KINDS[:2]))


# ---- keys --------------------------------------------------------------------------------------------------------------------


def write_keys(context: PartContext, task: Task) -> None:
    """First phase, of one file: the key of every document, and what is told of it."""
    number: int = context.part.payload
    outputs = [context.output(scratch_file(context.folder, number, kind)) for kind in KINDS]
    table, keys = TableWriter(*outputs[:2]), KeyWriter(outputs[2], number)
    key_of = key_function(task)
    for ordinal, line in enumerate(context.read(task.files[number].path)):
        key, characters, size = key_of(line)
        table.add(line, characters, size)
        if key is not None:
            keys.add(key, task.priority_of(line.source), ordinal)
        line.release()
    table.close()
    keys.close()
    context.counts.update(keys=keys.written)


Key = tuple[int, int]
KeyOf = Callable[[Line], tuple[Key | None, int, int]]
"""Of a document: its key (None: it is compared with none), characters and bytes of its text."""


def key_function(task: Task) -> KeyOf:
    """For what is compared."""
    match task.by, task.normalize:
        case By.DOCUMENT, Normalize.NONE:
            return text_key
        case By.DOCUMENT, normalize:
            return lambda line: (normal_key(line, normalize), *measure(line))
        case By.ID, _:
            return lambda line: (_key(f"{line.source}\0{line.id}"), *measure(line))
        case _:
            return lambda line: (url_key(line), *measure(line))


def text_key(line: Line) -> tuple[Key, int, int]:
    """xxh3-128 of the UTF-8 of the text, as it is."""
    hasher, characters, size = xxhash.xxh3_128(), 0, 0
    for piece in line.pieces():
        data = piece.encode()
        hasher.update(data)
        characters += len(piece)
        size += len(data)
    return _halves(hasher.intdigest()), characters, size


def normal_key(line: Line, normalize: Normalize) -> Key:
    """The same of the normal form. White space is what `str.split` takes for it."""
    hasher, begun, gap = xxhash.xxh3_128(), False, False
    for piece in line.pieces():
        words = piece.split()
        if words:
            text = " ".join(words)
            if begun and (gap or piece[0].isspace()):
                hasher.update(b" ")
            hasher.update((text.casefold() if normalize == Normalize.CASE else text).encode())
            begun, gap = True, piece[-1].isspace()
        else:
            gap = gap or bool(piece)
    return _halves(hasher.intdigest())


def url_key(line: Line) -> Key | None:
    """Of the normal form of the URL."""
    url = url_in(line.raw, line.id)
    return None if url is None else _key(url)


def measure(line: Line) -> tuple[int, int]:
    """Characters and bytes of the text."""
    characters = size = 0
    for piece in line.pieces():
        characters += len(piece)
        size += len(piece) if piece.isascii() else len(piece.encode())
    return characters, size


def _key(text: str) -> Key:
    return _halves(xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogatepass")))


def _halves(key: int) -> Key:
    return key >> 64, key & (2**64 - 1)


# ---- ranges, and back --------------------------------------------------------------------------------------------------------


def compare_range(context: PartContext, shared: tuple[int, int]) -> None:
    """Second phase, of one range of keys."""
    number: int = context.part.payload
    n_files, bits = shared
    keys = read_range([scratch_file(context.folder, file, "keys") for file in range(n_files)], number, bits)
    found = find_equal(keys)
    write_removed(context.output(scratch_file(context.folder, number, "removed")), found.removed, found.kept)


def write_duplicates(context: PartContext, shared: tuple[Task, int]) -> None:
    """Third phase, of one file: a line of attributes for each document, and a record of each that is removed."""
    task, bits = shared
    number: int = context.part.payload
    tables = lru_cache(maxsize=64)(lambda each: open_table(context.folder, each))
    table, path = tables(number), str(task.files[number].path)
    attributes = LineWriter(context.output(task.files[number].attributes(task.name)))
    ranges = [scratch_file(context.folder, each, "removed") for each in range(1 << bits)]
    begin = 0
    for end, ordinals, kept in read_removed(scratch_file(context.folder, number, "keys"), ranges, number):
        for ordinal, place in zip(ordinals.tolist(), kept.tolist(), strict=True):
            write_unmarked(attributes, table, begin, ordinal)
            row = table.rows(ordinal, ordinal + 1)[0]
            name, characters = next(table.names(ordinal, ordinal + 1)), int(row[Row.CHARACTERS])
            attributes.write(name + b',"attributes":{"%b":[[0,%d,1.0]]}}' % (task.attribute.encode(), characters))
            other, of = tables(place >> 32), str(task.files[place >> 32].path)
            told = {**table.place(ordinal, path), "reason": task.by.value, "kept": other.place(place & (2**32 - 1), of)}
            context.write_line("duplicates", told)
            begin = ordinal + 1
        write_unmarked(attributes, table, begin, end)
        begin = end
        _count(context.counts, table.sums(ordinals), -1)
    write_unmarked(attributes, table, begin, len(table))
    attributes.close()
    _count(context.counts, ((source, documents, size) for source, documents, size, _ in table.totals()), 1)


def write_unmarked(attributes: LineWriter, table: Table, begin: int, end: int) -> None:
    """Lines without attributes for the documents of [begin, end)."""
    for name in table.names(begin, end):
        attributes.write(name + b',"attributes":{}}')


def _count(counts: Counts, sums: Iterable[tuple[str, int, int]], sign: int) -> None:
    """Documents that go on (sign -1: fewer by these, which are duplicates)."""
    what = "in" if sign > 0 else "duplicate"
    for source, documents, size in sums:
        values = {f"documents_{what}": documents, f"text_bytes_{what}": size}
        values |= {"documents_out": sign * documents, "text_bytes_out": sign * size}
        add_counts(counts, {**values, "by_source": {source: {"documents": sign * documents, "text_bytes": sign * size}}})
