"""Lead a text back to training: `olmo trace text runs/first --text 'import os'` (docs/trace.md).

text -> tokens -> maximal spans -> documents -> BM25 -> what may be shown, when it was seen -> Answer
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_tools.trace.answer import Answer, FoundDocument, FoundSpan, Place, Snippet
from data_tools.trace.bm25 import bm25
from data_tools.trace.documents import DocumentKey, DocumentReader, Held
from data_tools.trace.metadata import url_of
from data_tools.trace.opening import Trace
from data_tools.trace.print_answer import answer_lines
from data_tools.trace.questions import give, new_parser, open_question, parse
from data_tools.trace.snippets import Context
from data_tools.trace.spans import Match, maximal_spans
from data_tools.trace.text_tokens import encode
from olmo_train.errors import ConfigError, run_command


def main(argv: list[str]) -> None:
    """Print the spans of a text that stand in training documents, with documents and steps."""
    parser = new_parser("text", __doc__, wants_texts=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--text", metavar="TEXT", help="the text to trace")
    which.add_argument("--file", metavar="FILE", help="a file with the text to trace; -: standard input (also without a flag)")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the text answers: documents are ranked by both")
    parser.add_argument("--all", action="store_true", help="print every document, with all of its context")
    args = parse(parser, _name_standard_input(argv))
    text = args.text if args.text is not None else _read_text(args)
    if not text.strip():
        raise ConfigError("the text is empty; give one with --text, --file or on standard input")
    answer = trace_text(open_question(args), text, args.prompt)
    give(args, answer, answer_lines(answer, sys.stdout.isatty(), args.all))


def _name_standard_input(argv: list[str]) -> list[str]:
    """A dash that is no flag's value stands for `--file -`."""
    flags = ("--text", "--file", "--prompt", "--json")
    pairs = zip(["", *argv], argv, strict=False)
    return [part for before, word in pairs for part in (["--file", "-"] if word == "-" and before not in flags else [word])]


def _read_text(args: argparse.Namespace) -> str:
    """Of --file, or of standard input. One line end at the end is the file's, not the text's."""
    try:
        if args.file not in (None, "-"):
            text = Path(args.file).read_text(encoding="utf-8")
        elif args.file is None and sys.stdin.isatty():
            raise ConfigError("no text is given; use --text TEXT, --file FILE, or write it to standard input")
        else:
            text = sys.stdin.buffer.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file={args.file or '-'}: {error}; give a text in UTF-8") from error
    return text.removesuffix("\n")


@dataclass
class _Found:
    """A document on its way into the answer. contexts: by span, with the offset in the document."""

    held: Held
    contexts: list[tuple[int, int, Context]]
    score: float = 0.0


