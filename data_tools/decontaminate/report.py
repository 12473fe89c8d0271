"""Which items of which evaluation sets were found in the documents, and where."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data_tools.decontaminate.config import DecontaminateConfig
from data_tools.decontaminate.index import EvalIndex
from data_tools.files import lines_of
from data_tools.work.counts import Counts
from data_tools.work.part import PartContext

DIRTY = 0.8
"""Share of an item's n-grams from which it counts as found (Llama 2, arXiv 2307.09288, appendix A.6, of tokens there)."""


@dataclass(frozen=True)
class ItemFound:
    """An item of which something stands in the documents."""

    task: str
    id: str
    ngrams: int
    found: int
    documents: list[dict[str, Any]]
    """Some of those that have an n-gram of it: id, source, path, line."""


def write_report(context: PartContext, shared: tuple[DecontaminateConfig, list[str]]) -> None:
    """Phase 6: items.jsonl.zst (every item found, those with the largest share first) and counts by task."""
    config, parts = shared
    index = EvalIndex(context.folder / "index")
    documents = np.load(context.folder / "index" / "documents.npy")
    counts_as_found = documents > 0
    if config.max_documents is not None:
        counts_as_found &= documents <= config.max_documents
    members, starts = np.asarray(index.members), index.starts
    per_member = np.concatenate([[0], np.cumsum(counts_as_found[members])])
    found, sizes = per_member[starts[1:]] - per_member[starts[:-1]], np.diff(starts)
    places = _places(context.folder, parts, index, found > 0, config.documents_per_item)
    share = np.divide(found, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    for item in np.lexsort((np.arange(len(share)), -share)):
        if found[item]:
            task, name = index.facts["items"][item]
            values = {"task": task, "id": name, "ngrams": int(sizes[item]), "found": int(found[item])}
            context.write_line("items", values | {"documents": places.get(int(item), [])})
    context.counts["tasks"] = _by_task(index, found, share)


def _by_task(index: EvalIndex, found: np.ndarray, share: np.ndarray) -> Counts:
    tasks: Counts = {name: {**facts, "hit": 0, "dirty": 0} for name, facts in index.facts["tasks"].items()}
    for i, (task, _) in enumerate(index.facts["items"]):
        tasks[task]["hit"] += int(found[i] > 0)
        tasks[task]["dirty"] += int(share[i] >= DIRTY)
    return tasks


def _places(folder: Path, parts: list[str], index: EvalIndex, is_found: np.ndarray, most: int) -> dict[int, list[dict[str, Any]]]:
    """Up to `most` documents of each item that was found, in the order of files and lines."""
    owner = np.repeat(np.arange(len(index.starts) - 1), np.diff(index.starts))
    members = np.asarray(index.members)
    keep = is_found[owner]
    owner, members = owner[keep], members[keep]
    order = np.argsort(members, kind="stable")
    owner, members = owner[order], members[order]
    places: dict[int, list[dict[str, Any]]] = {}
    for part in parts:
        for document in _contaminated(folder / "contaminated" / f"attributes-{part}.jsonl.zst"):
            numbers = document.pop("ngrams")
            first, last = np.searchsorted(members, numbers), np.searchsorted(members, numbers, "right")
            for item in {int(owner[i]) for a, b in zip(first, last, strict=True) for i in range(a, b)}:
                there = places.setdefault(item, [])
                if len(there) < most:
                    there.append({name: document[name] for name in ("id", "source", "path", "line")})
    return places


def _contaminated(path: Path) -> Iterator[dict[str, Any]]:
    """Of one part; there is no file if no document of it is contaminated."""
    if path.exists():
        for raw in lines_of(path):
            yield msgspec.json.decode(raw)


def table(totals: Counts) -> list[str]:
    """Lines for a terminal."""
    tasks = totals["tasks"]
    width = max(len(name) for name in tasks)
    told = [f"  {'task':<{width}} {'items':>8} {'too short':>9} {'found':>8} {'dirty':>8}"]
    for name, row in tasks.items():
        told.append(f"  {name:<{width}} {row['items']:>8,} {row['short_items']:>9,} {row['hit']:>8,} {row['dirty']:>8,}")
    return told
