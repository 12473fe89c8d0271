"""What documents say of themselves (added, created, metadata, URL), beside an index: Dolma documents in, seekable blocks out.

metadata.json         written last: fingerprint of the shards, documents in all
metadata-00000.zz     of token file 0: blocks of BLOCK documents in order, each zlib of JSON lines; text, id, source left out
metadata-00000.idx    int64 (blocks + 1,): offset of each block
metadata-00000.json   record of a token file that is done: documents, sums
"""

import array
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from data_tools.datasets import find_document_files
from data_tools.files import CutShortError, lines_of
from data_tools.trace.index_folder import map_array, write_file
from olmo_train.data.document_index import id_hash, read_rows
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError

NAME = "metadata.json"
BLOCK = 256
"""Documents that are read for one: about 30 KB of JSON."""
LEFT_OUT = ("id", "text", "source")
URL_KEYS = ("url", "URL", "uri", "warc_target_uri", "WARC-Target-URI", "source_url", "original_url")


@dataclass(frozen=True)
class MetadataRecord:
    """Of a token file that is done."""

    file: int
    documents: int
    sha256: dict[str, str]
    """Of .zz and .idx."""


class Metadata:
    """Reader. Opening costs nothing; a look-up reads one block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._block = lru_cache(maxsize=32)(self._read_block)

    @classmethod
    def of(cls, folder: Path) -> "Metadata | None":
        """Those beside the index in `folder`; None: it was built without documents."""
        return cls(folder) if (folder / NAME).exists() else None

    def get(self, file: int, ordinal: int) -> dict[str, Any]:
        """Fields of a document other than id, text and source, as its Dolma document has them.

        Raises:
            ShardError: the file is damaged.
        """
        documents = self._block(file, ordinal // BLOCK)
        try:
            values: dict[str, Any] = json.loads(documents[ordinal % BLOCK])
        except (ValueError, IndexError) as error:
            raise ShardError(
                f"{metadata_path(self.folder, file, 'zz')}: document {ordinal} cannot be read: {error}; remove metadata* there "
                "and build again with documents="
            ) from error
        return values

    def _read_block(self, file: int, block: int) -> list[bytes]:
        path, index = metadata_path(self.folder, file, "zz"), metadata_path(self.folder, file, "idx")
        try:
            offsets = map_array(index, "<i8", (index.stat().st_size // 8,))
            with open(path, "rb") as data:
                first, last = int(offsets[block]), int(offsets[block + 1])
                if not 0 <= first < last <= os.fstat(data.fileno()).st_size:  # else gigabytes might be allocated for nothing
                    raise ValueError(f"{index} says that it is bytes [{first}, {last})")
                data.seek(first)
                return zlib.decompress(data.read(last - first)).split(b"\n")
        except (OSError, IndexError, OverflowError, ValueError, zlib.error) as error:
            raise ShardError(
                f"{path}: block {block} cannot be read: {error}; remove metadata* there and build again with documents="
            ) from error


def metadata_path(folder: Path, file: int, what: str) -> Path:
    """A file of the metadata of a token file: `what` is zz, idx or json."""
    return folder / f"metadata-{file:05d}.{what}"


def url_of(metadata: dict[str, Any], document_id: str) -> str | None:
    """The web address of a document, from its fields, its metadata or its id; only http and https: a link must be harmless."""
    inner = metadata.get("metadata")
    for values in (metadata, inner if isinstance(inner, dict) else {}):
        for key in URL_KEYS:
            if _is_url(values.get(key)):
                return str(values[key])
    return document_id if _is_url(document_id) else None


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://")) and not any(c.isspace() for c in value)


def build_metadata(corpus: Corpus, folder: Path, patterns: list[str], share: tuple[int, int] = (0, 1)) -> bool:
    """Write what is not there yet of this task's share (task, tasks); return whether everything is there now.

    Memory: about 60 bytes per document of one token file.

    Raises:
        ShardError: a document of the shards is not among `patterns`, or another one stands in its place.
    """
    if (folder / NAME).exists():
        return True
    paths = [file.path for file in find_document_files(patterns)]
    task, n_tasks = share
    todo = [n for n in range(len(corpus.files)) if n % n_tasks == task and _read_record(folder, n) is None]
    every = 0.5 if sys.stderr.isatty() else 30.0
    for number in tqdm(todo, desc="metadata", unit="file", mininterval=every, disable=not todo):
        _build_file(corpus.files[number], number, folder, paths)
    records = [_read_record(folder, n) for n in range(len(corpus.files))]
    if any(record is None for record in records):
        return False
    values = {"fingerprint": corpus.manifest.fingerprint(), "documents": sum(r.documents for r in records if r is not None)}
    write_file(folder / NAME, [(json.dumps(values) + "\n").encode()])
    return True


def metadata_problems(folder: Path, n_files: int, fingerprint: str) -> list[str]:
    """What is wrong with the metadata in a folder, every byte compared; none if there is none."""
    if not (folder / NAME).exists():
        return []
    remedy = "remove metadata* there and build again with documents="
    try:
        if json.loads((folder / NAME).read_text())["fingerprint"] != fingerprint:
            return [f"{folder / NAME}: of other shards; {remedy}"]
        records = [_read_record(folder, n) for n in range(n_files)]
    except (OSError, ValueError, KeyError, TypeError, ShardError) as error:
        return [f"{folder / NAME}: cannot be used: {error}; {remedy}"]
    problems = [f"{metadata_path(folder, n, 'json')} is missing; {remedy}" for n, record in enumerate(records) if record is None]
    for record in records:
        for what, wanted in record.sha256.items() if record else ():
            path = metadata_path(folder, record.file, what) if record else folder
            found = _sha256_of(path)
            if found != wanted:
                problems.append(f"{path}: SHA-256 {found[:16]}..., its record says {wanted[:16]}...; {remedy}")
    return problems


def _sha256_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)


def _read_record(folder: Path, number: int) -> MetadataRecord | None:
    path = metadata_path(folder, number, "json")
    with suppress(FileNotFoundError):
        try:
            return MetadataRecord(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ShardError(f"{path} cannot be used: {error}; remove it and build again") from error
    return None


@dataclass(frozen=True)
class _Rows:
    """Of the documents of a token file, by ordinal: number of the src, line, hash of the id. srcs: names by number."""

    srcs: list[str]
    src: np.ndarray
    loc: np.ndarray
    key: np.ndarray


def _build_file(file: ShardFile, number: int, folder: Path, paths: list[Path]) -> None:
    try:
        _write_file(file, number, folder, paths)
    except FileNotFoundError:  # another builder of the same file was faster, found everything finished and cleaned up
        if _read_record(folder, number) is None:
            raise
    except OSError as error:
        raise ShardError(
            f"{folder}: metadata cannot be written: {error.strerror}; make room, the same command goes on"
        ) from error


def _write_file(file: ShardFile, number: int, folder: Path, paths: list[Path]) -> None:
    rows = _read_rows(file)
    n = len(rows.loc)
    offsets = np.zeros((n, 2), np.int64)
    with tempfile.TemporaryFile(dir=folder) as spill:  # has no name: nothing is left of it however we end
        for ordinal, line in _kept_lines(file, rows, paths):
            offsets[ordinal] = spill.tell(), len(line)
            spill.write(line)
        blocks = [0]
        sums = {"zz": write_file(metadata_path(folder, number, "zz"), _blocks(spill, offsets, blocks)).sha256}
    sums["idx"] = write_file(metadata_path(folder, number, "idx"), [np.array(blocks, "<i8")]).sha256
    record = MetadataRecord(number, n, sums)
    write_file(metadata_path(folder, number, "json"), [(json.dumps(asdict(record)) + "\n").encode()])


def _read_rows(file: ShardFile) -> _Rows:
    numbers: dict[str, int] = {}
    src, loc, key = array.array("l"), array.array("q"), array.array("Q")
    for row in read_rows(file.index.rows_path):
        src.append(numbers.setdefault(row.src, len(numbers)))
        loc.append(row.loc)
        key.append(id_hash(row.id))
    return _Rows(list(numbers), np.frombuffer(src, np.int64), np.frombuffer(loc, np.int64), np.frombuffer(key, np.uint64))


def _kept_lines(file: ShardFile, rows: _Rows, paths: list[Path]) -> Iterator[tuple[int, bytes]]:
    """(ordinal, JSON line of what is kept), in the order of the documents' files; each is read once, to its last line needed."""
    order = np.lexsort((rows.loc, rows.src))
    begins = np.searchsorted(rows.src[order], np.arange(len(rows.srcs) + 1))
    for number, src in enumerate(rows.srcs):
        wanted = order[begins[number] : begins[number + 1]]
        (path, sure), at = _resolve(src, paths, file), 0
        for line_number, line in _lines(path):
            while at < len(wanted) and rows.loc[wanted[at]] == line_number:
                ordinal = int(wanted[at])
                place = f"{path}: line {line_number}"
                yield ordinal, _kept(line, place, file, (ordinal, int(rows.key[ordinal])), sure)
                at += 1
            if at == len(wanted):
                break
        if at < len(wanted):
            row = file.index.row(int(wanted[at]))
            raise ShardError(f"{path}: has no line {row.loc}, where {file.index.rows_path} has document {row.id!r}; {_REMEDY}")


