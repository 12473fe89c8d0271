"""Traces for tests of influence: an index over the text corpus, and texts that a step of the run saw."""

from pathlib import Path

from data_tools.trace.answer import Answer
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.opening import Trace, load_trace_config, open_trace
from data_tools.trace.trace_text import trace_text

WORDS = ["spans.min_tokens=3", "spans.max_spans=null", "documents.per_span=30", "documents.max_documents=null"]


def build_index(shards: Path, folder: Path) -> Path:
    """An index outside of the shards, which are read only."""
    return build(IndexConfig(shards=str(shards), output=str(folder / "index"), processes=1))


def open_here(where: Path, index: Path, *overrides: str) -> Trace:
    """Trace `where` with this index."""
    return open_trace(str(where), load_trace_config([f"indexes=['{index}']", *WORDS, *overrides]))


def seen_text(trace: Trace, step: int, n_tokens: int = 7) -> str:
    """The middle of the longest document in the rows of a step."""
    assert trace.history is not None
    order = trace.history.order
    documents = [document for instance in order.batch(step) for document in order.documents(instance)]
    longest = max(documents, key=lambda d: d.column_end - d.column_start)
    start = longest.file.index.span(longest.ordinal)[0] + longest.offset_start
    return trace.searcher.tokenizer.decode(longest.file.read(start + 2, start + 2 + n_tokens).tolist())


def longest_span(trace: Trace, text: str) -> tuple[Answer, int]:
    """The answer, and the number of its longest span."""
    answer = trace_text(trace, text)
    return answer, max(answer.spans, key=lambda span: span.end - span.start).number
