"""How often a text stands in the data: `olmo trace count runs/first --text 'import os' --text 'def main('`.

Counts are of token sequences, exact for any number of occurrences: of a text as it is tokenized by itself. Within a sentence the
same words may begin with a space, and are then other tokens; their number is told beside. As text: `--text ' import os'`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_tools.trace.occurrences import Documents, counts_by_part, documents, n_documents
from data_tools.trace.questions import (
    Asked,
    give,
    new_parser,
    open_question,
    parse,
    read_asked,
    shown,
    spaced_count,
    spaced_lines,
)
from data_tools.trace.searcher import Searcher
from olmo_train.errors import ConfigError, run_command

MAX_OCCURRENCES = 100_000_000


@dataclass(frozen=True)
class SourceCount:
    """In the training documents of one source."""

    count: int
    documents: int | None


@dataclass(frozen=True)
class Counted:
    """How often some tokens stand in the data."""

    text: str | None
    ids: list[int]
    count: int
    """Occurrences in training documents; overlapping ones count each."""
    heldout_count: int
    documents: int | None
    """Training documents with an occurrence; None: there are more occurrences than were to be looked at."""
    sources: dict[str, SourceCount] = field(default_factory=dict)
    """Those with an occurrence."""
    spaced_count: int | None = None
    """Training occurrences of the text with a space before it; None: it begins with one, or there is no text."""


def main(argv: list[str]) -> None:
    """Print counts."""
    parser = new_parser("count", __doc__)
    parser.add_argument(
        "--holds", nargs="+", action="append", metavar="TEXT",
        help="count training documents that hold one of these texts, and one of each further --holds",
    )  # fmt: skip
    parser.add_argument(
        "--max-occurrences", type=int, default=MAX_OCCURRENCES, metavar="N",
        help="do not count documents of texts that stand more often (default: %(default)s)",
    )  # fmt: skip
    args = parse(parser, argv, ["max-occurrences"])
    searcher = open_question(args).searcher
    if args.holds:
        if args.text or args.ids or args.file:
            raise ConfigError("--holds counts documents of all its texts together; give --text, --ids or --file by themselves")
        args.text = [text for clause in args.holds for text in clause]
        asked = iter(read_asked(args, searcher))
        clauses = [[next(asked) for _ in clause] for clause in args.holds]
        n = count_documents(searcher, [[text.ids for text in clause] for clause in clauses], args.max_occurrences)
        told = " AND ".join("(" + " OR ".join(shown(t.text, t.ids) for t in clause) + ")" for clause in clauses)
        give(args, {"holds": args.holds, "documents": n}, [f"{n:,} training documents hold {told}"])
        return
    found = [count_tokens(searcher, text, args.max_occurrences) for text in read_asked(args, searcher)]
    give(args, found, (line for counted in found for line in _lines(counted)))


def count_tokens(searcher: Searcher, asked: Asked, max_occurrences: int = MAX_OCCURRENCES) -> Counted:
    """Count tokens in training and held-out documents, by source."""
    ranges = searcher.find(asked.ids)
    by_part = counts_by_part(searcher, ranges)
    found = documents(searcher, ranges) if sum(by_part) <= max_occurrences else None
    by_source: dict[str, int] = {}
    for part, n in zip(searcher.parts, by_part, strict=True):
        source = searcher.corpora[part.corpus].files[part.record.file].entry.source
        by_source[source] = by_source.get(source, 0) + n
    sources = {name: SourceCount(n, _documents_of(searcher, found, name)) for name, n in by_source.items() if n}
    heldout = searcher.count(asked.ids, "heldout")
    in_documents = None if found is None else n_documents(found)
    spaced = spaced_count(searcher, asked)
    return Counted(asked.text, asked.ids, sum(by_part), heldout, in_documents, sources, spaced)


def _documents_of(searcher: Searcher, found: Documents | None, source: str) -> int | None:
    if found is None:
        return None
    return sum(len(o) for (corpus, file), o in found.items() if searcher.corpora[corpus].files[file].entry.source == source)


def count_documents(
    searcher: Searcher, clauses: Sequence[Sequence[Sequence[int]]], max_occurrences: int = MAX_OCCURRENCES
) -> int:
    """Training documents that hold, of every clause, at least one of its token sequences (infini-gram's `count_cnf` counts
    occurrences within a window; this counts documents, exactly).

    Raises:
        ConfigError: a sequence stands more often than `max_occurrences`.
    """
    held: Documents | None = None
    for clause in clauses:
        ranges = [searcher.find(ids) for ids in clause]
        for ids, found in zip(clause, ranges, strict=True):
            if found.count > max_occurrences:
                raise ConfigError(
                    f"--max-occurrences={max_occurrences}: ids {','.join(map(str, ids))} stand {found.count} times, and every "
                    "occurrence is looked at; give a longer text, or a larger number"
                )
        held = _both(held, _union([documents(searcher, found) for found in ranges]))
    return n_documents(held or {})


def _union(found: list[Documents]) -> Documents:
    keys = {key for documents in found for key in documents}
    return {key: np.unique(np.concatenate([d[key] for d in found if key in d])) for key in keys}


def _both(a: Documents | None, b: Documents) -> Documents:
    return b if a is None else {key: np.intersect1d(a[key], b[key], assume_unique=True) for key in a.keys() & b.keys()}


def _lines(counted: Counted) -> list[str]:
    n_documents = f" in {counted.documents:,} documents" if counted.documents is not None else ""
    lines = [f"{shown(counted.text, counted.ids)}: {counted.count:,} times{n_documents}; held out: {counted.heldout_count:,}"]
    for name, source in counted.sources.items() if len(counted.sources) > 1 else ():
        lines.append(f"  {name}: {source.count:,}" + (f" in {source.documents:,}" if source.documents is not None else ""))
    return lines + spaced_lines(counted.spaced_count)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
