"""Files of lines: plain, .gz or .zst by name, read in blocks of bounded size, written whole or not at all."""

import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, cast

import xxhash
import zstandard
from isal import igzip, igzip_lib, isal_zlib

BLOCK = 2**20
"""Bytes that are read, unpacked or written at once."""
ZSTD_LEVEL = 3
GZIP_LEVEL = 2
"""Of ISA-L, 0 to 3: a third larger than zlib's 6, ten times as fast."""

_IsalError = cast(type[Exception], igzip_lib.IsalError)
"""Its stub calls it an instance."""
Tick = Callable[[int], None]
"""Told the bytes of a file that were read since the last call."""


class Compression(StrEnum):
    """Of the documents that are written."""

    ZST = "zst"
    GZ = "gz"
    NONE = "none"

    @property
    def ending(self) -> str:
        """Of a file's name."""
        return ".jsonl" if self is Compression.NONE else f".jsonl.{self.value}"


class CutShortError(Exception):
    """A file that ends before it should, or whose compressed data are damaged."""


class InputFile:
    """The bytes of a file as they lie on disk: counts them, and takes their hash on the way."""

    def __init__(self, path: Path, tick: Tick | None = None, start: int = 0) -> None:
        """From byte `start` on."""
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - closed by close
        self._file.seek(start)
        self._tick, self._digest, self.size = tick, xxhash.xxh3_128(), 0

    def read(self, size: int = -1) -> bytes:
        """As a file."""
        data = self._file.read(size)
        self._digest.update(data)
        self.size += len(data)
        if self._tick is not None:
            self._tick(len(data))
        return data

    def hexdigest(self) -> str:
        """xxh3-128 of all that was read."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Release the descriptor."""
        self._file.close()


def blocks(path: Path, file: InputFile) -> Iterator[bytes]:
    """The unpacked contents of a file, in blocks of about BLOCK bytes.

    Raises:
        CutShortError: compressed data end too early, or are damaged. OSError: the disk.
    """
    try:
        match path.suffix:
            case ".gz":
                yield from _gzip_blocks(path, file)
            case ".zst":
                yield from _zstd_blocks(file)
            case _:
                while data := file.read(BLOCK):
                    yield data
    except (EOFError, zlib.error, _IsalError, zstandard.ZstdError) as error:
        raise CutShortError(str(error)) from error


