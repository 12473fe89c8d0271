"""A window of a document of the shards as text: any part of it, however long it is, without reading the rest."""

from dataclasses import asdict, dataclass
from typing import Any

from data_tools.trace.answer import Place
from data_tools.trace.documents import DocumentKey
from data_tools.trace.metadata import url_of
from data_tools.trace.opening import Trace
from data_tools.trace.snippets import MARGIN, SnippetReader
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ConfigError

MAX_STRING = 1000
"""Characters shown of one value of a document's metadata."""
MAX_ENTRIES = 100
"""Values shown of one list or object of it."""
MAX_DEPTH = 6


@dataclass(frozen=True)
class WindowQuery:
    """What to show; offsets in tokens."""

    corpus: int
    file: int
    offset: int
    """Of the file: any token of the document; the window is around it."""
    length: int
    """Tokens from `offset` on that are the match."""
    start: int | None
    """Of the window, in the document; None: so that the match is in its middle."""
    n: int
    """Of the window."""


def read_window(trace: Trace, snippets: SnippetReader, query: WindowQuery) -> dict[str, Any]:
    """The JSON of a window (docs/explore.md).

    Raises:
        ConfigError: there is no such place. ShardError: the shards cannot be read.
    """
    file, key = _document(trace, query)
    size, at = trace.documents.text_end(key) - key.start, query.offset - key.start
    middle = at - (query.n - query.length) // 2 if query.start is None else query.start
    start = max(0, min(middle, size - query.n))
    end = min(start + query.n, size)
    place = Place(key.corpus, key.file, key.start + start)
    sighted = trace.history.sighted(trace.searcher, place, end - start) if trace.history is not None and end > start else None
    texts = _pieces(trace, snippets, file, (key.start, key.start + size), (place.offset, key.start + end), query)
    return {
        "corpus": key.corpus,
        "file": key.file,
        "offset": query.offset,
        "length": query.length,
        "ordinal": key.ordinal,
        **_about(trace, file, key),
        "n_tokens": size,
        "start": start,
        "end": end,
        "pieces": [{"text": text, "is_match": n == 1} for n, text in enumerate(texts) if text],
        "sighted": None if sighted is None else asdict(sighted),
    }


def _document(trace: Trace, query: WindowQuery) -> tuple[ShardFile, DocumentKey]:
    """The document that holds a token. A blocked one does not exist."""
    corpora = trace.searcher.corpora
    if query.corpus >= len(corpora):
        raise ConfigError(f"corpus={query.corpus} must be below {len(corpora)}, the number of indexes")
    files = corpora[query.corpus].files
    if query.file >= len(files):
        raise ConfigError(f"file={query.file} must be below {len(files)}, the number of token files of the corpus")
    file = files[query.file]
    if query.offset >= file.entry.tokens:
        raise ConfigError(f"offset={query.offset} must be below {file.entry.tokens}, the tokens of the file")
    place = Place(query.corpus, query.file, query.offset)
    if trace.searcher.blocked.holds(place):
        raise ConfigError("the document that stands there is blocked (privacy.blocked)")
    return file, trace.documents.key_of(place)


def _pieces(
    trace: Trace, snippets: SnippetReader, file: ShardFile, document: tuple[int, int], window: tuple[int, int], query: WindowQuery
) -> list[str]:
    """Texts before, in and after the match, as far as they are in the window; read with a margin, so that personal data cut by an
    edge of the window is known for what it is."""
    first, last = max(document[0], window[0] - MARGIN), min(document[1], window[1] + MARGIN)
    match = (query.offset, query.offset + query.length) if query.length else (window[1], window[1])
    inner = [min(max(cut, window[0]), window[1]) for cut in match]
    parts = snippets.decode(file.read(first, last), [cut - first for cut in (window[0], *inner, window[1])])
    return trace.privacy.redact_parts(parts, slice(1, 4))[0]


def _about(trace: Trace, file: ShardFile, key: DocumentKey) -> dict[str, Any]:
    """What is known of the document, as far as it may be shown."""
    row, values = trace.documents.row(key), trace.documents.metadata(key)
    names = trace.privacy.redact_names([row.id, row.src, url_of(values, row.id) or ""])[0]
    metadata = trace.privacy.redact_value(values)[0]
    known = {"id": names[0], "source": file.entry.source, "src": names[1], "url": names[2] or None, "metadata": metadata}
    return {"line": row.loc, **clip(known)}


def clip(value: Any, depth: int = 0) -> Any:
    """The same with long texts and lists cut, and said to be: documents come with anything."""
    if isinstance(value, str):
        more = len(value) - MAX_STRING
        return value if more <= 0 else f"{value[:MAX_STRING]}\u2026 ({more:,} more characters)"
    if isinstance(value, dict | list) and depth == MAX_DEPTH:
        return "\u2026"
    if isinstance(value, dict):
        shown = list(value.items())[:MAX_ENTRIES]
        left = {"\u2026": f"{len(value) - MAX_ENTRIES:,} more"} if len(value) > MAX_ENTRIES else {}
        return {clip(str(key)): clip(entry, depth + 1) for key, entry in shown} | left
    if isinstance(value, list):
        rest = [f"\u2026 ({len(value) - MAX_ENTRIES:,} more)"] if len(value) > MAX_ENTRIES else []
        return [clip(entry, depth + 1) for entry in value[:MAX_ENTRIES]] + rest
    return value
