"""Whether releases fit together: none twice, none exchanged, none missing, and the index and `main` saying the same."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from checkpoints.release import INDEX, MAIN, MANIFEST, IndexEntry, Release, index_entry, parse_revision

MUST_DIFFER = "model.embed_tokens.weight"
"""Trained at every step; norms and idle experts of a rounded release may stay the same for a while."""
MOST_EQUAL = 0.5
"""Share of equal tensors between two steps from which they count as one and the same."""
MARGIN = 1.25
"""How much longer a detour must be before an order counts as wrong."""


@dataclass(frozen=True)
class Known:
    """What a series is judged by; small, so that hundreds fit into memory."""

    entry: IndexEntry
    parent: Mapping[str, object] | None
    model: tuple[object, ...]
    """Architecture and parameters, equal within a stage."""
    shapes: int
    """Hash of the names and shapes of the tensors."""
    tensors: Mapping[str, bytes]
    """By name, the front of its SHA-256."""
    save_every: int | None
    batch: int | None

    @property
    def place(self) -> tuple[int, int]:
        """(stage, step)."""
        return self.entry.stage, self.entry.step


def known(release: Release, save_every: int | None, batch: int | None) -> Known:
    """What is kept of a release."""
    tensors = release.tensors
    shapes = hash(tuple((name, *tensors[name]["shape"]) for name in sorted(tensors)))
    model = (release.architecture, *sorted(release.parameters.items()))
    digests = {name: bytes.fromhex(entry["sha256"])[:12] for name, entry in tensors.items()}
    return Known(index_entry(release), release.parent, model, shapes, digests, save_every, batch)


def series_problems(releases: Mapping[str, Known], skipped: Mapping[str, Iterable[int]], is_whole: bool = True) -> list[str]:
    """Problems between releases, by revision.

    Args:
        skipped: by revision, steps of its run that changed no weights.
        is_whole: these are all releases, so that one can be missing.
    """
    ordered = sorted(releases.items(), key=lambda item: item[1].place)
    return [
        *_twins(ordered, {name: frozenset(steps) for name, steps in skipped.items()}),
        *_parents(releases),
        *(_gaps(ordered) if is_whole else []),
        *_progress(ordered),
        *_one_model(ordered),
    ]


# ---- the same weights twice ---------------------------------------------------------------------------------------------


def twins(releases: Mapping[str, Known]) -> list[tuple[str, str]]:
    """Pairs of revisions, the earlier first, that have tensors in common which training changes at every step."""
    ordered = sorted(releases, key=lambda name: releases[name].place)
    by_tensor: dict[tuple[str, bytes], list[str]] = defaultdict(list)
    for revision in ordered:
        for name, digest in releases[revision].tensors.items():
            by_tensor[name, digest].append(revision)
    common: Counter[tuple[str, str]] = Counter()
    embedded = set()
    for (name, _), revisions in by_tensor.items():
        for i, a in enumerate(revisions):
            for b in revisions[i + 1 :]:
                common[a, b] += 1
                if name == MUST_DIFFER:
                    embedded.add((a, b))
    return [pair for pair, n in common.items() if pair in embedded or n > MOST_EQUAL * len(releases[pair[0]].tensors)]


def _twins(ordered: list[tuple[str, Known]], skipped: Mapping[str, frozenset[int]]) -> Iterator[str]:
    releases = dict(ordered)
    for a, b in twins(releases):
        first, second = releases[a], releases[b]
        is_start = first.entry.stage < second.entry.stage and second.entry.step == 0  # a stage starts with the weights before it
        between = range(first.entry.step + 1, second.entry.step + 1)
        nothing_happened = first.entry.stage == second.entry.stage and skipped.get(b, frozenset()).issuperset(between)
        if is_start or (nothing_happened and between):
            continue
        n = sum(second.tensors.get(name) == digest for name, digest in first.tensors.items())
        yield (
            f"{b}: {n} of {len(first.tensors)} tensors equal those of {a}; different steps have different weights: one of them "
            "was published under a wrong name; compare weights_sha256 with the run's, and publish that one again"
        )


# ---- the chain ----------------------------------------------------------------------------------------------------------


def _parents(releases: Mapping[str, Known]) -> Iterator[str]:
    by_name = {release.entry.name: release for release in releases.values()}
    for revision, release in releases.items():
        parent = release.parent
        name = parent.get("name") if parent is not None else None
        if parent is None or not isinstance(name, str):
            continue
        there = by_name.get(name)
        if there is None:
            place = parse_revision(name)
            if place is not None and place[0] == release.entry.stage:  # that of a first one may lie elsewhere
                yield f"{revision}: {MANIFEST}: its parent {name} is not in the series; publish that release again"
            continue
        if there.place >= release.place:
            yield f"{revision}: {MANIFEST}: its parent {name} is not before it; the two are exchanged: publish both again"
        if parent.get("weights_sha256") != there.entry.weights_sha256:
            yield (
                f"{revision}: {MANIFEST}: its parent {name} had weights_sha256={parent.get('weights_sha256')}, {name} here has "
                f"{there.entry.weights_sha256}; it was exchanged since: publish {name} again from its run"
            )


def _progress(ordered: list[tuple[str, Known]]) -> Iterator[str]:
    for (a, first), (b, second) in pairwise(ordered):
        if first.place == second.place:
            yield f"{b}: step {second.entry.step} of stage {second.entry.stage} is also {a}; remove the wrong one"
        elif first.entry.stage == second.entry.stage and first.entry.tokens >= second.entry.tokens:
            yield (
                f"{b}: {second.entry.tokens} tokens at step {second.entry.step}, but {a} had {first.entry.tokens} at step "
                f"{first.entry.step}; more steps see more tokens: publish the wrong one again"
            )
        if first.entry.stage == second.entry.stage and None not in (first.batch, second.batch) and first.batch != second.batch:
            yield f"{b}: {second.batch} tokens per step, {a} has {first.batch}; they are of different runs: use another stage"


def _one_model(ordered: list[tuple[str, Known]]) -> Iterator[str]:
    for (a, first), (b, second) in pairwise(ordered):
        if first.entry.stage == second.entry.stage and (first.model, first.shapes) != (second.model, second.shapes):
            found, wanted = (", ".join(map(str, release.model)) for release in (second, first))
            yield (
                f"{b}: another model than {a} in the same stage: {found} against {wanted}, or other shapes; "
                "publish it elsewhere or as another stage"
            )


# ---- what is missing ----------------------------------------------------------------------------------------------------


def _gaps(ordered: list[tuple[str, Known]]) -> Iterator[str]:
    """Steps that a regular series lacks. Log-spaced and last steps are no multiples of save_every and do not count."""
    stages: dict[int, list[Known]] = defaultdict(list)
    for _, release in ordered:
        stages[release.entry.stage].append(release)
    for stage, releases in stages.items():
        every = releases[-1].save_every
        steps = [release.entry.step for release in releases]
        regular = [step for step in steps if every and step > 0 and step % every == 0]
        if len(regular) < 2:
            continue
        spacing = math.gcd(*regular)
        missing = sorted(set(range(regular[0], regular[-1], spacing)) - set(regular))
        if missing and len(missing) < len(regular):
            yield (
                f"stage {stage}: a release every {spacing} steps, but none of step {', '.join(map(str, missing))}; publish what "
                "is missing, or name the revisions to verify with --revision"
            )


def index_problems(index: list[IndexEntry], releases: Mapping[str, Known], others: Iterable[str]) -> Iterator[str]:
    """Contradictions between `checkpoints.json` and the releases; `others` are there too, but were not looked at."""
    listed: dict[str, IndexEntry] = {}
    again = "any `olmo publish` to this target writes it anew"
    for entry in index:
        if entry.name in listed:
            yield f"{INDEX}: lists {entry.name} twice; {again}"
        listed[entry.name] = entry
    there = {*releases, *others}
    for name in listed.keys() - there:
        yield f"{INDEX}: lists {name}, which is not there; publish it again, or else {again}"
    for name in sorted(there - listed.keys()):
        yield f"{INDEX}: does not list {name}, which is there; {again}"
    for name in listed.keys() & releases.keys():
        said, found = listed[name], releases[name].entry
        for field, value in vars(said).items():
            if value != getattr(found, field):
                yield f"{INDEX}: {field}={value} for {name}, its {MANIFEST} says {getattr(found, field)}; {again}"


def main_problems(main: Release, releases: Mapping[str, Known], newest: str) -> Iterator[str]:
    """`main` must be the newest release, byte for byte."""
    again = "publish the newest release again"
    same = [name for name, release in releases.items() if release.entry.release_sha256 == main.sha256]
    if newest in releases and newest not in same:
        what = f"is {same[0]}" if same else f"calls itself {main.name} and is none of the releases"
        yield f"{MAIN}: {what}, the newest is {newest}; {again}"


# ---- the path through the weights ---------------------------------------------------------------------------------------


class Path:
    """Three checkpoints in a row must lie in a row: the way from the first to the last is the longest of the three.

    Weights drift, so distance grows with the number of steps between; two checkpoints exchanged turn the path back on itself.
    Only the first bytes of each tensor are compared, which are thousands of weights all over the model.
    """

    def __init__(self) -> None:
        self._last: list[tuple[str, int, Mapping[str, np.ndarray]]] = []

    def add(self, revision: str, stage: int, weights: Mapping[str, np.ndarray]) -> list[str]:
        """Add the next checkpoint by step; problems that it shows."""
        self._last = [entry for entry in self._last[-2:] if entry[1] == stage] + [(revision, stage, weights)]
        if len(self._last) < 3:
            return []
        (a, _, wa), (b, _, wb), (c, _, wc) = self._last
        ab, bc, ac = distance(wa, wb), distance(wb, wc), distance(wa, wc)
        if max(ab, bc) <= MARGIN * ac:
            return []
        problem = (
            f"{b}: does not lie between {a} and {c}: its weights (a sample) are {ab:.4g} from the former's and {bc:.4g} from the "
            f"latter's, which are {ac:.4g} apart; two of the three look exchanged: compare weights_sha256 with the run's"
        )
        return [problem]


def distance(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """Euclidean distance over the tensors that both have."""
    return math.sqrt(
        sum(float(np.square(a[name] - b[name]).sum()) for name in a.keys() & b.keys() if a[name].shape == b[name].shape)
    )
