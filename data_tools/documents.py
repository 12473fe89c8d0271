"""Dolma documents: JSON lines with id, text, source, added, created, metadata; plain, .gz or .zst by name.

One reader for all stages. A line that is no document is told to the caller with place and reason, and never skipped silently.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from data_tools.files import CutShortError, InputFile, LineWriter, lines
from olmo_train.errors import ShardError

ENDINGS = ("*.jsonl", "*.jsonl.gz", "*.json.gz", "*.jsonl.zst", "*.json.zst")
"""Of documents in a folder."""
LONG = 2**22
"""Bytes of a line from which its text is not unpacked whole: `Line.pieces` gives it bit by bit."""
PIECE = 2**20
"""Bytes of JSON in one piece of a long text."""
REPLACEMENT = "\ufffd"
SOURCE = re.compile(r"\w[^/\0]*(/\w[^/\0]*)*")
"""Sources name folders: none may lead out of the output (`../x`, `/x`), and no two may be the same folder (`a/b`, `a//b`)."""


class Reason(StrEnum):
    """Why a line is no document."""

    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    NOT_OBJECT = "not_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    SURROGATE = "surrogate"
    """Half a surrogate pair in an id or a source, or in a text of more than LONG bytes."""
    CUT_SHORT = "cut_short"
    """The file ends here before it should, or is damaged from here on; what follows is lost."""
    DUPLICATE_ID = "duplicate_id"
    BAD_SOURCE = "bad_source"
    """A source that cannot name a folder."""
    NOT_TEXT = "not_text"
    """A file or record that is no text in a known encoding."""
    NO_CONTENT = "no_content"
    """A record in which no text was found."""
    BAD_RECORD = "bad_record"
    """A record of a container (WARC, Parquet) that is not as its format demands; those after it are read."""
    TOO_LONG = "too_long"
    FAILED = "failed"
    """An extractor or a model failed on it."""


@dataclass(frozen=True)
class Reject:
    """One line (or record) that is no document."""

    path: str
    line: int
    """1-based; 0: the file itself."""
    reason: Reason
    detail: str
    raw: bytes = b""
    """As it stands in the file."""


class Line:
    """One document as it stands in a file: what stages work on. `raw` is passed on unchanged by whoever changes nothing."""

    __slots__ = ("_json", "_text", "id", "line", "path", "raw", "source")

    def __init__(
        self, id: str, source: str, text: str | None, raw: bytes | bytearray, path: str, line: int, json: Any = None
    ) -> None:
        self.id, self.source, self._text, self.raw, self.path, self.line, self._json = id, source, text, raw, path, line, json

    @property
    def text(self) -> str:
        """All of it. Of a long one `pieces` needs far less memory."""
        return self._text if self._text is not None else str(msgspec.json.decode(self._json))

    @property
    def is_long(self) -> bool:
        """Whether the text is read bit by bit."""
        return self._text is None

    def pieces(self, size: int = PIECE) -> Iterator[str]:
        """The text in consecutive pieces: of one that is not long, the text. They may end anywhere between two characters.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: a long text that is no JSON string; the reader has looked through it before.
        """
        if self._text is not None:
            yield self._text
            return
        view = memoryview(self._json)[1:-1]
        start = 0
        while start < len(view):
            end = min(start + size, len(view))
            text = _piece(view, start, end)
            yield text[0]
            start = text[1]

    def release(self) -> None:
        """Let go of the text, so that the memory of a long one is free before the next line is read."""
        self.raw, self._json, self._text = b"", b'""', ""

    def values(self) -> dict[str, Any]:
        """Every field, as JSON has them; numbers beyond float64 as their text."""
        return values_of(self.raw)


def values_of(raw: bytes | bytearray) -> dict[str, Any]:
    """`Line.values` of a line as it stands. msgspec alone raises ValidationError at a number beyond float64."""
    try:
        found: dict[str, Any] = msgspec.json.decode(raw)
    except msgspec.ValidationError:
        found = json.loads(raw, parse_int=_number, parse_float=_number)
    return found


def _number(digits: str) -> int | float | str:
    value = float(digits)
    if math.isinf(value):
        return digits
    return value if any(c in digits for c in ".eE") else int(digits)


def _piece(view: memoryview, start: int, end: int) -> tuple[str, int]:
    """The characters of [start, end), or a few bytes less: no escape, surrogate pair or UTF-8 sequence is cut."""
    for less in range(12):
        try:
            stop = end - less
            return msgspec.json.decode(b'"%b"' % bytes(view[start:stop]), type=str), stop
        except (msgspec.DecodeError, UnicodeDecodeError):
            if less == 11 or end == len(view):
                raise
    raise AssertionError


class _Fields(msgspec.Struct, gc=False):
    id: str
    text: str
    source: str


class _LongFields(msgspec.Struct, gc=False):
    id: str
    text: msgspec.Raw
    source: str


_decode = msgspec.json.Decoder(_Fields).decode
_decode_long = msgspec.json.Decoder(_LongFields).decode

OnReject = Callable[[Reject], None]
OnRepair = Callable[[str], None]
"""Told the name of each repair: surrogate, bom."""


def read_lines(
    path: Path, on_reject: OnReject, on_repair: OnRepair | None = None, file: InputFile | None = None
) -> Iterator[Line]:
    """Documents of one file, in order, in bounded memory: at most one line and a few blocks are held.

    Repaired, and told to `on_repair`: half a surrogate pair in a text (legal in JSON, but no UTF-8) becomes U+FFFD; a byte order
    mark at the start of the file is left out. All else that is no document goes to `on_reject`, and reading goes on after it; a
    file that is cut short or damaged is one reject, of what follows the last line.

    Raises:
        ShardError: the file cannot be opened or read at all.
    """
    number, name = 0, str(path)
    try:
        source = file or InputFile(path)
        try:
            for raw in lines(path, source):
                number += 1
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                    _tell(on_repair, "bom")
                if raw and not raw.isspace():
                    line = _parse(raw, name, number, on_reject, on_repair)
                    raw = b""  # so that only the line holds it
                    if line is not None:
                        yield line
                raw, line = b"", None  # or a long one would be held until the next has been read: twice the memory
        finally:
            source.close()
    except CutShortError as error:
        detail = f"damaged after line {number}: {error}; the file was cut short or changed; get it again"
        on_reject(Reject(name, number + 1, Reason.CUT_SHORT, detail))
    except OSError as error:
        raise ShardError(f"{path}: cannot be read after line {number}: {error}; get it again") from error


def _tell(on_repair: OnRepair | None, name: str) -> None:
    if on_repair is not None:
        on_repair(name)


def _parse(raw: bytes | bytearray, path: str, number: int, on_reject: OnReject, on_repair: OnRepair | None) -> Line | None:
    try:
        check_utf8(raw)
        if len(raw) < LONG:
            fields = _decode(raw)
            return Line(fields.id, fields.source, fields.text, raw, path, number)
        return _parse_long(raw, path, number)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        found = explain(raw, error) if len(raw) < LONG else explain_long(error)
    if isinstance(found, dict):
        _tell(on_repair, "surrogate")
        again = msgspec.json.encode(found)
        return Line(found["id"], found["source"], found["text"], again, path, number)
    on_reject(Reject(path, number, *found, raw=bytes(raw)))
    return None


def check_utf8(raw: bytes | bytearray) -> None:
    """msgspec looks only at the strings that it unpacks, and lines are passed on as they stand.

    Raises:
        UnicodeDecodeError: not UTF-8.
    """
    if len(raw) <= PIECE:
        raw.decode("utf-8")
    elif not raw.isascii():
        decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(raw)
        for start in range(0, len(view), PIECE):
            decoder.decode(view[start : start + PIECE])
        decoder.decode(b"", True)


def _parse_long(raw: bytes | bytearray, path: str, number: int) -> Line:
    fields = _decode_long(raw)
    if memoryview(fields.text)[:1] != b'"':
        raise msgspec.ValidationError("text is not a string")
    line = Line(fields.id, fields.source, None, raw, path, number, fields.text)
    for _ in line.pieces():
        pass
    return line


def explain(raw: bytes | bytearray, error: Exception) -> tuple[Reason, str] | dict[str, Any]:
    """Why a line is no document, as reason and words; or its values, repaired, if half a surrogate pair in them was all."""
    values = parse_object(raw)
    if isinstance(values, tuple):
        return values
    for name in ("id", "text", "source"):
        if name not in values:
            return Reason.MISSING_FIELD, f"has no {name}; Dolma requires id, text and source"
        if not isinstance(values[name], str):
            return Reason.WRONG_TYPE, f"{name}={_short(values[name])} must be a string; Dolma requires id, text and source"
        if name != "text" and values[name] != without_surrogates(values[name]):
            return Reason.SURROGATE, f"{name}={values[name]!r} holds half a surrogate pair; ids and sources are UTF-8"
    try:
        repaired: dict[str, Any] = without_surrogates(values)
    except RecursionError as why:
        return Reason.NOT_JSON, f"is not JSON: {why}; mend or remove it"
    return repaired if repaired != values else (Reason.NOT_JSON, f"is not JSON: {error}; mend or remove it")


def parse_object(raw: bytes | bytearray) -> tuple[Reason, str] | dict[str, Any]:
    """The values of a line by Python's own JSON, or why there are none: slower than msgspec, but it takes halves of pairs."""
    try:
        values = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as why:
        return Reason.NOT_UTF8, f"is not UTF-8: byte {why.start + 1} is 0x{raw[why.start]:02x}; convert the file"
    except (ValueError, RecursionError) as why:
        told = f"{why.msg} at character {why.pos + 1}" if isinstance(why, json.JSONDecodeError) else str(why)
        return Reason.NOT_JSON, f"is not JSON: {told}; mend or remove it"
    if not isinstance(values, dict):
        return Reason.NOT_OBJECT, "is not a JSON object; a document has id, text and source"
    return values


