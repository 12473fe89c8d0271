"""Records of a file that is divided by newlines or another separator, or of a byte range of it; and of what is packed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.documents import Reason
from data_tools.files import BLOCK, CutShortError, InputFile, blocks
from data_tools.ingest.encodings import MARKS, as_utf8
from data_tools.ingest.output import Output
from data_tools.ingest.plan import Piece
from data_tools.work.part import PartContext
from olmo_train.errors import ShardError

PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Record:
    """What stands between two separators."""

    offset: int
    """Byte of the unpacked file at which it begins: its number, however the file is cut and packed."""
    data: bytes | bytearray
    size: int
    """More than len(data): it was longer than the limit, and `data` is its front."""


def split(data: Iterable[bytes], separator: bytes, offset: int = 0, limit: int | None = None) -> Iterator[Record]:
    """Records of a stream that begins at byte `offset`; after each separator one begins, but none at the end of the stream.

    At most one record of `limit` bytes and a few blocks are held.
    """
    keep = len(separator) - 1
    current, size, held = bytearray(), 0, b""
    for block in data:
        first, *rest = (held + block).split(separator)
        parts = [first, *rest]
        for number, part in enumerate(parts):
            if number < len(parts) - 1:
                size += len(part)
                yield Record(offset, _ended(current, part, limit), size)
                offset += size + len(separator)
                current, size, held = bytearray(), 0, b""
            else:
                at = max(0, len(part) - keep)
                held = part[at:]
                size += at
                _extend(current, part[:at], limit)
    size += len(held)
    _extend(current, held, limit)
    if size:
        yield Record(offset, current, size)


def _extend(current: bytearray, part: bytes, limit: int | None) -> None:
    current += part if limit is None else part[: max(0, limit - len(current))]


def _ended(current: bytearray, part: bytes, limit: int | None) -> bytes | bytearray:
    if not current and (limit is None or len(part) <= limit):
        return part
    _extend(current, part, limit)
    return current


def can_be_cut(path: str, separator: bytes) -> bool:
    """Whether ranges of a file have the records of the whole: not packed, no UTF-16, a separator that never overlaps itself."""
    if path.endswith(PACKED) or any(separator[:k] == separator[-k:] for k in range(1, len(separator))):
        return False
    with open(path, "rb") as file:
        front = file.read(4)
    return not any(front.startswith(mark) for mark, _ in MARKS[1:])


def open_piece(context: PartContext, piece: Piece, start: int = 0) -> InputFile:
    """Raises:
    ShardError: it is gone."""
    try:
        return InputFile(Path(piece.path), context.tick, start)
    except OSError as error:
        raise ShardError(f"{piece.path}: cannot be opened: {error.strerror}; it was there when the stage was planned") from error


def note_piece(context: PartContext, piece: Piece, file: InputFile) -> None:
    """Note a file that was read to its end; of one that was cut no part knows the hash, and the plan has its size."""
    if piece.start == 0 and piece.stop is None:
        context.note_input(Path(piece.path), file)


def read_records(
    context: PartContext, output: Output, piece: Piece, separator: bytes, limit: int
) -> Iterator[tuple[int, Record]]:
    """(1-based number, record) of those that begin in the range of a piece. Of a file that was cut the numbers are 0.

    A file that ends too early, or is damaged, is one reject.

    Raises:
        ShardError: the disk.
    """
    skip = len(separator) if piece.start else 0
    file = open_piece(context, piece, piece.start - skip)
    number, is_cut = 0, bool(piece.start or piece.stop)
    try:
        stream = blocks(Path(piece.path), file)
        for record in split(stream if is_cut else as_utf8(stream), separator, piece.start - skip, limit):
            if piece.stop is not None and record.offset >= piece.stop:
                break
            if record.offset >= piece.start and not (skip and record.offset < piece.start):
                number += 1
                yield 0 if is_cut else number, record
        note_piece(context, piece, file)
    except (CutShortError, UnicodeError) as error:
        detail = f"damaged after record {number}: {error}; the file was cut short or changed; get it again"
        output.reject(piece.path, number + 1, Reason.CUT_SHORT, detail)
    except OSError as error:
        raise ShardError(f"{piece.path}: cannot be read after record {number}: {error}; get it again") from error
    finally:
        file.close()


def unpacked(context: PartContext, piece: Piece) -> Iterator[bytes]:
    """All bytes of a file, unpacked.

    Raises:
        CutShortError: it ends too early. ShardError: the disk.
    """
    file = open_piece(context, piece)
    try:
        yield from blocks(Path(piece.path), file)
        note_piece(context, piece, file)
    except OSError as error:
        raise ShardError(f"{piece.path}: cannot be read: {error}; get it again") from error
    finally:
        file.close()


def read_small(blocks_of: Iterable[bytes], most: int = 4 * BLOCK) -> bytes | None:
    """All bytes, if there are at most `most`."""
    found = bytearray()
    for block in blocks_of:
        found += block
        if len(found) > most:
            return None
    return bytes(found)
