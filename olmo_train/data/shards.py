"""THE shard format: writer and reader of token files, and the corpus they make up.

A token file is what Dolma, OLMo and OLMo-core publish: a headerless little-endian array of ids, documents one after the other,
each ending in the end-of-text token, none crossing a file. Beside it a `.csv.gz` of document spans. Dtype, vocabulary and
checksums stand in the manifest (manifest.py).
"""

import hashlib
import io
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from olmo_train.data.document_index import DocumentIndex, DocumentRow, IndexCounts, write_index
from olmo_train.data.manifest import (
    BLOCK_BYTES,
    FileEntry,
    Manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from olmo_train.errors import ShardError
from olmo_train.files import write_atomic


def dtype_for(vocab_size: int) -> str:
    """The smallest of uint16 and uint32 that holds every id, as Dolma's tokenizer chooses."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


class ShardFile:
    """One token file, read by offset. Reads go through `pread`, so a file that shrinks gives an error and not a SIGBUS."""

    def __init__(self, path: Path, entry: FileEntry, manifest: Manifest, index: DocumentIndex) -> None:
        self.path, self.entry, self.index = path, entry, index
        self._dtype, self._vocab_size = np.dtype(manifest.dtype).newbyteorder("<"), manifest.vocab_size
        self.eos_id = manifest.eos_id
        self._descriptor: int | None = None

    def read(self, start: int, end: int) -> np.ndarray:
        """Token ids of [start, end).

        Raises:
            ShardError: the file is gone or too short, or an id is not in the vocabulary; names file and offset.
        """
        size = self._dtype.itemsize
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            data = os.pread(self._descriptor, (end - start) * size, start * size)
        except OSError as error:
            raise ShardError(f"{self.path}: cannot read tokens [{start}, {end}): {error}") from error
        ids = np.frombuffer(data[: len(data) - len(data) % size], self._dtype)
        if len(ids) != end - start:
            raise ShardError(
                f"{self.path}: ends at token {start + len(ids)} (byte {start * size + len(data)}), asked for [{start}, {end}): "
                "the file was truncated; copy it again"
            )
        self._check_vocabulary(ids, start)
        return ids

    def _check_vocabulary(self, ids: np.ndarray, start: int) -> None:
        if len(ids) and int(ids.max()) >= self._vocab_size:
            at = int(np.argmax(ids >= self._vocab_size))
            raise ShardError(
                f"{self.path}: token {start + at} (byte {(start + at) * self._dtype.itemsize}) is id "
                f"{int(ids[at])}, beyond the vocabulary "
                f"of {self._vocab_size}: the dtype {self._dtype.name} is wrong, or another tokenizer wrote this file"
            )

    def check_size(self) -> None:
        """Raises:
        ShardError: the file is missing, or not as long as the manifest says; names the offset where they part."""
        try:
            found = self.path.stat().st_size
        except OSError as error:
            raise ShardError(f"{self.path}: {error.strerror}; the manifest lists it") from error
        size = self._dtype.itemsize
        if found != self.entry.tokens * size:
            part = min(found // size, self.entry.tokens)
            raise ShardError(
                f"{self.path}: {found} bytes, the manifest says {self.entry.tokens} tokens of {self._dtype.name} "
                f"= {self.entry.tokens * size} "
                f"bytes; they part at token {part} (byte {part * size}): the file was truncated or exchanged; copy it again"
            )

    def check_block(self, number: int) -> None:
        """Check one block of BLOCK_BYTES against its checksum. Raises ShardError."""
        if self.entry.block_crc32 is None:
            return
        with open(self.path, "rb") as file:
            file.seek(number * BLOCK_BYTES)
            found = f"{zlib.crc32(file.read(BLOCK_BYTES)):08x}"
        wanted = self.entry.block_crc32[8 * number : 8 * number + 8]
        if found != wanted:
            start = number * BLOCK_BYTES
            raise ShardError(
                f"{self.path}: changed somewhere in bytes [{start}, {start + BLOCK_BYTES}) = tokens from "
                f"{start // self._dtype.itemsize}: crc32 {found}, the manifest says {wanted}; copy the file again"
            )

    @property
    def itemsize(self) -> int:
        """Bytes per token."""
        return self._dtype.itemsize

    @property
    def n_blocks(self) -> int:
        """Blocks with a checksum."""
        return len(self.entry.block_crc32 or "") // 8

    def close(self) -> None:
        """Release the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Corpus:
    """The token files of one manifest, opened for reading."""

    def __init__(self, path: str | Path) -> None:
        self.folder = manifest_path(path).parent
        self.manifest = read_manifest(path)
        self.files = [self._open(entry) for entry in self.manifest.files]

    def _open(self, entry: FileEntry) -> ShardFile:
        index = DocumentIndex(self.folder / entry.index, self.folder / entry.rows)
        return ShardFile(self.folder / entry.path, entry, self.manifest, index)

    def verify(self, level: str, n_spots: int = 32) -> list[str]:
        """Problems of the token files: sizes, indexes there; "spot": also `n_spots` blocks spread evenly, "full": all of them."""
        problems: list[str] = []
        whole: list[ShardFile] = []
        for file in self.files:
            try:
                file.check_size()
                file.index.check_present()
                whole.append(file)
            except ShardError as error:
                problems.append(str(error))
        if level == "size":
            return problems
        blocks = [(file, number) for file in whole for number in range(file.n_blocks)]
        if level == "spot" and len(blocks) > n_spots:
            blocks = [blocks[i * (len(blocks) - 1) // (n_spots - 1)] for i in range(n_spots)]
        for file, number in blocks:
            try:
                file.check_block(number)
            except (ShardError, OSError) as error:
                problems.append(str(error))
        return problems

    def check_ids(self) -> list[str]:
        """Problems of ids beyond the vocabulary; reads every file."""
        problems = []
        for file in self.files:
            try:
                for start in range(0, file.entry.tokens, BLOCK_BYTES):
                    file.read(start, min(start + BLOCK_BYTES, file.entry.tokens))
            except ShardError as error:
                problems.append(str(error))
            file.close()
        return problems

    def token_bytes(self) -> np.ndarray | None:
        """uint16 (vocab_size,): UTF-8 bytes of each id, or None if the manifest has no such table."""
        if self.manifest.token_bytes is None:
            return None
        path = self.folder / self.manifest.token_bytes
        try:
            table: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ShardError(
                f"{path}: cannot be read: {error}; restore it, or set token_bytes to null with `olmo data manifest`"
            ) from error
        if table.shape != (self.manifest.vocab_size,):
            raise ShardError(f"{path}: {table.shape[0]} entries, the vocabulary has {self.manifest.vocab_size}")
        return table

    def tokenizer_path(self) -> Path | None:
        """The tokenizer file, if the manifest names one."""
        return None if self.manifest.tokenizer is None else self.folder / self.manifest.tokenizer

    def find_document(self, document_id: str) -> list[tuple[int, int]]:
        """(file number, ordinal) of every document with this id."""
        return [(number, ordinal) for number, file in enumerate(self.files) for ordinal in file.index.find(document_id)]


# ---- writing our own -------------------------------------------------------------------------------------------------


@dataclass
class WriterOptions:
    """How a corpus is written."""

    dtype: str
    vocab_size: int
    eos_id: int
    heldout_frac: float = 0.0
    max_tokens_per_file: int = 2**29


class ShardWriter:
    """Write documents as token files with sidecars; everything appears under `folder` when `close` returns, or nothing does.

    Use as a context manager; leaving it by an exception removes what was written.
    """

    def __init__(self, folder: Path, options: WriterOptions) -> None:
        if folder.exists():
            raise ShardError(f"{folder} exists already; shards are never overwritten: remove it or give another destination")
        self.folder, self.options = folder, options
        self._work = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        self._work.mkdir(parents=True)
        self._open: dict[str, _OpenFile] = {}
        self._counts: dict[str, int] = {}
        self._entries: list[FileEntry] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            shutil.rmtree(self._work, ignore_errors=True)

    def add(self, source: str, row: tuple[str, str, int], ids: np.ndarray, text_bytes: int) -> None:
        """Append one document: `row` is (id, src, loc); `ids` end with the end-of-text token already.

        Raises:
            ShardError: an id is not in the vocabulary.
        """
        if len(ids) and int(ids.max()) >= self.options.vocab_size:
            raise ShardError(f"document {row[0]!r}: id {int(ids.max())} is beyond the vocabulary of {self.options.vocab_size}")
        file = self._open.get(source)
        if file is None or (file.tokens and file.tokens + len(ids) > self.options.max_tokens_per_file):
            if file is not None:
                self._entries.append(file.finish(self.options.heldout_frac))
            number = self._counts.get(source, 0)
            self._counts[source] = number + 1
            file = self._open[source] = _OpenFile(self._work, source, number, self.options.dtype)
        file.add(row, ids, text_bytes)

    def close(self, tokenizer: Path | None = None, token_bytes: np.ndarray | None = None) -> Manifest:
        """Finish the files, copy the tokenizer beside them, write the manifest and give the folder its name."""
        self._entries += [file.finish(self.options.heldout_frac) for file in self._open.values()]
        self._open.clear()
        self._entries.sort(key=lambda entry: entry.path)
        o = self.options
        manifest = Manifest(o.dtype, o.vocab_size, o.eos_id, o.heldout_frac, files=self._entries)
        finish_corpus(self._work, manifest, tokenizer, token_bytes)
        os.rename(self._work, self.folder)
        return manifest


def finish_corpus(folder: Path, manifest: Manifest, tokenizer: Path | None, token_bytes: np.ndarray | None) -> None:
    """Put the tokenizer and the table of its ids' bytes beside the token files, then write the manifest."""
    if tokenizer is not None:
        data = tokenizer.read_bytes()
        write_atomic(folder / "tokenizer.json", data)
        manifest.tokenizer, manifest.tokenizer_sha256 = "tokenizer.json", hashlib.sha256(data).hexdigest()
    if token_bytes is not None:
        manifest.token_bytes = "index/token_bytes.idx"
        table = io.BytesIO()
        np.save(table, token_bytes.astype(np.uint16 if token_bytes.max(initial=0) < 2**16 else np.uint32))
        write_atomic(folder / manifest.token_bytes, table.getvalue())
    write_manifest(folder, manifest)


class _OpenFile:
    """One token file being written."""

    def __init__(self, folder: Path, source: str, number: int, dtype: str) -> None:
        self.folder, self.source, self.stem = folder, source, f"{source}/part-{number:05d}"
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.tokens = self.text_bytes = 0
        self.rows: list[DocumentRow] = []
        (folder / source).mkdir(parents=True, exist_ok=True)
        self.file = open(folder / f"{self.stem}.npy", "wb")  # noqa: SIM115 - closed in finish

    def add(self, row: tuple[str, str, int], ids: np.ndarray, text_bytes: int) -> None:
        self.file.write(np.ascontiguousarray(ids, self.dtype).data)
        self.rows.append(DocumentRow(self.tokens, self.tokens + len(ids), *row))
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def finish(self, heldout_frac: float) -> FileEntry:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        path, index, rows = f"{self.stem}.npy", f"index/{self.stem}", f"{self.stem}.csv.gz"
        counts = write_index(self.folder / index, self.folder / rows, self.rows, self.tokens, heldout_frac)
        sha256, blocks = hash_file(self.folder / path)
        return file_entry(path, self.source, self.tokens, counts, (index, rows), (self.text_bytes, sha256, blocks))


def file_entry(
    path: str,
    source: str,
    tokens: int,
    counts: IndexCounts,
    index: tuple[str, str],
    content: tuple[int | None, str | None, str | None],
) -> FileEntry:
    """An entry of the manifest. `index`: (index, rows); `content`: (text bytes, SHA-256, CRC-32 of blocks)."""
    return FileEntry(path, source, tokens, counts.documents, counts.heldout_documents, counts.heldout_tokens, *content, *index)


def hash_file(path: Path) -> tuple[str, str]:
    """SHA-256 of a file, and the CRC-32 of each of its blocks as hex digits."""
    whole, blocks = hashlib.sha256(), []
    with open(path, "rb") as file:
        while data := file.read(BLOCK_BYTES):
            whole.update(data)
            blocks.append(f"{zlib.crc32(data):08x}")
    return whole.hexdigest(), "".join(blocks)