def _gzip_blocks(path: Path, file: InputFile) -> Iterator[bytes]:
    if path.stat().st_size == 0:
        raise EOFError("0 bytes are no gzip file")  # Python reads them as an empty one
    unpacker, begun = isal_zlib.decompressobj(wbits=31), False
    while data := file.read(BLOCK // 8):
        while data:
            begun = True
            if unpacked := unpacker.decompress(data, BLOCK):
                yield unpacked
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if unpacker.eof:
                unpacker, begun, data = isal_zlib.decompressobj(wbits=31), False, data.lstrip(b"\0")  # gzip pads members
    if begun:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")


_END = b"\0end of the file\0"


class _Ended:
    """A file with one more zstd frame after its end, which comes out whole only if the frames before it did."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._rest = zstandard.ZstdCompressor(write_checksum=True).compress(_END)

    def read(self, size: int) -> bytes:
        if data := self._file.read(size):
            return data
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _zstd_blocks(file: InputFile) -> Iterator[bytes]:
    """Bounded however well the data are compressed, as `decompressobj` is not; and a frame that was cut short is told, which
    `stream_reader` alone takes for the end."""
    unpacked, held = zstandard.ZstdDecompressor().stream_reader(cast(BinaryIO, _Ended(file)), read_across_frames=True), b""
    while data := unpacked.read(BLOCK):
        held += data
        if len(held) > len(_END):
            yield held[: -len(_END)]
            held = held[-len(_END) :]
    if not file.size:
        raise EOFError("0 bytes are no zstd file")
    if held != _END:
        raise EOFError("Compressed file ended before the end of its zstd frame was reached")


def lines(path: Path, file: InputFile) -> Iterator[bytes | bytearray]:
    """Lines of a file without their newline; a long one is held once, not twice.

    Raises:
        CutShortError: as `blocks`; the lines before were given.
    """
    tail = bytearray()
    for block in blocks(path, file):
        first, *rest = block.split(b"\n")
        if not rest:
            tail += first
            continue
        if tail:
            tail += first
            whole, tail = [tail], bytearray()
            yield whole.pop()  # nobody holds it here, so that whoever is done with it can let go of it
        else:
            yield first
        last = rest.pop()
        yield from rest
        tail += last
    if tail:
        whole, tail = [tail], bytearray()
        yield whole.pop()


def lines_of(path: Path) -> Iterator[bytes | bytearray]:
    """Lines of a file of which nothing else is asked; as `lines`."""
    file = InputFile(path)
    try:
        yield from lines(path, file)
    finally:
        file.close()


class _Sink(Protocol):
    def write(self, data: Any, /) -> int: ...

    def close(self) -> None: ...


class LineWriter:
    """Writes a file of lines under a temporary name, which becomes `path` when `close` returns. Equal lines give equal bytes.

    As a context manager, it leaves nothing behind on an exception.
    """

    def __init__(self, path: Path) -> None:
        """A `path` that is a temporary name already is written itself."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._temporary = path, path if _TEMPORARY.fullmatch(path.name) else temporary_name(path)
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by close
        self._sink: _Sink = self._file
        if path.suffix == ".gz":
            self._sink = igzip.IGzipFile("", "wb", GZIP_LEVEL, self._file, 0)
        elif path.suffix == ".zst":
            self._sink = zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(self._file, closefd=False)
        self._pending = bytearray()
        self.lines = self.size = 0
        """Written so far; `size` in bytes before compression."""

    def write(self, line: bytes | bytearray) -> None:
        """One line, without its newline."""
        self.write_pieces((line,))

    def write_pieces(self, pieces: Iterable[bytes | bytearray]) -> None:
        """One line, bit by bit: a long one is never held whole, nor copied."""
        for piece in pieces:
            self.size += len(piece)
            if len(piece) < BLOCK:
                self._pending += piece
            else:
                self._flush()
                view = memoryview(piece)
                for start in range(0, len(view), BLOCK):
                    self._sink.write(view[start : start + BLOCK])
            if len(self._pending) >= BLOCK:
                self._flush()
        self._pending += b"\n"
        self.lines += 1
        self.size += 1

    def _flush(self) -> None:
        if self._pending:
            self._sink.write(self._pending)
            self._pending = bytearray()

    def close(self) -> None:
        """Bring everything to disk, then give the file its name."""
        self._flush()
        if self._sink is not self._file:
            self._sink.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):  # on a full disk: what it still holds cannot be written
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


MOST_NAME = 255
"""Bytes of a file's name on nearly every file system."""
_TEMPORARY = re.compile(r"\..*\.tmp-[0-9a-f]{12}(\..*)?", re.DOTALL)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process takes, with the same endings; `remove_temporaries` finds it."""
    ending = f".tmp-{uuid.uuid4().hex[:12]}" + "".join(suffix for suffix in path.suffixes[-2:] if len(os.fsencode(suffix)) <= 9)
    return path.with_name(f".{shortened(path.name, MOST_NAME - 1 - len(os.fsencode(ending)))}{ending}")


def shortened(name: str, n_bytes: int) -> str:
    """At most so many bytes of a name; no character is cut."""
    return name if len(os.fsencode(name)) <= n_bytes else os.fsencode(name)[:n_bytes].decode("utf-8", "ignore")


def remove_temporaries(folder: Path) -> None:
    """Remove what writers into a folder that were killed left behind."""
    for left in folder.glob(".*.tmp-*"):
        left.unlink(missing_ok=True)


def hash_of(path: Path) -> str:
    """xxh3-128 of a file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while data := file.read(8 * BLOCK):
            digest.update(data)
    return digest.hexdigest()
