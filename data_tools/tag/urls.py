"""`urls`: whether the web address of a document is on a list of blocked domains or addresses."""

import array
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import xxhash

from data_tools.documents import Line
from data_tools.tag.list_files import list_lines
from data_tools.tag.model_config import ListConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.units import n_chars
from data_tools.trace.metadata import url_of
from olmo_train.errors import ConfigError

_HOSTS = re.compile(r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-f]{0,4}:[0-9a-f:]*)[ \t]+(.+)")
_DOMAIN = re.compile(r"(?:[^\s./:#?@|^*$,=\[\]]+\.)+[^\s./:#?@|^*$,=\[\]]+\.?")
_WHOLE_PAGE = {"all", "doc", "document", "important"}
"""Options of an Adblock rule that blocks a page; others are about pictures and scripts in pages, and such rules are left out."""
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Hashes:
    """A set of strings in 8 bytes each: one in 10^12 others is wrongly taken to be in a list of ten million."""

    def __init__(self, names: array.array) -> None:
        self._sorted = np.unique(np.frombuffer(names, np.uint64)) if names else np.zeros(0, np.uint64)

    def __contains__(self, name: str) -> bool:
        value = np.uint64(_hash(name))
        i = int(np.searchsorted(self._sorted, value))
        return i < len(self._sorted) and bool(self._sorted[i] == value)

    def __len__(self) -> int:
        return len(self._sorted)


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


class UrlList:
    """One list. A domain stands for its subdomains, an address for all that lies below it.

    Raises:
        ConfigError: the file is damaged, or has no entry of a form that is known.
    """

    def __init__(self, path: Path) -> None:
        blocked, allowed, addresses = array.array("Q"), array.array("Q"), array.array("Q")
        self.ignored = 0
        """Lines that are rules for parts of pages, or in no form that is known."""
        for line in list_lines(path):
            if not line or line[0] in "#![" or line.startswith("//"):
                continue
            known = False
            for name, is_allowed in _entries(line.split(" #")[0].rstrip().lower()):
                known = True
                (allowed if is_allowed else addresses if "/" in name else blocked).append(_hash(name))
            self.ignored += not known
        self._blocked, self._allowed, self._addresses = _Hashes(blocked), _Hashes(allowed), _Hashes(addresses)
        if not len(self._blocked) + len(self._addresses):
            raise ConfigError(
                f"{path} blocks nothing: none of its lines is a domain, an address, a line of a hosts file or `||domain^`"
            )

    def has(self, url: str) -> bool:
        """Whether an address is on it."""
        try:
            parts = urlsplit(url.lower())
            host = (parts.hostname or "").rstrip(".")
        except ValueError:
            return False
        labels = host.split(".")
        domains = [".".join(labels[i:]) for i in range(len(labels))]
        if any(domain in self._allowed for domain in domains):
            return False
        if any(domain in self._blocked for domain in domains):
            return True
        if not len(self._addresses):
            return False
        rest = parts.path + (f"?{parts.query}" if parts.query else "")
        ends = [i for i, c in enumerate(rest[:1000]) if c in "/?"] + [len(rest)]
        return any(f"{domain}/{rest[1:end].rstrip('/')}" in self._addresses for domain in domains for end in ends)


def _entries(line: str) -> Iterator[tuple[str, bool]]:
    """(domain, or domain/path; whether it is allowed) that a line in small letters names; nothing: no such line."""
    is_allowed = line.startswith("@@")
    rule = line[2:] if is_allowed else line
    if rule.startswith("||"):
        name, _, options = rule[2:].partition("$")
        is_about_pages = not options or set(options.split(",")) <= _WHOLE_PAGE
        if is_about_pages and (entry := _entry(name.removesuffix("^"))):
            yield entry, is_allowed
    elif match := _HOSTS.fullmatch(line):
        for name in match[1].split():
            if _DOMAIN.fullmatch(name):
                yield name.rstrip("."), False
    elif not is_allowed and (entry := _entry(line)):
        yield entry, False


def _entry(name: str) -> str | None:
    host, slash, path = name.split("://", 1)[-1].removeprefix("*.").lstrip(".").partition("/")
    host = host.partition(":")[0].rstrip(".")
    path = path.rstrip("*").rstrip("/")
    if not (_DOMAIN.fullmatch(host) or re.fullmatch(r"[0-9.]+", host)) or any(c in path for c in "*^|# "):
        return None
    return f"{host}/{path}" if slash and path else host


def address_of(line: Line) -> str | None:
    """The web address of a document, from its metadata, fields or id; its text is not unpacked."""
    fields = {name: raw for name, raw in _raw_fields(line.raw).items() if name != "text"}
    try:
        values: dict[str, Any] = {name: msgspec.json.decode(raw) for name, raw in fields.items()}
    except msgspec.ValidationError:
        values = line.values()
    return url_of(values, line.id)


class UrlsTagger:
    """Spans over the whole document, of the lists on which its address is."""

    name = "urls"

    def __init__(self, lists: Sequence[ListConfig]) -> None:
        self._lists = [(config.name, UrlList(Path(config.path))) for config in lists]
        self.types: Sequence[str] = tuple(name for name, _ in self._lists)

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """[0, length, 1] for each list that has the document's address."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        url = address_of(line)
        found = [] if url is None else [name for name, entries in self._lists if entries.has(url)]
        return {name: [[0, n_chars(line), 1.0]] for name in found}
