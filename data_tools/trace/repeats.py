"""The spans that training documents repeat most: `olmo trace repeats shards/demo --tokens 20`.

A *repeat* is a run of at least --tokens tokens within a document that stands there more than once and cannot be made longer, to
either side, without losing an occurrence. Repeats are ranked by how often they stand there without overlapping themselves, or by
how many documents hold them. Going down the list, one that holds a span already told, or stands in one, is left out; --nested
tells them too.

How: every run of exactly n tokens is counted in a table of a fixed size by its hash, which can only count too much; runs whose
cell holds enough are collected, counted exactly by search, and made as long as all their occurrences agree. A repeat's first n
tokens are such a run, and what is longer is found by going on from a repeat with each token that follows it. So candidates come
by an upper bound of their rank, and the list is exact as soon as the bound falls to the last of it.
"""

import heapq
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from data_tools.trace.find import FoundPlace, describe_place
from data_tools.trace.next_tokens import NO_TOKEN, next_counts
from data_tools.trace.occurrences import Occurrences, occurrences, ordinals
from data_tools.trace.opening import Trace
from data_tools.trace.questions import give, new_parser, open_question, parse, shown, text_of
from data_tools.trace.repeat_kernels import agree, count_apart
from data_tools.trace.runs import RunTable, document_ends
from data_tools.trace.searcher import Searcher
from olmo_train.errors import ConfigError, run_command

FIRST_CELLS = 4096
"""Cells whose runs are looked at first; every further round takes CELLS_FACTOR times as many."""
CELLS_FACTOR = 16
MAX_PLACES = 200
"""Occurrences of a repeat whose steps are looked up."""
MAX_STEPS = 8


@dataclass(frozen=True)
class RepeatsOptions:
    """What is looked for."""

    n_tokens: int = 20
    """Least length."""
    top: int = 20
    least: int = 2
    """Least number of occurrences, or of documents with `by_documents`."""
    by_documents: bool = False
    nested: bool = False
    memory_mib: float = 1024
    """Of the tables."""


@dataclass(frozen=True)
class Repeat:
    """A span that is repeated."""

    ids: tuple[int, ...]
    count: int
    """Occurrences in training documents; overlapping ones count each."""
    apart: int
    """The most that can be taken without overlap."""
    documents: int


@dataclass(frozen=True)
class Repeats:
    """The list, and from where on it is exact."""

    found: list[Repeat]
    """By rank."""
    is_exact: bool
    """False: memory was too small; repeats with fewer occurrences than `exact_from` may be missing."""
    exact_from: int


@dataclass(frozen=True)
class ToldRepeat:
    """A repeat as it is told."""

    text: str | None
    repeat: Repeat
    place: FoundPlace
    """One of its occurrences."""
    first_steps: list[int]
    """The earliest steps that saw one of `n_looked_at` occurrences; empty without a run."""
    n_looked_at: int


def main(argv: list[str]) -> None:
    """Print the list."""
    parser = new_parser("repeats", __doc__, wants_texts=False)
    add = parser.add_argument
    add("--tokens", type=int, default=20, metavar="N", help="least length (default: %(default)s)")
    add("--top", type=int, default=20, metavar="K", help="length of the list (default: %(default)s)")
    add("--min-count", type=int, default=2, metavar="M", help="least number of occurrences (default: %(default)s)")
    add("--by-documents", action="store_true", help="rank by the number of documents that hold a span")
    add("--nested", action="store_true", help="tell spans that hold others, too")
    add("--memory", type=float, default=1024, metavar="MIB", help="of the tables (default: %(default)s)")
    args = parse(parser, argv)
    options = RepeatsOptions(args.tokens, args.top, args.min_count, args.by_documents, args.nested, args.memory)
    check_options(options)
    trace = open_question(args)
    found = find_repeats(trace.searcher, options)
    told = [_told(trace, repeat) for repeat in found.found]
    answer = {"is_exact": found.is_exact, "exact_from": found.exact_from, "repeats": [asdict(repeat) for repeat in told]}
    give(args, answer, _lines(found, told))


