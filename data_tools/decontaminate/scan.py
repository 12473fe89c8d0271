"""Documents against the n-grams of evaluation sets: first what is found, then, once all is known, the attributes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data_tools.datasets import AttributeWriter, DocumentFile
from data_tools.decontaminate.config import DecontaminateConfig
from data_tools.decontaminate.index import EvalIndex
from data_tools.decontaminate.words import grams, windows, words
from data_tools.documents import Line
from data_tools.files import LineWriter, lines_of
from data_tools.work.part import PartContext

Hit = tuple[int, int, int]
"""First character, last (exclusive), number of the n-gram."""


def attribute_names(name: str) -> list[str]:
    """All that the stage may write."""
    return [f"{name}__ngram__{kind}" for kind in ("overlap", "fraction")]


def scan_file(context: PartContext, config: DecontaminateConfig) -> None:
    """Phase 3: the hits of every document of one file -> hits/<part>.jsonl.zst; how many documents have each n-gram -> found/."""
    file: DocumentFile = context.part.payload
    index = _index(context.folder)
    found: list[np.ndarray] = []
    output = context.output(context.folder / "hits" / f"{context.part.name}.jsonl.zst")
    with LineWriter(output) as writer:
        for line in context.read(file.path):
            hits, size = hits_of(line, index, config)
            if hits:
                found.append(np.unique(np.array([hit[2] for hit in hits], np.int64)))
            writer.write(msgspec.json.encode([line.id, line.source, line.line, size, hits]))
    numbers, documents = np.unique(np.concatenate([np.empty(0, np.int64), *found]), return_counts=True)
    with open(context.output(context.folder / "found" / f"{context.part.name}.npy"), "wb") as out:
        np.save(out, np.stack([numbers, documents]))


_opened: dict[Path, EvalIndex] = {}


def _index(folder: Path) -> EvalIndex:
    """Opened once per process."""
    if folder not in _opened:
        _opened[folder] = EvalIndex(folder / "index")
    return _opened[folder]


def hits_of(line: Line, index: EvalIndex, config: DecontaminateConfig) -> tuple[list[Hit], int]:
    """N-grams of items in a document, in order, and its characters."""
    found: set[Hit] = set()
    size = 0
    for text, at in windows(line, config.ngram):
        hashes, starts, ends, chars = words(text)
        size = at + chars
        for n in index.facts["lengths"]:
            where, numbers = index.find(grams(hashes, n))
            if len(where):
                spans = zip(starts[where] + at, ends[where + n - 1] + at, numbers, strict=True)
                found.update((int(start), int(end), int(number)) for start, end, number in spans)
    return sorted(found), size


def sum_found(context: PartContext, parts: list[str]) -> None:
    """Phase 4: documents of the corpus that have each n-gram -> index/documents.npy, uint32 (n-grams of the items,)."""
    total = np.zeros(len(_index(context.folder).keys), np.uint32)
    for part in parts:
        numbers, documents = np.load(context.folder / "found" / f"{part}.npy")
        total[numbers] += documents.astype(np.uint32)
    with open(context.output(context.folder / "index" / "documents.npy"), "wb") as out:
        np.save(out, total)


def write_attributes(context: PartContext, config: DecontaminateConfig) -> None:
    """Phase 5: hits -> attributes of one file, and a line in contaminated/ for each document that has any."""
    file: DocumentFile = context.part.payload
    documents = np.load(context.folder / "index" / "documents.npy", mmap_mode="r")
    writer = AttributeWriter(context.output(file.attributes(config.name)))
    overlap, fraction = attribute_names(config.name)
    n = contaminated = characters = 0
    for document_id, source, line, size, hits in _read_hits(context.folder / "hits" / f"{context.part.name}.jsonl.zst"):
        if config.max_documents is not None:
            hits = [hit for hit in hits if documents[hit[2]] <= config.max_documents]
        attributes: dict[str, list[list[Any]]] = {fraction: [[0, size, 0.0]]}
        if hits:
            spans = merge([(start, end) for start, end, _ in hits])
            covered = sum(end - start for start, end in spans)
            attributes = {overlap: [[start, end, 1.0] for start, end in spans], fraction: [[0, size, covered / size]]}
            numbers = sorted({hit[2] for hit in hits})
            values = {"id": document_id, "source": source, "path": str(file.path), "line": line, "ngrams": numbers}
            context.write_line("contaminated", values | {"characters": covered, "size": size})
            contaminated, characters = contaminated + 1, characters + covered
        writer.write(document_id, source, attributes)
        n += 1
    writer.close()
    context.counts.update(documents_in=n, contaminated_documents=contaminated, contaminated_characters=characters)
    context.tick(context.part.size)


def _read_hits(path: Path) -> Iterator[tuple[str, str, int, int, list[Hit]]]:
    for raw in lines_of(path):
        yield msgspec.json.decode(raw, type=tuple[str, str, int, int, list[Hit]])


def merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans, joined where they touch or overlap."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
