"""The n-grams of evaluation sets: which items have which, kept as arrays that every process maps.

keys.npy     uint64, sorted: every n-gram once
filter.npy   uint8: a bit for each, by its lowest bits; most n-grams of a corpus end here
items.npy    int64 (items + 1,): where the n-grams of each item begin in members.npy
members.npy  uint32: numbers of n-grams, item by item
items.json   task and id of each item; per task the items that are too short and the n-grams left out
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_tools.decontaminate.config import DecontaminateConfig
from data_tools.decontaminate.eval_sets import EvalFile, read_items
from data_tools.decontaminate.word_kernels import fill_filter, maybe_there
from data_tools.decontaminate.words import keys_of_item
from data_tools.work.part import PartContext
from olmo_train.errors import ShardError

NONE = np.uint32(2**32 - 1)
BITS_PER_KEY = 32
"""Of the filter: one n-gram in 32 of those that are not there goes on to the binary search."""


@dataclass(frozen=True)
class EvalIndex:
    """Reader. Everything is memory-mapped."""

    folder: Path

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64, sorted."""
        return np.load(self.folder / "keys.npy", mmap_mode="r")

    @cached_property
    def filter(self) -> np.ndarray:
        """uint8; in memory, because it is read at random places."""
        return np.load(self.folder / "filter.npy")

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 (items + 1,)."""
        return np.load(self.folder / "items.npy")

    @cached_property
    def members(self) -> np.ndarray:
        """uint32."""
        return np.load(self.folder / "members.npy", mmap_mode="r")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """items: [[task, id], ...]; tasks: {task: {items, short_items, left_out}}; lengths: of the n-grams."""
        values: dict[str, Any] = json.loads((self.folder / "items.json").read_text())
        return values

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `keys` that are n-grams of an item, and the numbers of those n-grams."""
        maybe = np.empty(len(keys), np.int64)
        maybe = maybe[: maybe_there(keys, self.filter, maybe)]
        if not len(maybe):
            return maybe, maybe
        numbers = np.searchsorted(self.keys, keys[maybe])
        there = numbers < len(self.keys)
        there[there] = self.keys[numbers[there]] == keys[maybe][there]
        return maybe[there], numbers[there]


def read_eval_file(context: PartContext, config: DecontaminateConfig) -> None:
    """Phase 1: the n-grams of one file of items -> items-of-files/<part>.npz."""
    file: EvalFile = context.part.payload
    ids: list[str] = []
    hashes: dict[int, None] = {}
    members: list[np.ndarray] = []
    lengths: set[int] = set()
    for item in read_items(file):
        context.record.lines += 1
        key = hash_texts(item.texts)
        if key in hashes:  # requests repeat their document, once for each of its choices
            continue
        hashes[key] = None
        ids.append(item.id)
        found = [keys_of_item(text, config.ngram, config.min_words) for text in item.texts]
        lengths.update(n for _, n in found)
        members.append(np.unique(np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in found)])))
    output = context.output(context.folder / "items-of-files" / f"{context.part.name}.npz")
    with open(output, "wb") as out:
        np.savez(
            out, keys=np.concatenate([np.empty(0, np.uint64), *members]), sizes=np.array([len(m) for m in members], np.int64),
            ids=np.array(json.dumps(ids)), hashes=np.array(list(hashes), np.uint64), lengths=np.array(sorted(lengths), np.int64),
        )  # fmt: skip
    context.counts.update(items=len(ids))
    context.tick(context.part.size)


def hash_texts(texts: list[str]) -> int:
    """Equal for the same item in several files of a task, which have other shots and formats."""
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode("utf-8", "replace"))


