"""Where a text stands in training documents, and when they were seen: `olmo trace find runs/first --text 'import os'`."""

from dataclasses import dataclass
from pathlib import Path

from data_tools.trace.answer import Place, Sight, Sighted
from data_tools.trace.opening import Trace
from data_tools.trace.questions import (
    Asked,
    give,
    has_tokenizer,
    new_parser,
    open_question,
    parse,
    read_asked,
    shown,
    spaced_count,
    spaced_lines,
)
from olmo_train.errors import ConfigError, run_command

MAX_SIGHTS = 8
"""Printed of a place; --json has all."""


@dataclass(frozen=True)
class FoundPlace:
    """One occurrence."""

    place: Place
    id: str
    """Of the document."""
    source: str
    src: str
    """File of documents it was read from, as the sidecar names it."""
    line: int
    """1-based, in `src`."""
    document_offset: int
    """Tokens before it in its document."""
    before: str | None
    match: str | None
    after: str | None
    """None: there is no tokenizer."""
    sighted: Sighted | None
    """None: no run was given."""


@dataclass(frozen=True)
class FoundPlaces:
    """Occurrences of one text."""

    text: str | None
    ids: list[int]
    count: int
    """Occurrences in documents of the split."""
    places: list[FoundPlace]
    spaced_count: int | None = None
    """Occurrences of the text with a space before it; None: it begins with one, or there is no text."""


def main(argv: list[str]) -> None:
    """Print places."""
    parser = new_parser("find", __doc__)
    add = parser.add_argument
    add("--limit", type=int, default=10, metavar="N", help="places to tell of each text (default: %(default)s)")
    add("--seed", type=int, default=0, help="which of more places are told (default: %(default)s)")
    add("--context", type=int, default=20, metavar="TOKENS", help="shown before and after (default: %(default)s)")
    add("--heldout", action="store_true", help="in held-out documents instead")
    args = parse(parser, argv, ["limit"])
    problems = [f"--{n}={v} must not be negative" for n, v in (("seed", args.seed), ("context", args.context)) if v < 0]
    if problems:
        raise ConfigError(problems)
    trace = open_question(args)
    split = "heldout" if args.heldout else "train"
    found = [
        find_places(trace, asked, Limits(args.limit, args.context, args.seed, split))
        for asked in read_asked(args, trace.searcher)
    ]
    give(args, found, (line for one in found for line in _lines(one)))


@dataclass(frozen=True)
class Limits:
    """How much is told of a text."""

    places: int = 10
    context: int = 20
    """Tokens before and after."""
    seed: int = 0
    split: str = "train"


def find_places(trace: Trace, asked: Asked, limits: Limits = Limits()) -> FoundPlaces:
    """Places of some tokens, in the order of index, file and token; texts are redacted."""
    ranges = trace.searcher.find(asked.ids, limits.split)
    places = trace.searcher.places(ranges, limits.places, limits.seed)
    places.sort(key=lambda place: (place.corpus, place.file, place.offset))
    found = [describe_place(trace, place, len(asked.ids), limits.context) for place in places]
    spaced = spaced_count(trace.searcher, asked, limits.split)
    return FoundPlaces(asked.text, asked.ids, ranges.count, found, spaced)


def describe_place(trace: Trace, place: Place, n_tokens: int, context: int) -> FoundPlace:
    """What is known of `n_tokens` tokens at a place."""
    file = trace.searcher.file(place)
    key = trace.documents.key_of(place)
    row, offset = trace.documents.row(key), place.offset - key.start
    before = match = after = None
    if has_tokenizer(trace.searcher):
        parts = trace.documents.context(key, offset, n_tokens, context).parts
        (before, match, after), _ = trace.privacy.redact_parts(parts, slice(1, 4))
    (document, src), _ = trace.privacy.redact_names([row.id, row.src])
    sighted = None if trace.history is None else trace.history.sighted(trace.searcher, place, n_tokens)
    return FoundPlace(place, document, file.entry.source, src, row.loc, offset, before, match, after, sighted)


def _lines(found: FoundPlaces) -> list[str]:
    told = f", {len(found.places)} of them:" if len(found.places) < found.count else ""
    lines = [f"{shown(found.text, found.ids)}: {found.count:,} times{told}"]
    for place in found.places:
        lines.append(f"  {place.id}  ({place.source}; {Path(place.src).name} line {place.line}, token {place.document_offset})")
        if place.match is not None:
            lines.append(f"    {shown(f'{place.before}[{place.match}]{place.after}', [])[1:-1]}")
        if place.sighted is not None:
            lines.append(f"    {say_sights(place.sighted)}")
    return lines + spaced_lines(found.spaced_count)


def say_sights(sighted: Sighted) -> str:
    """Which steps saw a place, in a line."""
    if sighted.is_heldout:
        return "held out: no step sees it"
    if not sighted.in_run:
        return "the run does not train on these shards"
    if not sighted.sights:
        return "no step of the run sees it"
    said = [_say(sight) for sight in sighted.sights[:MAX_SIGHTS]]
    more = len(sighted.sights) - len(said)
    return "seen at step " + ", ".join(said) + (f" and {more} more" if more else "")


def _say(sight: Sight) -> str:
    mark = "" if sight.mark == "learned" else f", {sight.mark}"
    return f"{sight.step} (epoch {sight.epoch}, row {sight.row}{mark})"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
