"""Near-duplicates by MinHash: documents in, attributes, clusters and what was removed in favour of which document out.

Phases: signatures (a part per file) -> candidates (per range of band keys) -> edges (per range of documents) -> clusters.py ->
members (per range of clusters) -> attributes (per file). What lies between them are tables of sorted pairs below `scratch/`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.datasets import AttributeWriter, DocumentFile, part_names
from data_tools.dedupe.clusters import Table, connect, ranges_of, written
from data_tools.dedupe.config import DedupeConfig, MinhashConfig
from data_tools.dedupe.signatures import (
    DOCUMENT,
    NO_DOCUMENT,
    Scratch,
    file_and_line,
    number_of,
    place_of,
    write_signatures,
)
from data_tools.dedupe.sorted_pairs import PairWriter, pairs_in_memory, read_groups, read_pairs, unique_pairs
from data_tools.work.counts import Counts, add_counts, count
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Stage

WINDOW = 2**14
"""Lines of a file whose clusters are looked up at once."""


def minhash_problems(config: MinhashConfig) -> list[str]:
    """What is wrong with these fields."""
    problems = []
    for name, most in (("shingle", 1000), ("bands", 256), ("rows", 64)):
        value = getattr(config, name)
        if not 1 <= value <= most:
            problems.append(f"minhash.{name}={value} is not in 1 .. {most}")
    if not 0 <= config.min_similarity <= 1:
        problems.append(f"minhash.min_similarity={config.min_similarity} is not in [0, 1]")
    if config.seed < 0:
        problems.append(f"minhash.seed={config.seed} must not be negative")
    if config.tokenizer is not None and not Path(config.tokenizer).is_file():
        problems.append(f"minhash.tokenizer={config.tokenizer} does not exist; give a tokenizer.json, or null for words")
    return problems


def run_minhash(stage: Stage, files: list[DocumentFile], config: DedupeConfig) -> Counts:
    """All phases, in a stage that is open; returns the totals. `scratch` in its folder is not needed afterwards."""
    folder, most, names = stage.folder / "scratch", pairs_in_memory(config.memory_mb), part_names(files)
    scratch = Scratch(folder / "signatures", names, config.minhash, list(config.priority))
    parts = [Part(n, (i, f), f.path.stat().st_size) for i, (n, f) in enumerate(zip(names, files, strict=True))]
    records = stage.run("signatures", parts, write_signatures, scratch)
    sources = [list(record.counts["by_source"]) for record in records]

    table = Table([scratch.path(i, "keys") for i in range(len(files))], folder / "candidates", most)
    ranges = ranges_of(table)
    stage.run("candidates", ranges, find_candidates, table)
    table = Table(written(table, ranges), folder / "edges", most)
    ranges = ranges_of(table)
    edge_records = stage.run("edges", ranges, find_edges, (table, scratch))
    table = Table(connect(stage, written(table, ranges), folder, most), folder / "members", most)
    ranges = ranges_of(table)
    member_records = stage.run("members", ranges, find_members, table)

    members = Members(folder / "members", [part.name for part in ranges])
    shared = _Attributes(config.name, scratch, members, [str(file.path) for file in files], sources)
    return _totals([records, edge_records, member_records, stage.run("attributes", parts, write_attributes, shared)])


def _totals(phases: Sequence[Sequence[Any]]) -> Counts:
    signatures, *others = phases
    read: Counts = {}
    for record in signatures:
        add_counts(read, record.counts)
    totals: Counts = {
        "documents_in": read.get("documents", 0),
        "text_bytes_in": read.get("text_bytes", 0),
        **{name: read.get(name, 0) for name in ("documents_without_words", "short_documents")},
    }
    for record in chain.from_iterable(others):
        add_counts(totals, record.counts)
    return totals


# ---- pairs that share a band ---------------------------------------------------------------------------------------------------


def find_candidates(context: PartContext, table: Table) -> None:
    """Phase: of the documents that share a key, each with the first of them: never all pairs. Written: (place, number
    of the first)."""
    writer = PairWriter(context.output(table.folder / f"{context.part.name}.pairs"))
    for block in read_groups(table.files, context.part.payload, table.most):
        is_other = block.values != block.smallest
        writer.add(*unique_pairs(place_of(block.values[is_other]), block.smallest[is_other]))
    writer.close()


def find_edges(context: PartContext, shared: tuple[Table, Scratch]) -> None:
    """Phase: each candidate pair once, if the two are similar enough. Pairs of (number, smaller number)."""
    table, scratch = shared
    writer = PairWriter(context.output(table.folder / f"{context.part.name}.pairs"))
    least = scratch.config.min_similarity
    counts = {"candidate_pairs": 0, "similar_pairs": 0}
    for block in read_groups(table.files, context.part.payload, table.most):
        places, firsts = unique_pairs(block.keys, block.values)
        counts["candidate_pairs"] += len(places)
        if least > 0:
            is_similar = scratch.similarities(places, place_of(firsts)) >= least
            places, firsts = places[is_similar], firsts[is_similar]
        counts["similar_pairs"] += len(places)
        writer.add(number_of(places), firsts)
    writer.close()
    context.counts.update(counts)


# ---- who is in which cluster ---------------------------------------------------------------------------------------------------


def find_members(context: PartContext, table: Table) -> None:
    """Phase: of each document in a cluster, by its place, the number of the one that is kept, and the size of the cluster."""
    kept = PairWriter(context.output(table.folder / f"{context.part.name}.kept"))
    sizes = PairWriter(context.output(table.folder / f"{context.part.name}.sizes"))
    clusters = 0
    for block in read_groups(table.files, context.part.payload, table.most):
        is_star = block.smallest > block.keys
        roots, nodes, size = block.keys[is_star], block.values[is_star], block.sizes[is_star] + 1
        heads = block.firsts[is_star[block.firsts]]
        clusters += len(heads)
        places = place_of(np.concatenate([block.keys[heads], nodes]))
        kept.add(places, np.concatenate([block.keys[heads], roots]))
        sizes.add(places, np.concatenate([block.sizes[heads] + 1, size]).astype(np.uint64))
    kept.close()
    sizes.close()
    context.counts["clusters"] = clusters


@dataclass(frozen=True)
class Members:
    """The tables that `find_members` wrote."""

    folder: Path
    parts: list[str]

    def of_lines(self, file: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(line, number of the kept document, size of the cluster) of the lines in [first, last] that are in clusters."""
        low, high = file << 40 | first << 8, file << 40 | last << 8 | 255
        places, kept = read_pairs([self.folder / f"{part}.kept" for part in self.parts], low, high)
        sizes = read_pairs([self.folder / f"{part}.sizes" for part in self.parts], low, high)[1]
        lines = (places >> np.uint64(8) & np.uint64(0xFFFFFFFF)).tolist()
        yield from zip(lines, kept.tolist(), sizes.tolist(), strict=True)


