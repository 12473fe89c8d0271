"""Records of WARC files, framed here: FastWARC takes the end of a file that was cut for the end of the record, and swallows the
next record where a length is wrong, both without a word. Every length is checked against what follows it.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_tools.files import CutShortError

MOST_HEAD = 2**20
"""Bytes of a record's head."""
_BEGIN = re.compile(rb"WARC/[01]\.\d+\r?\n")


class BadRecordError(Exception):
    """A record that is not as the format demands; the next one is looked for."""


@dataclass
class WarcRecord:
    """One record. `body` is cut at the limit of the reader; `size` is what the head says."""

    number: int
    """1-based in its file."""
    headers: dict[str, str] = field(default_factory=dict)
    """Names in small letters."""
    body: bytes = b""
    size: int = 0
    problem: str | None = None
    """Why it is none; the rest is then empty."""


class _Stream:
    """Bytes of blocks, by number."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._held, self._at = iter(blocks), b"", 0
        self.damage: CutShortError | None = None
        """Met where the blocks end; what came before is given first."""

    def ahead(self, size: int) -> bytes:
        """The next `size` bytes, less only at the end; nothing is taken."""
        if len(self._held) - self._at < size:
            found = [self._held[self._at :]]
            length = len(found[0])
            while length < size and (block := self._next()):
                found.append(block)
                length += len(block)
            self._held, self._at = b"".join(found), 0
        return self._held[self._at : self._at + size]

    def _next(self) -> bytes:
        try:
            return next((block for block in self._blocks if block), b"")
        except CutShortError as error:
            self.damage = error
            return b""

    def take(self, size: int) -> bytes:
        """The same, taken."""
        data = self.ahead(size)
        self._at += len(data)
        return data

    def skip(self, size: int) -> int:
        """Take and forget; returns how many there were."""
        left = size
        while left and (data := self.take(min(left, 2**20))):
            left -= len(data)
        return size - left


def read_warc(blocks: Iterable[bytes], limit: int) -> Iterator[WarcRecord]:
    """Records of unpacked data; a body is held up to `limit` bytes.

    Raises:
        CutShortError: the file ends within a record.
    """
    stream, number = _Stream(blocks), 0
    while True:
        _skip_blank(stream)
        if not stream.ahead(1):
            if stream.damage is not None:
                raise stream.damage
            return
        number += 1
        if not _BEGIN.match(stream.ahead(16)):
            lost = _find_next(stream)
            yield WarcRecord(number, problem=f"{lost:,} bytes that begin no record, up to the next one; get the file again")
            continue
        yield _read_record(stream, number, limit)


def _read_record(stream: _Stream, number: int, limit: int) -> WarcRecord:
    head = _read_head(stream)
    if head is None:
        lost = _find_next(stream, past=1)
        return WarcRecord(number, problem=f"its head does not end ({lost:,} bytes up to the next record); get the file again")
    headers = parse_headers(head.split(b"\n")[1:])
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        lost = _find_next(stream)
        return WarcRecord(number, headers, problem=f"Content-Length={length!r} is no number; {lost:,} bytes are lost")
    size = int(length)
    body = stream.take(min(size, limit))
    found = len(body) + (stream.skip(size - len(body)) if size > limit else 0)
    if found < size:
        raise CutShortError(f"record {number} has {found:,} of {size:,} bytes")
    after = stream.ahead(4)
    if after not in (b"\r\n\r\n", b"") and not after.startswith((b"\n\n", b"\r\n")):
        lost = _find_next(stream)
        return WarcRecord(number, headers, problem=f"Content-Length={size} is wrong; {lost:,} bytes after it are lost")
    if not after:
        raise CutShortError(f"record {number} lacks the two empty lines after it")
    return WarcRecord(number, headers, body, size)


def _read_head(stream: _Stream) -> bytes | None:
    """Up to the empty line; None: there is none in MOST_HEAD bytes."""
    size = 4096
    while True:
        data = stream.ahead(size)
        ends = [(at, len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if (at := data.find(mark)) >= 0]
        if ends:
            at, length = min(ends)
            return stream.take(at + length)
        if len(data) < size:
            raise CutShortError("the file ends within the head of a record")
        if size >= MOST_HEAD:
            return None
        size *= 4


def parse_headers(lines: Iterable[bytes]) -> dict[str, str]:
    """name: value, continued by a line that begins with a space; the first of equal names counts."""
    found: dict[str, str] = {}
    name = ""
    for raw in lines:
        line = raw.rstrip(b"\r").decode("utf-8", "replace")
        if line[:1] in (" ", "\t") and name:
            found[name] += f" {line.strip()}"
        else:
            key, colon, value = line.partition(":")
            name = key.strip().lower() if colon and key.strip().lower() not in found else ""
            if name:
                found[name] = value.strip()
    return found


def _skip_blank(stream: _Stream) -> None:
    while stream.ahead(1) in (b"\r", b"\n"):
        stream.take(1)


def _find_next(stream: _Stream, past: int = 0) -> int:
    """Go to the next line that begins a record; returns how many bytes were passed."""
    passed = len(stream.take(past))
    while True:
        data = stream.ahead(2**20)
        if match := re.compile(rb"(?<=\n)" + _BEGIN.pattern).search(data):
            return passed + len(stream.take(match.start()))
        if len(data) < 2**20:
            return passed + len(stream.take(len(data)))
        passed += len(stream.take(len(data) - 32))


# ---- HTTP --------------------------------------------------------------------------------------------------------------------


@dataclass
class Response:
    """What a server sent."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True
    """False: the body, unpacked, is longer than the limit."""


def parse_response(data: bytes, limit: int) -> Response:
    """Status, headers and body without chunks and compression, up to `limit` bytes.

    Raises:
        BadRecordError: no response of HTTP, or packed in a way that cannot be undone.
    """
    at = min((at + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := data.find(mark)) >= 0), default=len(data))
    first, *rest = data[:at].split(b"\n")
    match = re.match(rb"HTTP/\d(?:\.\d)? (\d{3})", first)
    if match is None:
        raise BadRecordError(f"begins with {first[:40]!r}, which is no status of HTTP")
    headers, body = parse_headers(rest), data[at:]
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _without_chunks(body)
    packed = headers.get("content-encoding", "identity").lower()
    if packed in ("gzip", "x-gzip", "deflate") and body[:1]:
        body = _unpack(body, packed, limit + 1)
    elif packed in ("br", "zstd", "compress") and body.lstrip()[:1] != b"<":
        raise BadRecordError(f"Content-Encoding={packed} is not unpacked here")
    return Response(int(match[1]), headers, body[:limit], len(body) <= limit)


def _without_chunks(body: bytes) -> bytes:
    """As it is if it has none: crawlers that store bodies without them often keep the header."""
    found: list[bytes] = []
    at = 0
    while at < len(body):
        match = re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]{0,200}\r\n").match(body, at)
        if match is None:
            if found:
                raise BadRecordError("its chunks are damaged")
            return body
        size = int(match[1], 16)
        if size == 0:
            break
        found.append(body[match.end() : match.end() + size])
        at = match.end() + size + 2
    return b"".join(found)


def _unpack(body: bytes, packed: str, limit: int) -> bytes:
    """As it is if it is not packed, for the same reason."""
    if packed != "deflate" and not body.startswith(b"\x1f\x8b"):
        return body
    for wbits in (47, -15):
        try:
            return zlib.decompressobj(wbits).decompress(body, limit)
        except zlib.error:
            continue
    if packed == "deflate":
        return body
    raise BadRecordError(f"Content-Encoding={packed}, but it cannot be unpacked")
