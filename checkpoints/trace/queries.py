"""What stands before a span: in the row of training that held it, in its document, or in the text that was given."""

from collections.abc import Sequence
from enum import StrEnum

from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.answer import Place
from data_tools.trace.searcher import Searcher
from olmo_train.config.data import DataConfig
from olmo_train.errors import ConfigError


class Context(StrEnum):
    """Where the context of a span is taken from."""

    ROW = "row"
    """All that stands before it in its row of the training batch: what the steps predicted it from."""
    DOCUMENT = "document"
    """What stands before it in its document, up to the length of a row."""
    TEXT = "text"
    """What stands before it in the text that was given, up to the length of a row."""


def query_text(ids: Sequence[int], start: int, end: int, eos_id: int, seq_len: int) -> SpanQuery:
    """Tokens [start, end) of a text that begins after an end of text."""
    return SpanQuery(list(ids[start:end]), _last([eos_id, *ids[:start]], end - start, seq_len), None, Context.TEXT)


def query_place(searcher: Searcher, place: Place, n_tokens: int, context: Context | None, data: DataConfig) -> SpanQuery:
    """`n_tokens` tokens at a place of indexed shards, in one document.

    The cut of files into rows is the same in every epoch, so a span has one row context. It is what the default (`context=None`)
    takes: the probability given it is the very one that the steps raised. A span that is cut by the end of a row, begins one (its
    first token was then predicted by no step), is held out, or stands in the dropped tail of its file has none: then it is
    the document's.

    Raises:
        ConfigError: the row is asked for where there is none.
    """
    file = searcher.file(place)
    ids = file.read(place.offset, place.offset + n_tokens).tolist()
    if context != Context.DOCUMENT:
        before = _row_context(searcher, place, n_tokens, data)
        if isinstance(before, list):
            return SpanQuery(ids, before, place, Context.ROW)
        if context == Context.ROW:
            raise ConfigError(f"--context=row: the span at {place_name(place)} {before}; give --context document")
    start, _ = file.index.span(document_ordinal(searcher, place))
    read = file.read(max(start, place.offset - data.seq_len), place.offset).tolist()
    eos_id = searcher.corpora[place.corpus].manifest.eos_id
    before = read if place.offset - start > len(read) or eos_id is None else [eos_id, *read]
    if not before:
        raise ConfigError(
            f"the span at {place_name(place)} begins its document, and the manifest of its shards names no eos_id to stand "
            "before it; choose a place further in"
        )
    return SpanQuery(ids, _last(before, n_tokens, data.seq_len), place, Context.DOCUMENT)


def document_ordinal(searcher: Searcher, place: Place) -> int:
    """The document that holds a place, by number in its file."""
    return searcher.file(place).index.documents_between(place.offset, place.offset + 1)[0]


def document_id(searcher: Searcher, place: Place) -> str:
    """Its id."""
    return searcher.file(place).index.row(document_ordinal(searcher, place)).id


def place_name(place: Place) -> str:
    """As `--place` takes it."""
    return f"{place.corpus}:{place.file}:{place.offset}"


def parse_place(words: str, searcher: Searcher, n_tokens: int) -> Place:
    """`corpus:file:offset` of a span of `n_tokens`.

    Raises:
        ConfigError: it is no place of the indexes, or the span would not end in the document that it begins in.
    """
    rule = "must be CORPUS:FILE:OFFSET, as `olmo trace text --json` names places"
    parts = words.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--place={words} {rule}")
    place = Place(*map(int, parts))
    if place.corpus >= len(searcher.corpora):
        raise ConfigError(f"--place={words}: there is no index {place.corpus}; {len(searcher.corpora)} are open; it {rule}")
    files = searcher.corpora[place.corpus].files
    if place.file >= len(files):
        raise ConfigError(f"--place={words}: the shards of index {place.corpus} have {len(files)} files; it {rule}")
    tokens = files[place.file].entry.tokens
    if place.offset + n_tokens > tokens:
        raise ConfigError(f"--place={words}: the file has {tokens} tokens, {n_tokens} from there do not fit; it {rule}")
    if len(files[place.file].index.documents_between(place.offset, place.offset + n_tokens)) > 1:
        raise ConfigError(f"--place={words}: {n_tokens} tokens from there go on in another document; it {rule}")
    if searcher.blocked.holds(place):
        raise ConfigError(f"--place={words} is in a document that is blocked (privacy.blocked); choose another")
    return place


def _row_context(searcher: Searcher, place: Place, n_tokens: int, data: DataConfig) -> list[int] | str:
    """What a row of training has before the span, of its document alone where attention stays within documents; or why none."""
    file = searcher.file(place)
    position = file.index.train_position(place.offset)
    if position is None:
        return "is held out: no row of training has it"
    row, column = divmod(position, data.seq_len)
    if row >= (file.entry.tokens - file.entry.heldout_tokens) // data.seq_len:
        return "stands in the tail of its file that no row of training has"
    if column + n_tokens > data.seq_len:
        return "goes on in another row of training"
    pieces = file.index.train_pieces(position - column, position)
    if data.document_masking:
        start, _ = file.index.span(document_ordinal(searcher, place))
        pieces = [(max(a, start), b) for a, b in pieces if b > start]
    before = [int(i) for a, b in pieces for i in file.read(a, b)]
    return before or "begins a row of training, or its document where attention does not cross documents"


def _last(before: Sequence[int], n_tokens: int, seq_len: int) -> list[int]:
    """As much of a context as fits into a row with the span; half a row before a longer span."""
    return list(before[-max(seq_len - n_tokens, seq_len // 2, 1) :])
