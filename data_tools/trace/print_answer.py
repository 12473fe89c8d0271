"""An answer as lines for a terminal: the text with its spans marked, a table of the spans, and the documents of each."""

import math
import unicodedata
from collections.abc import Iterable, Iterator

from data_tools.trace.answer import Answer, FoundDocument, FoundSpan, Mark, Sight, Sighted, Snippet

FEW_DOCUMENTS = 3
"""Of a span, unless all are asked for."""
FEW_CHARACTERS = 240
"""On each side of a span, unless all are asked for."""
MOST_STEPS = 8
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def answer_lines(answer: Answer, is_terminal: bool = False, everything: bool = False) -> Iterator[str]:
    """What `olmo trace text` prints. Control characters are spelt out: a document cannot steer the terminal."""
    yield from marked_text(answer, is_terminal)
    yield ""
    yield from _table(answer)
    for span in answer.spans:
        yield ""
        yield from _span_lines(answer, span, everything)
    if answer.redacted:
        yield ""
        yield "redacted: " + ", ".join(f"{n} {kind}" for kind, n in sorted(answer.redacted.items()))
    for note in answer.notes:
        yield f"note: {visible(note)}"
    seconds = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in answer.seconds.items())
    yield ""
    yield f"{answer.n_trained_tokens:,} tokens of training documents searched; {seconds}"


def marked_text(answer: Answer, is_terminal: bool) -> list[str]:
    """The text in lines, its spans in brackets with their numbers, as [0: ...], and bold in a terminal."""
    opened = {span.char_start: span.number for span in answer.spans}
    closed = [span.char_end for span in answer.spans]
    pieces, depth = [], 0
    for at, char in enumerate([*answer.text, ""]):
        for _ in range(closed.count(at)):
            pieces.append("]")
            depth -= 1
            pieces.append(PLAIN if is_terminal and depth == 0 else "")
        if at in opened:
            pieces.append(BOLD if is_terminal and depth == 0 else "")
            depth += 1
            pieces.append(f"[{opened[at]}: ")
        pieces.append(char if char == "\n" else visible(char))
    return "".join(pieces).split("\n")


def visible(text: str) -> str:
    """The text on one line: line ends, control characters and those that turn the direction of writing are spelt out."""
    return "".join(char if char.isprintable() else _spelt(char) for char in text)


def _spelt(char: str) -> str:
    if char in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char]
    if unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape").decode()


def _table(answer: Answer) -> Iterator[str]:
    if not answer.spans:
        yield "no span of the text stands in training documents (spans.min_tokens, spans.words and others decide what counts)"
        return
    yield "span  tokens      count  improbability (bits)  text"
    for span in answer.spans:
        bits = -span.log_prob / math.log(2)
        yield f"{span.number:>4}  {span.end - span.start:>6}  {span.count:>9,}  {bits:>20.1f}  {_shorten(visible(span.text), 80)}"


def _span_lines(answer: Answer, span: FoundSpan, everything: bool) -> Iterator[str]:
    heldout = f", {span.heldout_count:,} times in held-out ones" if span.heldout_count else ""
    times = "once" if span.count == 1 else f"{span.count:,} times"
    yield f"span {span.number} stands {times} in training documents{heldout}: {_shorten(visible(span.text), 80)}"
    shown = span.documents if everything else span.documents[:FEW_DOCUMENTS]
    for number in shown:
        yield from _document_lines(answer.documents[number], span.number, everything)
    left = len(span.documents) - len(shown)
    if left:
        yield f"  and {left} more {'document' if left == 1 else 'documents'}; --all shows them"
    if not span.documents:
        yield "  its documents rank below those of other spans (documents.max_documents)"


def _document_lines(document: FoundDocument, span: int, everything: bool) -> Iterator[str]:
    origin = f"{document.source}; {document.src} line {document.line}; {document.n_tokens:,} tokens; BM25 {document.score:.1f}"
    yield f"  [{document.number}] {visible(document.id)}  ({visible(origin)})"
    if document.url is not None:
        yield f"      {visible(document.url)}"
    if document.copies:
        more = len(document.copies)
        copies = ", ".join(map(visible, document.copies if everything else document.copies[:3]))
        yield f"      {more} {'copy' if more == 1 else 'copies'} of it: {copies}{'' if everything or more <= 3 else ', ...'}"
    for snippet in document.snippets:
        if snippet.span == span:
            yield f"      {_context(snippet, everything)}"
            if snippet.sighted is not None:
                yield f"      {tell_sights([snippet.sighted, *snippet.copies_sighted])}"


def _context(snippet: Snippet, everything: bool) -> str:
    before, after = visible(snippet.before), visible(snippet.after)
    is_cut_before, is_cut_after = snippet.is_cut_before, snippet.is_cut_after
    if not everything:
        is_cut_before |= len(before) > FEW_CHARACTERS
        is_cut_after |= len(after) > FEW_CHARACTERS
        before, after = before[-FEW_CHARACTERS:], after[:FEW_CHARACTERS]
    left, right = "..." if is_cut_before else "", "..." if is_cut_after else ""
    return f"{left}{before}>>>{visible(snippet.match)}<<<{after}{right}"


def tell_sights(seen: Iterable[Sighted]) -> str:
    """The steps of a span in a document and its copies, in one line."""
    seen = list(seen)
    sights = sorted((sight for sighted in seen for sight in sighted.sights), key=lambda s: (s.step, s.row, s.token_start))
    if not sights:
        if all(sighted.is_heldout for sighted in seen):
            return "held out: no step sees it"
        if not any(sighted.in_run for sighted in seen):
            return "not in this run's data"
        return "no step sees it: the run ends before, or it is in the tail of its file, which fills no row"
    by_step: dict[int, list[Sight]] = {}
    for sight in sights:
        by_step.setdefault(sight.step, []).append(sight)
    told = ", ".join(_tell_step(step, same) for step, same in [*by_step.items()][:MOST_STEPS])
    left = len(by_step) - MOST_STEPS
    return f"{'step' if len(by_step) == 1 else 'steps'} {told}{f' and {left} more' if left > 0 else ''}"


def _tell_step(step: int, sights: list[Sight]) -> str:
    marks = {sight.mark for sight in sights}
    rows = [*dict.fromkeys(sight.row for sight in sights)]
    told = [f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows))}"]
    if sights[0].epoch:
        told.append(f"epoch {sights[0].epoch}")
    some = "in part " if len(marks) > 1 else ""
    told += [f"{some}{mark}" for mark in sorted(marks - {Mark.LEARNED, Mark.FUTURE})]
    return f"{step} ({', '.join(told)}; {_tell_checkpoint(sights[0])})"


def _tell_checkpoint(sight: Sight) -> str:
    if sight.mark == Mark.FUTURE:
        return "still to come"
    if sight.checkpoint_after is None:
        return "no checkpoint after it yet"
    release = f" = {sight.release_after}" if sight.release_after is not None else ""
    return f"then checkpoint {sight.checkpoint_after}{release}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2 - 2]} ... {text[-length // 2 + 3 :]}"
