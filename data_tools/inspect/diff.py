"""Two datasets, or two sets of shards: `olmo data diff A B [--n 5] [--json]`.

Documents only in A, only in B, and in both but with another text, other attributes or more or fewer copies. In bounded memory:
34 bytes of each document go to files by ranges of their hash, and each range is compared on its own.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from data_tools.datasets import DocumentFile, find_document_files, read_attributes
from data_tools.documents import Line, Reject, read_lines
from data_tools.inspect.document_at import attribute_names, document_at
from data_tools.inspect.stat import print_any
from olmo_train.data.document_index import ROWS_PER_BLOCK
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError, run_command

ENTRY = np.dtype(
    [("key", "<u8"), ("text", "<u8"), ("attributes", "<u8"), ("source", "<u2"), ("file", "<u4"), ("line", "<u4")], align=False
)
"""Of a document: hash of (source, id), of its text, of its attributes; where it stands."""
RANGE_BYTES = 2**25
"""Of entries in one range, about; sorting takes four times as much."""
KINDS = ("only_a", "only_b", "text", "attributes", "copies")


@dataclass
class Side:
    """One of the two."""

    path: Path
    names: list[str] = field(default_factory=list)
    """Attributes that are compared."""
    sources: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    rejected: int = 0
    """Lines that are no documents, and files that end too early."""

    def __post_init__(self) -> None:
        self.corpus = Corpus(self.path) if (self.path / "manifest.json").is_file() else None
        self.files: list[DocumentFile] = [] if self.corpus else find_document_files([str(self.path)])

    @property
    def estimate(self) -> int:
        """Documents, from above, without reading them."""
        if self.corpus is not None:
            return sum(entry.documents for entry in self.corpus.manifest.files)
        return sum(file.path.stat().st_size for file in self.files) // 100 + 1

    def entries(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """One for each document.

        Raises:
            ShardError: something cannot be read.
        """
        found = self._tokens() if self.corpus is not None else self._documents()
        for entry in found:
            self.documents += 1
            yield entry

    def describe(self, file: int, line: int) -> str:
        """The id and place of a document."""
        if self.corpus is not None:
            row = self.corpus.files[file].index.row(line)
            return f"{row.id!r} ({self.corpus.files[file].entry.path}, tokens [{row.start}, {row.end}))"
        path = self.files[file].path
        return f"{document_at(path, line).id!r} ({path} line {line})"

    def _reject(self, reject: Reject) -> None:
        self.rejected += 1

    def _source(self, name: str) -> int:
        number = self.sources.setdefault(name, len(self.sources))
        if number >= 2**16:
            raise ShardError(f"{self.path}: more than {2**16:,} sources cannot be compared")
        return number

    def _documents(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        for number, file in enumerate(self.files):
            readers = [read_attributes(file.attributes(name)) for name in self.names]
            for line in read_lines(file.path, self._reject):
                attributes = 0
                for name, reader in zip(self.names, readers, strict=True):
                    attributes ^= _attribute_hash(name, reader, line, file)
                yield _key(line.source, line.id), _text_hash(line), attributes, self._source(line.source), number, line.line

    def _tokens(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        assert self.corpus is not None
        for number, file in enumerate(self.corpus.files):
            source = self._source(file.entry.source)
            for first in range(0, file.entry.documents, ROWS_PER_BLOCK):
                block = file.index.read_block(first // ROWS_PER_BLOCK)
                for ordinal in range(first, min(first + ROWS_PER_BLOCK, file.entry.documents)):
                    row = file.index.checked_row(block, ordinal)
                    digest = xxhash.xxh3_64()
                    for start in range(row.start, row.end, 2**20):
                        digest.update(file.read(start, min(start + 2**20, row.end)).astype("<u4").tobytes())
                    yield _key(file.entry.source, row.id), digest.intdigest(), 0, source, number, ordinal
            file.close()


def _key(source: str, document_id: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{source}\0{document_id}".encode("utf-8", "surrogatepass"))


def _text_hash(line: Line) -> int:
    digest = xxhash.xxh3_64()
    for piece in line.pieces():
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.intdigest()


def _attribute_hash(name: str, reader: Iterator[tuple[str, dict[str, Any]]], line: Line, file: DocumentFile) -> int:
    line_id, attributes = next(reader, ("", {}))
    if line_id != line.id:
        raise ShardError(
            f"{file.attributes(name)}: line {line.line} is of {line_id!r}, the document there is {line.id!r}: documents and "
            "attributes do not belong together; write the attributes again"
        )
    return xxhash.xxh3_64_intdigest(msgspec.json.encode([name, sorted(attributes.items())]))


@dataclass
class Difference:
    """What was found: by kind and source, with examples."""

    counts: dict[str, dict[str, int]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    same: int = 0
    examples: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def total(self) -> int:
        """Documents that differ."""
        return sum(n for kind in self.counts.values() for n in kind.values())


def main(argv: list[str]) -> None:
    """Print the difference; exit status 0, whether there is one or not."""
    parser = argparse.ArgumentParser("olmo data diff", description=__doc__)
    parser.add_argument("a", help="a dataset or shards")
    parser.add_argument("b", help="another of the same kind")
    parser.add_argument("--n", type=int, default=5, help="examples of each kind")
    parser.add_argument("--scratch", help="folder for temporary files (default: that of the system)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    a, b = Side(Path(args.a)), Side(Path(args.b))
    if (a.corpus is None) != (b.corpus is None):
        raise ConfigError(f"{args.a} and {args.b}: one is a dataset, the other shards; give two of a kind")
    found = diff(a, b, args.n, args.scratch)
    values = {
        "a": {"path": args.a, "documents": a.documents, "rejected": a.rejected},
        "b": {"path": args.b, "documents": b.documents, "rejected": b.rejected},
        "same": found.same, "different": found.counts, "examples": found.examples,
    }  # fmt: skip
    print_any(values, args.json, lambda _: _print(a, b, found))


def diff(a: Side, b: Side, n_examples: int, scratch: str | None = None) -> Difference:
    """Compare two sides; attributes that both have are compared too.

    Raises:
        ShardError: something cannot be read.
    """
    if a.corpus is None:
        a.names = b.names = sorted(set(attribute_names(a.path)) & set(attribute_names(b.path)))
    most = max(a.estimate, b.estimate)
    bits = min(max(most * ENTRY.itemsize // RANGE_BYTES, 0).bit_length(), 10)
    folder = Path(tempfile.mkdtemp(prefix="olmo-diff-", dir=scratch))
    found = Difference()
    try:
        for side, name in ((a, "a"), (b, "b")):
            _spill(side, folder, name, bits)
        for number in range(2**bits):
            one, other = (_load(folder / f"{name}-{number}") for name in "ab")
            _compare(a, b, one, other, found, n_examples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _spill(side: Side, folder: Path, name: str, bits: int) -> None:
    """Entries of a side into one file per range of keys."""
    held: list[tuple[int, ...]] = []

    def flush() -> None:
        entries = np.array(held, ENTRY)
        ranges = entries["key"] >> np.uint64(64 - bits) if bits else np.zeros(len(entries), np.uint64)
        for number in np.unique(ranges):
            with open(folder / f"{name}-{int(number)}", "ab") as file:
                file.write(entries[ranges == number].tobytes())
        held.clear()

    for entry in side.entries():
        held.append(entry)
        if len(held) >= 100_000:
            flush()
    flush()


def _load(path: Path) -> np.ndarray:
    entries = np.fromfile(path, ENTRY) if path.exists() else np.zeros(0, ENTRY)
    return entries[np.lexsort((entries["line"], entries["file"], entries["key"]))]


@dataclass(frozen=True)
class _Grouped:
    keys: np.ndarray
    first: np.ndarray
    """Index of each key's first entry."""
    copies: np.ndarray
    text: np.ndarray
    """Sum of the hashes of all copies, whatever their order."""
    attributes: np.ndarray


