"""What is not shown: documents on block lists, and personal data in texts.

A pattern finds candidates in one pass over the text; what a pattern cannot say (check digits, ranges) a function then checks.
Every pattern of ours takes a time proportional to the text, whatever the text: repeats are possessive or short.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.trace.config import PrivacyConfig
from olmo_train.errors import ConfigError


@dataclass(frozen=True)
class _Kind:
    """A kind of personal data. hint: what every text with such data has, found quickly; length: how much of what the pattern
    found is personal data, 0 for nothing."""

    pattern: re.Pattern[str]
    hint: re.Pattern[str]
    length: Callable[[str], int]


def _kind(pattern: str, hint: str = "", length: Callable[[str], int] = len) -> _Kind:
    return _Kind(re.compile(pattern), re.compile(hint), length)


class Privacy:
    """Block lists, read again when they change, and redaction. Thread-safe."""

    def __init__(self, config: PrivacyConfig, default_lists: Iterable[Path] = ()) -> None:
        """`default_lists`: block lists that count where they exist.

        Raises:
            ConfigError: a list cannot be read, a kind is unknown, a pattern is no regular expression; says all of it.
        """
        problems = find_privacy_problems(config)
        if problems:
            raise ConfigError(problems)
        patterns = {name: _kind(text) for name, text in config.patterns.items()}
        self._kinds = patterns | {name: kind for name, kind in KINDS.items() if name in config.redact}
        self._name_kinds = patterns | {name: kind for name, kind in self._kinds.items() if name in IN_NAMES}
        self._lists, self._default_lists = [Path(path) for path in config.blocked], list(default_lists)
        self._stamp: object = None
        self._blocked: frozenset[str] = frozenset()

    @property
    def blocked(self) -> frozenset[str]:
        """Ids of documents that do not exist for any answer, as the lists have them now.

        Raises:
            ConfigError: a list is gone, or is no text.
        """
        lists = [*self._lists, *(path for path in self._default_lists if path.is_file())]
        stamp = [(path, _stamp_of(path)) for path in lists]
        if stamp != self._stamp:
            self._blocked, self._stamp = frozenset(name for path in lists for name in read_block_list(path)), stamp
        return self._blocked

    def redact(self, text: str) -> str:
        """The text with personal data replaced by its kind in brackets."""
        return self.redact_parts([text])[0][0]

    def redact_parts(self, parts: Sequence[str], shown: slice = slice(None)) -> tuple[list[str], Counter[str]]:
        """The `shown` parts of a text, redacted: what lies across a seam is found, even with a part that is not shown. A
        replacement stands in the first shown part that it touches. Also how often each kind was replaced.
        """
        text, start = "".join(parts), 0
        found = self._find(text)
        counts: Counter[str] = Counter()
        out, told = [], set()
        is_shown = range(len(parts))[shown]
        for number, part in enumerate(parts):
            end = start + len(part)
            if number in is_shown:
                pieces, at = [], start
                for hit in found:
                    first, last, name = hit
                    if first < end and last > start:
                        pieces += [text[at : max(first, at)], "" if hit in told else f"[{name}]"]
                        counts[name] += hit not in told
                        told.add(hit)
                        at = min(last, end)
                out.append("".join(pieces) + text[at:end])
            start = end
        return out, counts

    def redact_names(self, names: Sequence[str]) -> tuple[list[str], Counter[str]]:
        """Ids, file names and addresses, redacted. Numbers in them are rarely of persons, and an id must stay an id: only
        addresses (email, ip) and the user's patterns are looked for."""
        counts: Counter[str] = Counter()
        out = []
        for name in names:
            for first, last, kind in reversed(self._find(name, self._name_kinds)):
                name = f"{name[:first]}[{kind}]{name[last:]}"
                counts[kind] += 1
            out.append(name)
        return out, counts

    def redact_value(self, value: Any) -> tuple[Any, Counter[str]]:
        """The same for plain nested values: every text in them, names of entries included."""
        if isinstance(value, str):
            parts, counts = self.redact_parts([value])
            return parts[0], counts
        counts = Counter()
        if isinstance(value, dict):
            out: dict[str, Any] = {}
            for key, entry in value.items():
                shown, more = self.redact_value(str(key))
                out[shown], inner = self.redact_value(entry)
                counts += more + inner
            return out, counts
        if isinstance(value, list):
            pairs = [self.redact_value(entry) for entry in value]
            return [entry for entry, _ in pairs], sum((c for _, c in pairs), counts)
        if isinstance(value, int | float) and not isinstance(value, bool):
            shown, counts = self.redact_value(str(value))  # a phone number may stand there as a number
            return (shown if counts else value), counts
        return value, counts

    def _find(self, text: str, kinds: dict[str, "_Kind"] | None = None) -> list[tuple[int, int, str]]:
        """(start, end, kind), apart from each other, by place; of two that overlap the user's pattern counts, then the order of
        KINDS."""
        found: list[tuple[int, int, str]] = []
        for name, kind in (self._kinds if kinds is None else kinds).items():
            if not kind.hint.search(text):
                continue
            taken = sorted(found)
            for match in kind.pattern.finditer(text):
                n = kind.length(match[0])
                if n and not _overlaps(taken, match.start(), match.start() + n):
                    found.append((match.start(), match.start() + n, name))
        return sorted(found)


