"""When two web addresses are the same."""

from typing import Any
from urllib.parse import urlsplit

import msgspec

from data_tools.documents import values_of
from data_tools.trace.metadata import URL_KEYS, url_of

PORTS = {"http": 80, "https": 443}

_Fields = msgspec.defstruct(
    "_Fields",
    [("metadata", Any, None), *((f"url_{i}", Any, msgspec.field(default=None, name=key)) for i, key in enumerate(URL_KEYS))],
    gc=False,
)
_decode = msgspec.json.Decoder(_Fields).decode


def url_in(raw: bytes | bytearray, document_id: str) -> str | None:
    """The normal form of a document's address, from its line of JSON; None: it has none."""
    try:
        fields: Any = _decode(raw)
        values = {key: getattr(fields, f"url_{i}") for i, key in enumerate(URL_KEYS)} | {"metadata": fields.metadata}
    except msgspec.ValidationError:
        values = values_of(raw)
    url = url_of(values, document_id)
    return None if url is None else normalize_url(url)


def normalize_url(url: str) -> str:
    """An address without what rarely makes another page: scheme, `www.`, the scheme's own port, the fragment, slashes at the end
    of the path; the host in lower case. User, path and query stay as they are. What cannot be split stays whole."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return url
    user = parts.netloc.rpartition("@")[0]
    place = f"{user}@{host}" if user else host
    if port is not None and port != PORTS.get(parts.scheme):
        place = f"{place}:{port}"
    return f"{place}{parts.path.rstrip('/')}{f'?{parts.query}' if parts.query else ''}"
