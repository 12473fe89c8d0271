"""The span that a counterfactual asks for, what stands before it, and who else in the data could have taught it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.trace.queries import Context
from checkpoints.trace.replay_plan import Document, Interval, Training
from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.index_folder import NAME as INDEX
from data_tools.trace.occurrences import documents
from data_tools.trace.opening import BLOCKED
from data_tools.trace.plan_index import index_folder_of
from data_tools.trace.privacy import Privacy
from data_tools.trace.searcher import Searcher
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer

MIN_TOKENS = 2
"""Of a text that is led back to a document."""


@dataclass(frozen=True)
class Span:
    """Tokens [start, end) of a document, and what the models are asked."""

    document: Document
    start: int
    end: int
    query: SpanQuery
    context: Context


@dataclass(frozen=True)
class Indexes:
    """The run's indexes, if they are there; and what is not shown."""

    searcher: Searcher | None
    missing: list[Path]
    """Folders where an index should be."""
    privacy: Privacy
    blocked: frozenset[str]

    def need(self, flag: str) -> Searcher:
        """The searcher that a flag cannot do without.

        Raises:
            ConfigError: an index is missing; says how to build it.
        """
        if self.searcher is None:
            how = "; ".join(f"olmo trace index shards={folder.parent} output={folder}" for folder in self.missing)
            raise ConfigError(
                f"{flag} needs an index of the shards; build it: {how}; or name one that is there: indexes=[FOLDER]"
            )
        return self.searcher


def open_indexes(training: Training, config_indexes: Sequence[str], privacy: Privacy) -> Indexes:
    """Those that are named, or those of the run's shards.

    Raises:
        ConfigError: one that is named is not there.
    """
    named = [Path(folder) for folder in config_indexes]
    problems = [
        f"indexes: {folder} is no index (it has no {INDEX}); build it: olmo trace index shards=SHARDS output={folder}"
        for folder in named
        if not (folder / INDEX).is_file()
    ]
    if problems:
        raise ConfigError(problems)
    folders = named or [index_folder_of(corpus.folder) for corpus in training.corpora]
    missing = [folder for folder in folders if not (folder / INDEX).is_file()]
    blocked = privacy.blocked
    searcher = None
    if not missing:
        searcher = Searcher(folders, blocked=blocked) if blocked else Searcher(folders)
    return Indexes(searcher, missing, privacy, blocked)


def block_lists(training: Training, config_indexes: Sequence[str]) -> list[Path]:
    """Block lists that count where they exist."""
    folders = [Path(folder) for folder in config_indexes] or [index_folder_of(corpus.folder) for corpus in training.corpora]
    return [folder / BLOCKED for folder in folders]


def tokenizer_of(training: Training) -> Tokenizer | None:
    """The tokenizer that made the shards, if a manifest names it."""
    paths = (path for corpus in training.corpora if (path := corpus.tokenizer_path()) is not None)
    return next((Tokenizer(path) for path in paths), None)


# ---- from a text ---------------------------------------------------------------------------------------------------------


def find_text(training: Training, indexes: Indexes, text: str) -> tuple[Document, int, int]:
    """The first document that holds the longest part of a text which stands in training data: (document, start, end) in tokens.

    Raises:
        ConfigError: no two tokens of it stand there together, or there is no index.
    """
    searcher = indexes.need("--text")
    ids = searcher.tokenizer.encode(text)
    lengths = searcher.longest(ids)
    start = int(lengths.argmax()) if len(ids) else 0
    n = int(lengths[start]) if len(ids) else 0
    if n < MIN_TOKENS:
        raise ConfigError(f"--text={text!r}: no {MIN_TOKENS} tokens of it stand together in the training data; give another text")
    places = sorted(searcher.places(searcher.find(ids[start : start + n])), key=lambda p: (p.corpus, p.file, p.offset))
    for place in places:
        for source, file in training.by_path.get(searcher.file(place).path.resolve(), []):
            ordinal = file.index.documents_between(place.offset, place.offset + 1)[0]
            document = Document(source, file, ordinal, file.index.row(ordinal).id)
            first = place.offset - document.span[0]
            return document, first, first + n
    raise ConfigError(f"--text={text!r} stands in indexed documents that the run does not train on; give another text")


# ---- who else has it -----------------------------------------------------------------------------------------------------


def find_copies(training: Training, indexes: Indexes, document: Document) -> list[Document]:
    """Other training documents of the run with the same tokens.

    Raises:
        ConfigError: there is no index.
    """
    searcher, ids = indexes.need("--copies"), without_end(document)
    if len(ids) == 0:
        return []
    length = document.span[1] - document.span[0]
    copies = []
    for source, file, ordinal in _holders(training, searcher, ids):
        start, end = file.index.span(ordinal)
        if (file, ordinal) != (document.file, document.ordinal) and end - start == length:
            other = Document(source, file, ordinal, file.index.row(ordinal).id)
            copies += [other] if np.array_equal(without_end(other), ids) else []
    return copies