def find_privacy_problems(config: PrivacyConfig) -> list[str]:
    """What is wrong with a config of privacy."""
    problems = []
    for name in config.redact:
        if name not in KINDS:
            problems.append(f"privacy.redact={name} is not a kind of personal data; kinds: {', '.join(KINDS)}, or use patterns")
    for name, text in config.patterns.items():
        try:
            re.compile(text)
        except re.error as error:
            problems.append(f"privacy.patterns.{name}={text!r} is no regular expression of Python: {error}; correct it")
    for path in config.blocked:
        try:
            read_block_list(Path(path))
        except ConfigError as error:
            problems += error.problems
    return problems


def read_block_list(path: Path) -> list[str]:
    """Ids in a block list: one per line; `#` at the beginning of a line, or after a space, begins a comment.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"privacy.blocked={path}: {error}; give a text file with the id of a document per line, or take it off the list"
        ) from error
    lines = (re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in text.split("\n"))
    return [line for line in lines if line]


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)  # read_block_list says what is wrong
    return status.st_mtime_ns, status.st_size, status.st_ino


def _overlaps(taken: list[tuple[int, int, str]], start: int, end: int) -> bool:
    return any(start < last and first < end for first, last, _ in taken)


# ---- kinds of personal data ----------------------------------------------------------------------------------------------


def _ip_length(text: str) -> int:
    """Of an IPv6 address at the beginning; an address has at least four hexadecimal digits, or `a::b` of C++ would be one."""
    while text and text[-1] in ".:" and not text.endswith("::"):
        text = text[:-1]
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if sum(char in "0123456789abcdefABCDEF" for char in text) >= 4 else 0


def _iban_length(text: str) -> int:
    """Of the longest IBAN at the beginning that ends where a word does. Source: ISO 13616; ISO 7064, MOD 97-10."""
    for end in range(len(text), 14, -1):
        digits = text[:end].replace(" ", "")
        if (end < len(text) and text[end] != " ") or text[end - 1] == " " or not 15 <= len(digits) <= 34:
            continue
        if int("".join(str(int(char, 36)) for char in digits[4:] + digits[:4])) % 97 == 1:
            return end
    return 0


def _card_length(text: str) -> int:
    """All of a number of 13 to 19 digits with a right check digit. Source: ISO/IEC 7812, Luhn's formula."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits))]
    return len(text) if 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0 and any(digits) else 0


_DATE = re.compile(r"\d{2}[ -]\d{2}[ -](?:19|20)\d{2}")


def _phone_length(text: str) -> int:
    """All of it, unless it is a date or digits without any sign that they are to be dialled."""
    if text.startswith(("+", "00", "(")):
        return len(text)
    return 0 if text.isdigit() or _DATE.match(text) else len(text)


_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_EMAIL = r"(?<![\w.+%-])[\w.+%-]{1,64}+@(?:[\w-]{1,63}\.){1,10}[^\W\d_]{2,24}"
_IBAN = r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}+"
_CARD = r"(?<![\w.-])[0-9](?:[ -]?[0-9]){12,18}+(?!\w)"
_IPV4 = rf"(?<![\w.:]){_BYTE}(?:\.{_BYTE}){{3}}(?!\w|\.[0-9])"
_IPV6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:.]{1,43}+(?!\w)"
_PHONE_ABROAD = r"(?<![\w+.-])(?:\+|00)[1-9](?:[ .()/-]{0,2}+[0-9]){6,14}+(?![0-9])"
_PHONE_US = r"(?<![\w.+-])(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4}(?![\w-])"
_PHONE_AT_HOME = r"(?<![\w.+-])0[1-9](?:[ -]?+[0-9]){7,10}+(?![\w-])"
KINDS = {
    "email": _kind(_EMAIL, "@"),
    "iban": _kind(_IBAN, "[A-Z]{2}[0-9]{2}", _iban_length),
    "credit_card": _kind(_CARD, "[0-9](?:[ -]?[0-9]){12}", _card_length),
    "ip": _kind(f"{_IPV4}|{_IPV6}", r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:", _ip_length),
    "phone": _kind(f"{_PHONE_ABROAD}|{_PHONE_US}|{_PHONE_AT_HOME}", "[0-9](?:[ .()/-]{0,2}+[0-9]){6}", _phone_length),
}
"""By name. Phone numbers: from abroad (+ or 00), of North America (three groups), with a leading 0 and a space or hyphen."""
IN_NAMES = ("email", "ip")
"""Kinds that are looked for in names too."""
