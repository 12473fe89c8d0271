"""Connected components of a graph on disk: pairs (larger node, smaller node) in, stars (smallest node, other node) out.

A graph that fits into memory is done at once by union-find. A larger one by rounds of sorting: small star, then large star, until
nothing changes; each round is parts for any number of processes and machines, and each part holds one block of edges.
Source: R. Kiveris et al., Connected components in MapReduce and beyond, SoCC 2014 (alternating algorithm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.dedupe.minhash_kernels import connect_all
from data_tools.dedupe.sorted_pairs import MOST, PairWriter, count_pairs, read_groups, read_pairs, split_keys, unique_pairs
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Stage


@dataclass(frozen=True)
class Table:
    """What a part of a phase over a table of pairs works on; sent to the processes as `shared`."""

    files: list[Path]
    """Of the table that is read."""
    folder: Path
    """Of the table that is written."""
    most: int
    """Pairs of a block."""


def ranges_of(table: Table) -> list[Part]:
    """A part for each range of keys; its name tells the range, since another `most` makes other ranges."""
    spans = split_keys(table.files, table.most)
    size = 16 * count_pairs(table.files) // max(1, len(spans))  # they are of like size
    return [Part(f"{first:016x}-{last:016x}", (first, last), size) for first, last in spans]


def written(table: Table, parts: Sequence[Part]) -> list[Path]:
    """The files that the parts wrote."""
    return [table.folder / f"{part.name}.pairs" for part in parts]


def connect(stage: Stage, edges: list[Path], scratch: Path, most: int) -> list[Path]:
    """Find the components of a graph.

    Args:
        edges: a table of (larger node, smaller node).
        most: pairs that fit into memory.

    Returns: a table of (smallest node of a component, each other node of it), without repetitions. Of a large graph the
        same pairs are in it the other way round as well.
    """
    if count_pairs(edges) <= most:
        table = Table(edges, scratch / "connected", most)
        parts = [Part("all", (0, MOST), 16 * count_pairs(edges))]
        stage.run("connect", parts, connect_in_memory, table)
        return written(table, parts)
    number, stars = 0, edges
    while True:
        number += 1
        small = Table(stars, scratch / f"small-{number}", most)
        parts = ranges_of(small)
        changed = sum(record.counts["changed"] for record in stage.run(f"small-star-{number}", parts, small_star, small))
        large = Table(written(small, parts), scratch / f"large-{number}", most)
        parts = ranges_of(large)
        changed += sum(record.counts["changed"] for record in stage.run(f"large-star-{number}", parts, large_star, large))
        stars = written(large, parts)
        if not changed:
            return large.files


def connect_in_memory(context: PartContext, table: Table) -> None:
    """Phase: all edges at once."""
    larger, smaller = read_pairs(table.files, 0, MOST)
    nodes = np.unique(np.concatenate([larger, smaller]))
    parent = np.arange(len(nodes))
    connect_all(np.searchsorted(nodes, larger), np.searchsorted(nodes, smaller), parent)
    others = np.flatnonzero(parent != np.arange(len(nodes)))
    _write(context, table, nodes[parent[others]], nodes[others])


def _write(context: PartContext, table: Table, keys: np.ndarray, values: np.ndarray) -> None:
    writer = PairWriter(context.output(table.folder / f"{context.part.name}.pairs"))
    writer.add(keys, values)
    writer.close()


def small_star(context: PartContext, table: Table) -> None:
    """Phase: each node and its smaller neighbours become neighbours of the smallest of them. Edges are read as (larger,
    smaller) and written in both directions."""
    writer = PairWriter(context.output(table.folder / f"{context.part.name}.pairs"))
    changed = 0
    for block in read_groups(table.files, context.part.payload, table.most):
        moved = block.values != block.smallest
        changed += int(moved.sum())
        nodes = np.concatenate([block.keys[block.firsts], block.values[moved]])
        roots = np.concatenate([block.smallest[block.firsts], block.smallest[moved]])
        _write_edges(writer, nodes, roots, both=True)
    writer.close()
    context.counts["changed"] = changed


def large_star(context: PartContext, table: Table) -> None:
    """Phase: the larger neighbours of each node become neighbours of its smallest neighbour, or of itself if it is smaller.
    Edges are read in both directions and written as (larger, smaller)."""
    writer = PairWriter(context.output(table.folder / f"{context.part.name}.pairs"))
    changed = 0
    for block in read_groups(table.files, context.part.payload, table.most):
        is_larger = block.values > block.keys
        keys, values = block.keys[is_larger], block.values[is_larger]
        roots = np.minimum(block.smallest[is_larger], keys)
        changed += int((roots != keys).sum())
        _write_edges(writer, values, roots, both=False)
    writer.close()
    context.counts["changed"] = changed


def _write_edges(writer: PairWriter, nodes: np.ndarray, roots: np.ndarray, both: bool) -> None:
    nodes, roots = unique_pairs(nodes, roots)
    writer.add(nodes, roots)
    if both:
        writer.add(roots, nodes)