_REMEDY = "give the documents the shards were made from as documents=, or leave it out"


def _kept(line: str, place: str, file: ShardFile, wanted: tuple[int, int], sure: bool) -> bytes:
    """JSON of a document without LEFT_OUT. wanted: ordinal, hash of the id; sure: the file is known by more than its name."""
    try:
        values = json.loads(line)
        found, source = values["id"], values.get("source")
        same = id_hash(found) == wanted[1]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{place} is not a Dolma document ({error}); {_REMEDY}") from error
    if not same:
        raise ShardError(
            f"{place} is document {found!r}, {file.index.rows_path} has {file.index.row(wanted[0]).id!r} there: the documents "
            f"were changed, or are others; {_REMEDY}"
        )
    if not sure and source != file.entry.source:
        raise ShardError(
            f"{place} is of source {source!r}, {file.path} of {file.entry.source!r}: another file of the same name; {_REMEDY}"
        )
    return json.dumps({name: value for name, value in values.items() if name not in LEFT_OUT}).encode()


def _resolve(src: str, paths: list[Path], file: ShardFile) -> tuple[Path, bool]:
    """The file that a sidecar calls `src`: by its path, or by the longest end of it that names one file; and whether that is more
    than the bare name."""
    exact = [path for path in paths if str(path) == src or path.absolute() == Path(src).absolute()]
    if exact:
        return exact[0], True
    parts, best, found = Path(src).parts, 0, list[Path]()
    for path in paths:
        same = 0
        for a, b in zip(reversed(parts), reversed(path.parts), strict=False):
            if a != b:
                break
            same += 1
        if same > best:
            best, found = same, []
        if same and same == best:
            found.append(path)
    if len(found) == 1:
        return found[0], best > 1
    why = f"could be {' or '.join(map(str, found[:3]))}" if found else "is not among them"
    raise ShardError(f"documents: {src!r}, where {file.index.rows_path} says its documents are from, {why}; {_REMEDY}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line), numbered as `read_documents` numbers them."""
    done = 0
    try:
        for number, raw in enumerate(lines_of(path), 1):
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            done = number
            yield number, line
    except (CutShortError, OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: damaged after line {done}: {error}; get it again") from error


def _blocks(spill: BinaryIO, offsets: np.ndarray, blocks: list[int]) -> Iterator[bytes]:
    """Compressed blocks in the order of documents; `blocks` gets the offset after each."""
    spill.flush()
    for first in range(0, len(offsets), BLOCK):
        kept = []
        for offset, length in offsets[first : first + BLOCK].tolist():
            spill.seek(offset)
            kept.append(spill.read(length))
        data = zlib.compress(b"\n".join(kept))
        blocks.append(blocks[-1] + len(data))
        yield data