def join_items(context: PartContext, shared: tuple[DecontaminateConfig, list[tuple[EvalFile, str]]]) -> None:
    """Phase 2: one index of all files. Memory: 20 bytes per n-gram of the items and what `memory_mb` leaves for sorting.

    Raises:
        ShardError: no item has an n-gram: nothing would ever be found.
    """
    config, files = shared
    items = _Items()
    for file, part in files:
        items.add(file.task, context.folder / "items-of-files" / f"{part}.npz")
    keys, owner = items.joined()
    most = config.max_items or len(items.names)
    unique, numbers = _number(keys, owner, items, most, max(context.memory_mb * 2**20 // 4 // 60, 10_000))
    kept = numbers != NONE
    if not kept.any():
        raise ShardError(
            f"{config.name}: no item of {len(files)} files has {config.min_words} words, so nothing could ever be found; give "
            "other tasks or items, or a smaller min_words"
        )
    bits = 1 << max(int(len(unique) * BITS_PER_KEY - 1).bit_length(), 10)
    filter_bits = np.zeros(bits // 8, np.uint8)
    fill_filter(unique, filter_bits)
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(items.names)))]).astype(np.int64)
    arrays = {"keys": unique, "filter": filter_bits, "items": starts, "members": numbers[kept]}
    for name, array in arrays.items():
        with open(context.output(context.folder / "index" / f"{name}.npy"), "wb") as out:
            np.save(out, array)
    facts = {"items": items.names, "tasks": items.tasks, "lengths": sorted(items.lengths)}
    context.output(context.folder / "index" / "items.json").write_text(json.dumps(facts))
    context.counts.update(items=len(items.names), ngrams=len(unique))


class _Items:
    """The items of all files, each once per task."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.tasks: dict[str, dict[str, int]] = {}
        self.lengths: set[int] = set()
        self._seen: dict[str, set[int]] = {}
        self._keys: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []

    def add(self, task: str, path: Path) -> None:
        """Those of a file that no file of the task had before."""
        with np.load(path) as found:
            hashes, keys, sizes = found["hashes"], found["keys"], found["sizes"]  # each is read once, and whole
            ids: list[str] = json.loads(str(found["ids"]))
            self.lengths.update(found["lengths"].tolist())
        seen = self._seen.setdefault(task, set())
        is_new = np.array([int(text_hash) not in seen for text_hash in hashes], bool)
        seen.update(int(text_hash) for text_hash in hashes)
        counts = self.tasks.setdefault(task, {"items": 0, "short_items": 0, "left_out": 0})
        counts["items"] += int(is_new.sum())
        counts["short_items"] += int((sizes[is_new] == 0).sum())
        self.names += [[task, name] for name, new in zip(ids, is_new, strict=True) if new]
        self._keys.append(keys[np.repeat(is_new, sizes)])
        self._sizes.append(sizes[is_new])

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys (uint64) of all items, one after the other, and the item (int32) of each."""
        sizes = np.concatenate([np.empty(0, np.int64), *self._sizes])
        keys = np.concatenate([np.empty(0, np.uint64), *self._keys])
        self._keys.clear()
        return keys, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def _number(keys: np.ndarray, owner: np.ndarray, items: _Items, most: int, at_once: int) -> tuple[np.ndarray, np.ndarray]:
    """The different keys in order, and the number (uint32) of each key; NONE for those in more than `most` items of one task.

    Works on about `at_once` keys at a time: a range of their values after the other.
    """
    ranges = max(-(-len(keys) // at_once), 1)
    tasks = list(items.tasks)
    number = {name: i for i, name in enumerate(tasks)}
    task_of_item = np.array([number[task] for task, _ in items.names], np.int32)
    bounds = [np.uint64(i * (2**64 // ranges)) for i in range(ranges)]
    numbers, unique, n = np.full(len(keys), NONE, np.uint32), [np.empty(0, np.uint64)], 0
    for i, first in enumerate(bounds):
        inside = keys >= first
        if i + 1 < ranges:
            inside &= keys < bounds[i + 1]
        where = np.flatnonzero(inside)
        some, task = keys[where], task_of_item[owner[where]]
        kept, left_out = _without_wording(some, task, most)
        for j, count in zip(*np.unique(left_out, return_counts=True), strict=True):
            items.tasks[tasks[j]]["left_out"] += int(count)
        different, inverse = np.unique(some[kept], return_inverse=True)
        numbers[where[kept]] = (inverse + n).astype(np.uint32)
        unique.append(different)
        n += len(different)
    return np.concatenate(unique), numbers


def _without_wording(keys: np.ndarray, task: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Which keys stand in at most `most` items of their task (every item has a key once); the task of each n-gram left out."""
    order = np.lexsort((task, keys))
    new = np.ones(len(order), bool)
    new[1:] = (keys[order][1:] != keys[order][:-1]) | (task[order][1:] != task[order][:-1])
    group = np.cumsum(new) - 1
    too_many = np.bincount(group, minlength=1)[group] > most if len(order) else np.empty(0, bool)
    kept = np.ones(len(keys), bool)
    kept[order[too_many]] = False
    return kept, task[order][new & too_many]