def _group(entries: np.ndarray) -> _Grouped:
    keys, first, copies = np.unique(entries["key"], return_index=True, return_counts=True)
    if not len(keys):
        return _Grouped(keys, first, copies, keys, keys)
    return _Grouped(
        keys,
        first,
        copies,
        np.add.reduceat(_mixed(entries["text"]), first),
        np.add.reduceat(_mixed(entries["attributes"]), first),
    )


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """So that sums of different sets are different."""
    mixed: np.ndarray = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed


def _compare(a: Side, b: Side, one: np.ndarray, other: np.ndarray, found: Difference, n: int) -> None:
    x, y = _group(one), _group(other)
    _note(found, "only_a", a, one[x.first[~np.isin(x.keys, y.keys)]], n)
    _note(found, "only_b", b, other[y.first[~np.isin(y.keys, x.keys)]], n)
    _, i, j = np.intersect1d(x.keys, y.keys, assume_unique=True, return_indices=True)
    copies = x.copies[i] != y.copies[j]
    text = ~copies & (x.text[i] != y.text[j])
    attributes = ~copies & ~text & (x.attributes[i] != y.attributes[j])
    for kind, mask in (("copies", copies), ("text", text), ("attributes", attributes)):
        _note(found, kind, a, one[x.first[i][mask]], n)
    found.same += int((~copies & ~text & ~attributes).sum())


def _note(found: Difference, kind: str, side: Side, entries: np.ndarray, n: int) -> None:
    names = list(side.sources)
    for source, number in zip(*np.unique(entries["source"], return_counts=True), strict=True):
        row = found.counts[kind]
        row[names[source]] = row.get(names[source], 0) + int(number)
    for entry in entries[: max(0, n - len(found.examples[kind]))]:
        found.examples[kind].append(side.describe(int(entry["file"]), int(entry["line"])))


_SAID = {
    "only_a": "only in A",
    "only_b": "only in B",
    "text": "in both with another text",
    "attributes": "in both with other attributes",
    "copies": "in both, not equally often",
}


def _print(a: Side, b: Side, found: Difference) -> None:
    for letter, side in (("A", a), ("B", b)):
        left_out = f"; {side.rejected:,} lines or ends of files are none, and left out" if side.rejected else ""
        print(f"{letter} {side.path}: {side.documents:,} documents{left_out}")
    names = "" if a.corpus is not None else f" (attributes compared: {', '.join(a.names) or 'none'})"
    print(f"{found.same:,} are the same{names}")
    if a.corpus and b.corpus and a.corpus.manifest.tokenizer_sha256 != b.corpus.manifest.tokenizer_sha256:
        print("the tokenizers differ, and so do the ids of equal texts")
    for kind in KINDS:
        row = found.counts[kind]
        if row:
            told = ", ".join(f"{source} {n:,}" for source, n in sorted(row.items()))
            print(f"{_SAID[kind]}: {sum(row.values()):,} ({told})")
            print("\n".join(f"    {example}" for example in found.examples[kind]))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