def explain_long(error: Exception) -> tuple[Reason, str]:
    """The same of a long line, without unpacking it whole."""
    told = str(error)
    if isinstance(error, UnicodeDecodeError):
        return Reason.NOT_UTF8, "is not UTF-8 somewhere in its text; convert the file"
    if isinstance(error, msgspec.ValidationError):
        reason = Reason.MISSING_FIELD if "missing required" in told else Reason.WRONG_TYPE
        return reason, f"{told}; Dolma requires id, text and source, which are strings"
    return Reason.NOT_JSON, f"is not JSON, or holds half a surrogate pair: {told}; mend or remove it"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:77]}..."


def without_surrogates(value: Any) -> Any:
    """Nested values with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else "".join(REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(inner) for key, inner in value.items()}
    return [without_surrogates(inner) for inner in value] if isinstance(value, list) else value


# ---- whole documents, for whoever needs few ---------------------------------------------------------------------------------


@dataclass
class Document:
    """One document. `id` is unique within `source`."""

    id: str
    text: str
    source: str
    added: str | None = None
    created: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    """The file it was read from."""
    line: int = 0
    """1-based line in that file."""


def find_files(patterns: list[str]) -> list[Path]:
    """Files of documents that the patterns name, sorted; a folder stands for every file below it that ends as in ENDINGS.

    A folder of a dataset, with `documents/` in it, stands for its documents.

    Raises:
        ShardError: a pattern matches nothing.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inner = path / "documents"
            matches = [p for ending in ENDINGS for p in (inner if inner.is_dir() else path).rglob(ending)]
        else:
            matches = [path] if path.is_file() else list(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        matches = [p for p in matches if p.is_file() and not p.name.startswith(".")]
        if not matches:
            raise ShardError(
                f"documents: nothing matches {pattern}; give a .jsonl, .jsonl.gz, .json.gz or .jsonl.zst file, a folder of them, "
                "or a glob"
            )
        found.update(matches)
    return sorted(found)


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of one file, in order; strict.

    Raises:
        ShardError: the file is damaged or cut short, or a line is no document; names the line.
    """
    for line in read_lines(path, raise_reject):
        values = line.values()
        yield Document(
            line.id, line.text, line.source, values.get("added"), values.get("created"), values.get("metadata") or {},
            line.path, line.line,
        )  # fmt: skip


def raise_reject(reject: Reject) -> NoReturn:
    """Raises:
    ShardError: always, with place and reason."""
    where = "" if reject.reason == Reason.CUT_SHORT else f"line {reject.line} "
    raise ShardError(f"{reject.path}: {where}{reject.detail}")


def encode_document(values: Mapping[str, Any]) -> bytes:
    """One line of JSON, without fields that have no value."""
    return msgspec.json.encode({name: value for name, value in values.items() if value is not None and value != {}})


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents, compressed by the name of the file, whole or not at all; returns how many."""
    with LineWriter(path) as writer:
        for document in documents:
            fields = ("id", "text", "source", "added", "created", "metadata")
            writer.write(encode_document(without_surrogates({name: getattr(document, name) for name in fields})))
    return writer.lines