@dataclass
class _Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def stop(self, name: str) -> None:
        """The phase that began with the last call is over."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def trace_text(trace: Trace, text: str, prompt: str = "") -> Answer:
    """Everything about one text. `prompt`: what it answers, for the ranking of documents.

    Raises:
        ConfigError: the text cannot be tokenized. ShardError: index or shards changed or are damaged.
    """
    trace.refresh()
    clock = _Clock()
    reader = trace.documents
    tokens = encode(trace.searcher.tokenizer, text)
    matches = sorted(maximal_spans(trace.searcher, tokens, trace.config.spans), key=lambda match: (match.start, match.end))
    clock.stop("search")
    kept = _rank(_read(reader, matches, trace), f"{prompt} {text}", trace.config.documents.max_documents)
    redacted: Counter[str] = Counter()
    documents = [_document(trace, reader, number, found, redacted) for number, found in enumerate(kept)]
    clock.stop("documents")
    documents = _with_sights(trace, kept, documents, [len(match.ids) for match in matches])
    clock.stop("when")
    holders: list[list[int]] = [[] for _ in matches]
    for number, found in enumerate(kept):
        for span in found.held.offsets:
            holders[span].append(number)
    heldout = [ranges.count for ranges in trace.searcher.find_all([match.ids for match in matches], "heldout")]
    spans = [
        FoundSpan(
            number, m.start, m.end, tokens.char_starts[m.start], tokens.char_ends[m.end - 1],
            tokens.text[tokens.char_starts[m.start] : tokens.char_ends[m.end - 1]], m.count, heldout[number], m.log_prob,
            holders[number],
        )
        for number, m in enumerate(matches)
    ]  # fmt: skip
    run = trace.history.run.run_name if trace.history is not None else None
    n_tokens = trace.searcher.n_tokens
    return Answer(text, tokens.texts, n_tokens, spans, documents, run, dict(redacted), clock.seconds, trace.find_notes())


def _read(reader: DocumentReader, matches: Sequence[Match], trace: Trace) -> list[_Found]:
    """Every document with the texts around its spans."""
    config = trace.config.documents
    held_documents = reader.hold(matches, config)
    places = [_place(h.key, offset) for h in held_documents for offsets in h.offsets.values() for offset in offsets]
    longest = max((len(match.ids) for match in matches), default=0)
    trace.searcher.bring_in(places, config.context, longest + config.context)
    return [
        _Found(
            held,
            [
                (span, offset, reader.context(held.key, offset, len(matches[span].ids), config.context))
                for span, offsets in sorted(held.offsets.items())
                for offset in offsets
            ],
        )
        for held in held_documents
    ]


def _rank(found: list[_Found], query: str, limit: int | None) -> list[_Found]:
    """By BM25 of what is shown of them, the highest first; equal ones by place."""
    scores = bm25(query, [" ".join(context.shown for _, _, context in document.contexts) for document in found])
    for document, score in zip(found, scores.tolist(), strict=True):
        document.score = score
    return sorted(found, key=lambda document: -document.score)[:limit]


def _document(trace: Trace, reader: DocumentReader, number: int, found: _Found, redacted: Counter[str]) -> FoundDocument:
    key, privacy = found.held.key, trace.privacy
    snippets = []
    for span, offset, context in found.contexts:
        shown, counts = privacy.redact_parts(context.parts, slice(1, 4))
        redacted.update(counts)
        before, match, after = shown
        snippets.append(Snippet(span, offset, before, match, after, context.is_cut_before, context.is_cut_after, None))
    row, values = reader.row(key), reader.metadata(key)
    names = [row.id, row.src, url_of(values, row.id) or "", *(reader.row(copy).id for copy in found.held.copies)]
    names, counts = privacy.redact_names(names)
    redacted.update(counts)
    metadata, counts = privacy.redact_value(values)
    redacted.update(counts)
    file = trace.searcher.corpora[key.corpus].files[key.file]
    return FoundDocument(
        number=number,
        id=names[0],
        source=file.entry.source,
        src=names[1],
        line=row.loc,
        url=names[2] or None,
        metadata=metadata,
        n_tokens=key.end - key.start,
        score=found.score,
        copies=names[3:],
        snippets=snippets,
    )


def _with_sights(trace: Trace, kept: list[_Found], documents: list[FoundDocument], lengths: list[int]) -> list[FoundDocument]:
    """The same documents, each snippet with the steps that saw its span, there and in copies of the document."""
    if trace.history is None:
        return documents
    places, sizes = [], []
    for found in kept:
        for span, offset, _ in found.contexts:
            for key in (found.held.key, *found.held.copies):
                places.append(_place(key, offset))
                sizes.append(lengths[span])
    sighted = iter(trace.history.sighted_many(trace.searcher, places, sizes))
    out = []
    for found, document in zip(kept, documents, strict=True):
        snippets = []
        for snippet in document.snippets:
            own = next(sighted)
            snippets.append(replace(snippet, sighted=own, copies_sighted=[next(sighted) for _ in found.held.copies]))
        out.append(replace(document, snippets=snippets))
    return out


def _place(key: DocumentKey, offset: int) -> Place:
    return Place(key.corpus, key.file, key.start + offset)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