def _told(trace: Trace, repeat: Repeat) -> ToldRepeat:
    places = trace.searcher.places(trace.searcher.find(repeat.ids), MAX_PLACES)
    steps: set[int] = set()
    if trace.history is not None:
        for place in places:
            steps.update(s.step for s in trace.history.sighted(trace.searcher, place, len(repeat.ids)).sights)
    text = text_of(trace.searcher, list(repeat.ids))
    text = None if text is None else trace.privacy.redact(text)
    example = describe_place(trace, places[0], len(repeat.ids), 0)
    return ToldRepeat(text, repeat, example, sorted(steps)[:MAX_STEPS], len(places))


def _lines(found: Repeats, told: list[ToldRepeat]) -> Iterator[str]:
    if not told:
        yield "no span is repeated so often"
    for number, one in enumerate(told, 1):
        r, again = one.repeat, "" if one.repeat.count == one.repeat.apart else f" ({one.repeat.count:,} with overlaps)"
        text = shown(one.text, list(r.ids))
        yield f"{number}. {r.apart:,} times{again} in {r.documents:,} documents, {len(r.ids)} tokens: {text}"
        seen = f"; first seen at step {', '.join(map(str, one.first_steps))}" if one.first_steps else ""
        yield f"     e.g. {one.place.id} ({one.place.source}, token {one.place.document_offset}){seen}"
    if not found.is_exact:
        yield f"not exact: repeats with fewer than {found.exact_from} occurrences may be missing; give more --memory"


def find_repeats(searcher: Searcher, options: RepeatsOptions = RepeatsOptions()) -> Repeats:
    """The most repeated spans of all indexes.

    Raises:
        ConfigError: the options cannot be.
    """
    check_options(options)
    return _Search(searcher, options).run()


def check_options(options: RepeatsOptions) -> None:
    """Raises:
    ConfigError: a number is too small; says all of them."""
    rules = (
        ("--tokens", options.n_tokens, 1),
        ("--top", options.top, 1),
        ("--min-count", options.least, 1 if options.by_documents else 2),
    )
    problems = [f"{name}={value} must be at least {least}" for name, value, least in rules if value < least]
    if not 0 < options.memory_mib < float("inf"):
        problems.append(f"--memory={options.memory_mib} must be a positive number of MiB")
    if problems:
        raise ConfigError(problems)