def count_holders(training: Training, indexes: Indexes, span: Span, left_out: Sequence[Document]) -> int | None:
    """Training documents of the run that hold the span, those left out not counted; None: there is no index to ask."""
    if indexes.searcher is None:
        return None
    gone = {(document.file, document.ordinal) for document in left_out}
    return sum((file, n) not in gone for _, file, n in _holders(training, indexes.searcher, span.query.ids))


def _holders(training: Training, searcher: Searcher, ids: Sequence[int] | np.ndarray) -> Iterator[tuple[str, ShardFile, int]]:
    """(source, file, ordinal) of the run's documents with these tokens, each once."""
    for (corpus, number), ordinals in documents(searcher, searcher.find(ids)).items():
        for source, file in training.by_path.get(searcher.corpora[corpus].files[number].path.resolve(), []):
            yield from ((source, file, ordinal) for ordinal in ordinals.tolist())


def without_end(document: Document) -> np.ndarray:
    """Its tokens without the end-of-text."""
    ids = document.read()
    return ids[:-1] if len(ids) and int(ids[-1]) == document.file.eos_id else ids


# ---- the span and its context --------------------------------------------------------------------------------------------


def locate(document: Document, words: str, tokenizer: Tokenizer | None) -> tuple[int, int]:
    """Tokens of a document that hold some words (their first occurrence): those that have a character of them.

    Raises:
        ConfigError: it does not hold them, or there is no tokenizer.
    """
    if tokenizer is None:
        raise ConfigError("--span needs the tokenizer of the shards, and no manifest names one; write it into the manifest")
    if not words:
        raise ConfigError("--span is empty; give words of the document, or leave it out")
    ids, table = without_end(document), tokenizer.id_bytes()
    if table is None:
        wanted = tokenizer.encode(words)
        starts = (n for n in range(len(ids) - len(wanted) + 1) if ids[n : n + len(wanted)].tolist() == wanted)
        at = next(starts, -1)
        if at >= 0:
            return at, at + len(wanted)
    else:
        cuts = np.cumsum([0, *(len(table[i]) for i in ids)])
        data = words.encode()
        at = b"".join(table[i] for i in ids).find(data)
        if at >= 0:
            return int(np.searchsorted(cuts, at, side="right")) - 1, int(np.searchsorted(cuts, at + len(data), side="left"))
    raise ConfigError(f"--span={words!r} does not stand in document {document.id}; give words as the document has them")


def sighted_part(document: Document, interval: Interval, is_masking: bool) -> tuple[int, int]:
    """The longest part of a document that one row of the interval predicted, without the end-of-text; the first of the longest.

    The first column of a row is predicted by nothing, nor is the first token of a document where attention does not cross
    documents (`is_masking`: the token before it is not seen).
    """
    n = len(without_end(document))
    parts = []
    for found, seen in interval.sights:
        start = seen.offset_start + (seen.column_start == 0 or is_masking)
        if found == document and start < min(seen.offset_end, n):
            parts.append((start, min(seen.offset_end, n)))
    start, end = max(parts or [(0, n)], key=lambda part: part[1] - part[0])
    return start, max(end, start + 1)


def make_span(training: Training, document: Document, part: tuple[int, int], interval: Interval, context: Context | None) -> Span:
    """The question. `context`: None takes the row that training predicted it in, if one row of the interval held all of it.

    Raises:
        ConfigError: the row is asked for and there is none, or nothing stands before the span.
    """
    start, end = part
    ids = document.read()[start:end].tolist()
    seq_len = training.run.data.seq_len
    before = _row_context(training, document, part, interval) if context != Context.DOCUMENT else None
    if before is None and context == Context.ROW:
        raise ConfigError(
            "--context=row: no row of the interval holds the whole span after another token; give --context document"
        )
    if before is not None:
        return Span(document, start, end, SpanQuery(ids, before), Context.ROW)
    eos_id = document.file.eos_id
    prefix = [] if eos_id is None else [eos_id]
    before = [*prefix, *document.read()[:start].tolist()][-max(seq_len - len(ids), seq_len // 2, 1) :]
    if not before:
        raise ConfigError(
            f"the span begins document {document.id}, and the manifest of its shards names no eos_id to stand before it; "
            "give a --span further in"
        )
    return Span(document, start, end, SpanQuery(ids, before), Context.DOCUMENT)


def _row_context(training: Training, document: Document, part: tuple[int, int], interval: Interval) -> list[int] | None:
    """What stood before the span in the first row of the interval that held all of it; of its document alone where attention
    stays within documents."""
    for found, seen in interval.sights:
        column = seen.column_start + part[0] - seen.offset_start
        if found != document or part[0] < seen.offset_start or part[1] > seen.offset_end or column == 0:
            continue
        (instance,) = training.order.batch(seen.step, seen.row, seen.row + 1)
        row = [int(i) for piece in instance.pieces for i in piece.file.read(piece.start, piece.end)]
        first = seen.column_start if training.run.data.document_masking else 0
        if column > first:
            return row[first:column]
    return None