@dataclass(frozen=True)
class _Attributes:
    name: str
    scratch: Scratch
    members: Members
    paths: list[str]
    sources: list[list[str]]
    """Of each file."""


@dataclass
class _Twin:
    """What is known of a document in a cluster."""

    kept: int
    size: int
    is_kept: bool
    similarity: float = 1.0
    kept_id: str = ""
    kept_source: int = 0
    """Number among the sources of its file."""


def write_attributes(context: PartContext, shared: _Attributes) -> None:
    """Phase: attributes of one file, a line for each document, and what was removed in favour of which document.

    `cluster_size` of a document in a cluster; of those that are not kept `duplicate`, 1, and `similarity` to the kept one.

    Text is not read again. `payload`: (number of the file, DocumentFile).
    """
    number, file = context.part.payload
    scratch, path, sources = shared.scratch, str(file.path), shared.sources[number]
    writer = AttributeWriter(context.output(file.attributes(shared.name)))
    prefix = f"{shared.name}__minhash__"
    by_source = context.counts.setdefault("by_source", {})
    for first, documents, ids in _windows(scratch, number):
        twins = _twins(shared, number, first, first + len(documents) - 1)
        for line, ((_, n_bytes, n_chars, source), id) in enumerate(zip(documents.tolist(), ids, strict=True), first):
            if source == NO_DOCUMENT:
                continue
            twin = twins.get(line)
            attributes = {}
            if twin is not None:
                attributes[f"{prefix}cluster_size"] = [[0, n_chars, float(twin.size)]]
            if twin is not None and not twin.is_kept:
                attributes[f"{prefix}duplicate"] = [[0, n_chars, 1.0]]
                attributes[f"{prefix}similarity"] = [[0, n_chars, round(twin.similarity, 3)]]
                place = {"id": id, "source": sources[source], "path": path, "line": line + 1}
                context.write_line("duplicates", {**place, **_told(twin, shared)})
                _add(context.counts, "duplicate", n_bytes)
            else:
                _add(context.counts, "out", n_bytes)
                counts = by_source.setdefault(sources[source], {})
                count(counts, "documents", 1)
                count(counts, "text_bytes", n_bytes)
            writer.write(id, sources[source], attributes)
    writer.close()


def _add(counts: Counts, what: str, n_bytes: int) -> None:
    count(counts, f"documents_{what}", 1)
    count(counts, f"text_bytes_{what}", n_bytes)


def _told(twin: _Twin, shared: _Attributes) -> dict[str, Any]:
    file, line = file_and_line(int(place_of(np.uint64(twin.kept))))
    return {
        "reason": "minhash",
        "kept": {
            "id": twin.kept_id,
            "source": shared.sources[file][twin.kept_source],
            "path": shared.paths[file],
            "line": line + 1,
        },
        "similarity": round(twin.similarity, 3),
        "cluster": f"{twin.kept:016x}",
        "cluster_size": twin.size,
    }


def _windows(scratch: Scratch, number: int) -> Iterator[tuple[int, np.ndarray, list[str]]]:
    """(first line, documents, ids) of consecutive lines of a file."""
    first = end = 0
    with open(scratch.path(number, "documents"), "rb") as documents, open(scratch.path(number, "ids"), "rb") as ids:
        while data := documents.read(WINDOW * DOCUMENT.itemsize):
            found = np.frombuffer(data, DOCUMENT)
            ends = found["id_end"].tolist()
            blob = ids.read(ends[-1] - end)
            starts = [0, *(each - end for each in ends)]
            yield first, found, [blob[a:b].decode() for a, b in pairwise(starts)]
            first, end = first + len(found), ends[-1]


def _twins(shared: _Attributes, file: int, first: int, last: int) -> dict[int, _Twin]:
    """By line: the documents that are in clusters."""
    found: dict[int, _Twin] = {}
    removed: list[int] = []
    places: list[int] = []
    for line, kept, size in shared.members.of_lines(file, first, last):
        kept_place = int(place_of(np.uint64(kept)))
        is_kept = kept_place >> 8 == (file << 32 | line)
        found[line] = _Twin(kept, size, is_kept)
        if not is_kept:
            removed.append(line)
            places.append(kept_place)
    kept_places = np.array(places, np.uint64)
    own = np.array([file << 40 | line << 8 for line in removed], np.uint64)
    similarities, names = shared.scratch.similarities(own, kept_places), shared.scratch.names_of(kept_places)
    for line, similarity, (id, source) in zip(removed, similarities.tolist(), names, strict=True):
        twin = found[line]
        twin.similarity, twin.kept_id, twin.kept_source = similarity, id, source
    return found