@dataclass
class _Search:
    """Best first: what has the highest bound is looked at next."""

    searcher: Searcher
    options: RepeatsOptions
    waiting: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Heap of (-bound, ids) to be lengthened."""
    known: list[tuple[int, int, tuple[int, ...], Repeat]] = field(default_factory=list)
    """Heap of repeats by rank, not yet told."""
    seen: set[tuple[int, ...]] = field(default_factory=set)
    """Repeats that were kept."""
    covered: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Runs that stand in a repeat, with the occurrences of the latest."""
    told: list[Repeat] = field(default_factory=list)

    @property
    def least(self) -> int:
        """Occurrences that a repeat has at least."""
        return max(2, self.options.least)

    def run(self) -> Repeats:
        """Rounds of ever less frequent runs, until the list is full."""
        table = RunTable(self.searcher, self.options.n_tokens, self.options.memory_mib)
        cells, asked = FIRST_CELLS, set[int]()
        while True:
            least = max(table.value_of_rank(cells), self.least)
            keys, bounds, places_2 = table.collect(least)
            least = max(least, table.least_possible)
            new = [i for i in range(len(keys)) if int(keys[i]) not in asked]
            asked.update(int(keys[i]) for i in new)
            for i in new:
                part, start = (int(v) for v in places_2[i])
                ids = tuple(self.searcher.parts[part].tokens[start : start + self.options.n_tokens].tolist())
                heapq.heappush(self.waiting, (-int(bounds[i]), ids))
            self._look(least)
            if len(self.told) >= self.options.top or least <= self.least:
                return Repeats(self.told, True, least)
            if least <= table.least_possible:
                return Repeats(self.told, False, least)
            cells *= CELLS_FACTOR

    def _look(self, least: int) -> None:
        """Go on until the list is full, or only what has fewer than `least` occurrences is left."""
        while len(self.told) < self.options.top:
            waits, later = -self.waiting[0][0] if self.waiting else 0, least - 1 if least > self.least else 0
            if self.known and -self.known[0][0] >= max(waits, later):
                self._tell(heapq.heappop(self.known)[-1])
            elif waits >= max(later, self.least):
                bound, ids = heapq.heappop(self.waiting)
                self._lengthen(-bound, ids)
            else:
                return

    def _lengthen(self, bound: int, ids: tuple[int, ...]) -> None:
        """Count a run, and make of it the repeat that it always stands in."""
        # In a repeat that stands as often as the bound, it stands as often, and always in it.
        if ids in self.seen or self.covered.get(ids) == bound:
            return
        ranges = self.searcher.find(ids)
        if ranges.count < bound:
            if ranges.count >= self.least:
                heapq.heappush(self.waiting, (-ranges.count, ids))
            return
        found = [o for o in occurrences(self.searcher, ranges) if len(o.starts)]
        before, after = (self._agreement(found, len(ids), sign) for sign in (-1, 1))
        part, first = found[0].part, int(found[0].starts[0]) - found[0].part.record.start - before
        whole = tuple(part.tokens[first : first + before + len(ids) + after].tolist())
        if whole not in self.seen:
            self.seen.add(whole)
            self.covered.update((whole[i : i + len(ids)], bound) for i in range(len(whole) - len(ids) + 1))
            self._keep(whole, ranges.count, [Occurrences(o.part, o.starts - before) for o in found])

    def _keep(self, ids: tuple[int, ...], count: int, found: list[Occurrences]) -> None:
        apart = sum(count_apart(o.starts, len(ids)) for o in found)
        documents = sum(len(np.unique(ordinals(self.searcher, o))) for o in found)
        rank = documents if self.options.by_documents else apart
        if rank >= self.options.least:
            heapq.heappush(self.known, (-rank, -len(ids), ids, Repeat(ids, count, apart, documents)))

    def _agreement(self, found: list[Occurrences], length: int, sign: int) -> int:
        """How many tokens before (-1) or after (1) all occurrences are the same."""
        at = 0 if sign < 0 else length - 1
        most: np.ndarray | None = None
        for o in found:
            ends = document_ends(self.searcher, o.part)
            eos = self.searcher.corpora[o.part.corpus].manifest.eos_id
            starts = o.starts - o.part.record.start + at
            if most is None:
                d = int(np.searchsorted(ends, starts[0], side="right"))
                low, high = int(ends[d - 1]) if d else 0, int(ends[d])
                most = o.part.tokens[starts[0] : high] if sign > 0 else o.part.tokens[low : starts[0] + 1][::-1]
                most = np.ascontiguousarray(most)
            n = agree(o.part.tokens, ends, NO_TOKEN if eos is None else eos, starts, most, sign)
            most = most[:n]
        assert most is not None
        return len(most) - 1

    def _tell(self, repeat: Repeat) -> None:
        """Add to the list, unless it is nested; then what goes on from it is looked at too."""
        if not self.options.nested and any(_stands_in(told.ids, repeat.ids) for told in self.told):
            return  # what goes on from it holds the told span too
        if self.options.nested or not any(_stands_in(repeat.ids, told.ids) for told in self.told):
            self.told.append(repeat)
            if not self.options.nested:
                return
        for token, n in next_counts(self.searcher, repeat.ids).items():
            if n >= self.least and token not in self._ends():
                heapq.heappush(self.waiting, (-n, (*repeat.ids, token)))

    def _ends(self) -> set[int]:
        return {NO_TOKEN, *(e for corpus in self.searcher.corpora if (e := corpus.manifest.eos_id) is not None)}


def _stands_in(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    n = len(part)
    return any(whole[i : i + n] == part for i in range(len(whole) - n + 1) if whole[i] == part[0])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
