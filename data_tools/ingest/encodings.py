"""Bytes to text by a stated rule, in bounded memory however long they are.

1. A byte order mark (UTF-8, UTF-16, UTF-32) decides, and is dropped.
2. What a file declares, where that is binding: PEP 263 in Python, the 7-bit encodings (ISO-2022, HZ), whose bytes are also ASCII.
3. UTF-8, if all bytes are.
4. What HTTP or HTML declares; latin-1 and ASCII mean windows-1252 there, as in every browser.
5. `encodings` of the config, in order.
6. `on_bad_bytes`: reject, or U+FFFD for each byte that is not UTF-8.

A NUL in what came out is no text either: rejected, or U+FFFD.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from data_tools.documents import REPLACEMENT
from data_tools.ingest.config import OnBadBytes

Blocks = Callable[[], Iterable[bytes]]
"""The bytes, from their beginning at every call."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PEP263 = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_META = re.compile(rb"<meta[^>]{0,400}?charset\s*=\s*[\"']?\s*([-\w.:]+)", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([-\w.]+)")
_AS_BROWSERS = {
    "iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932",
}  # fmt: skip
_SEVEN_BITS = re.compile(r"iso2022|hz$|utf-7$")


class NotTextError(Exception):
    """Bytes that are text by no part of the rule; says why."""


@dataclass(frozen=True)
class Rule:
    """What a source says of encodings."""

    encodings: list[str] = field(default_factory=list)
    on_bad_bytes: OnBadBytes = OnBadBytes.REJECT


@dataclass(frozen=True)
class Decoded:
    """How bytes are read. `pieces` may be asked for again and again."""

    blocks: Blocks
    encoding: str
    skip: int = 0
    """Bytes of a mark at the beginning."""
    is_replaced: bool = False
    """Bad bytes, or NUL, become U+FFFD."""

    def pieces(self) -> Iterator[str]:
        """The text, in consecutive pieces."""
        decoder = codecs.getincrementaldecoder(self.encoding)("replace" if self.is_replaced else "strict")
        for text in _decode(self.blocks(), decoder, self.skip):
            yield text.replace("\0", REPLACEMENT) if self.is_replaced else text

    @property
    def repair(self) -> str | None:
        """The name of what was repaired."""
        if self.is_replaced:
            return "bad_bytes"
        return "bom" if self.encoding == "utf-8" and self.skip else None


def _decode(blocks: Iterable[bytes], decoder: codecs.IncrementalDecoder, skip: int) -> Iterator[str]:
    for block in blocks:
        yield decoder.decode(block[skip:])
        skip = max(0, skip - len(block))
    yield decoder.decode(b"", True)


def find_encoding(blocks: Blocks, rule: Rule, declared: str | None = None, binding: bool = False) -> Decoded:
    """How these bytes are text. `declared`: an encoding; `binding`: before UTF-8 is tried.

    Raises:
        NotTextError: by no part of the rule.
    """
    front = front_of(blocks)
    for mark, encoding in MARKS:
        if front.startswith(mark):
            candidates = [(encoding, len(mark))]
            break
    else:
        named = [declared] if declared else []
        before = named if binding or (declared and _SEVEN_BITS.search(codecs.lookup(declared).name)) else []
        candidates = [(name, 0) for name in dict.fromkeys([*before, "utf-8", *named, *map(_name, rule.encodings)])]
    why = ""
    for encoding, skip in candidates:
        decoded = Decoded(blocks, encoding, skip)
        problem = _problem(decoded)
        if problem is None:
            return decoded
        why = why or problem
    if rule.on_bad_bytes == OnBadBytes.REPLACE:
        return Decoded(blocks, candidates[0][0] if len(candidates) == 1 else "utf-8", candidates[0][1], is_replaced=True)
    tried = ", ".join(name for name, _ in candidates)
    raise NotTextError(why if why.startswith("holds") else f"is no text in {tried}: {why}; name its encoding in `encodings`")


def front_of(blocks: Blocks, size: int = 2048) -> bytes:
    """The first bytes."""
    front = b""
    for block in blocks():
        front += block[: size - len(front)]
        if len(front) >= size:
            break
    return front


def _problem(decoded: Decoded) -> str | None:
    done = 0
    try:
        for text in decoded.pieces():
            if "\0" in text:
                return f"holds NUL at character {done + text.index(chr(0)) + 1}: binary"
            done += len(text)
    except UnicodeError as error:
        at = f" near character {done + 1}" if done else ""
        return f"{error}{at}"
    return None


def known(name: str | None) -> str | None:
    """An encoding that is declared, as Python knows it; None: it does not, or it is none of text."""
    try:
        info = codecs.lookup(name.strip()) if name else None
    except (LookupError, ValueError):
        return None
    is_text = info is not None and info._is_text_encoding and info.name not in ("undefined", "idna", "punycode")
    return info.name if info is not None and is_text else None


def _name(encoding: str) -> str:
    return codecs.lookup(encoding).name


def as_browsers(name: str | None) -> str | None:
    """An encoding that a page declares, as browsers take it."""
    found = known(name)
    if found is None or found.startswith(("utf-16", "utf-32")):
        return None  # without a mark, a page that could be read this far is in neither
    return _AS_BROWSERS.get(found, found)


def declared_in_python(front: bytes) -> str | None:
    """PEP 263: in a comment of the first two lines, the second only if the first is a comment or blank."""
    for line in front.split(b"\n", 2)[:2]:
        if match := _PEP263.match(line):
            return known(match[1].decode("ascii", "replace"))
        if line.strip() and not line.lstrip().startswith(b"#"):
            return None
    return None


def declared_in_html(front: bytes) -> str | None:
    """By `<meta charset>`, `<meta http-equiv>` or the XML declaration."""
    match = _META.search(front) or _XML.search(front)
    return match[1].decode("ascii", "replace") if match else None


def as_utf8(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of a stream of records as UTF-8, if it begins with a mark of UTF-16 or UTF-32; else as they are.

    Raises:
        UnicodeError: it is not what the mark says, from somewhere on.
    """
    stream = iter(blocks)
    first = next(stream, b"")
    found = next(((mark, encoding) for mark, encoding in MARKS[1:] if first.startswith(mark)), None)
    if found is None:
        yield first
        yield from stream
        return
    decoder = codecs.getincrementaldecoder(found[1])()
    for text in _decode(_joined(first, stream), decoder, len(found[0])):
        yield text.encode("utf-8")


def _joined(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
