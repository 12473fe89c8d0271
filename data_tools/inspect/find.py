"""A document through all stages: `olmo data find ID FOLDER [--source S] [--run runs/first]`.

Where it was ingested from, what taggers said of it, which document dedupe kept in its place, what rule dropped it, how its text
was changed, where it stands in shards, and which steps of a run saw it.
"""

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from data_tools.datasets import DocumentFile, find_document_files
from data_tools.documents import Line, read_lines
from data_tools.id_index import find_lines
from data_tools.inspect import when
from data_tools.inspect.document_at import attributes_at, lines_at, say_spans
from data_tools.inspect.lineage import KeptLine, Root, StageFolder, lineage, open_root
from data_tools.mix.parts import COPY
from data_tools.work.part import Record
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError, run_command

_COPY_ID = re.compile(rf"{COPY}\d+\Z")
BIG = 2**30
"""Bytes of documents without an index from which a scan is announced."""


@dataclass
class Searched:
    """What was looked at, for an honest `not found`."""

    roots: list[str] = field(default_factory=list)
    indexes: int = 0
    scanned: int = 0
    kept: int = 0
    """Files of dropped, rejected and duplicate lines."""

    def __str__(self) -> str:
        return (
            f"searched {', '.join(self.roots)}: {self.indexes:,} indexes of ids, {self.scanned:,} files of documents line by "
            f"line, {self.kept:,} files of what stages dropped, rejected or marked"
        )


def main(argv: list[str]) -> None:
    """Print the way of a document; exit status 2 if nothing knows it."""
    parser = argparse.ArgumentParser("olmo data find", description=__doc__)
    parser.add_argument("id", help="id of a document, or of a copy that `mix` made of it")
    parser.add_argument("folder", help="a dataset or shards; the datasets before it are found by themselves")
    parser.add_argument("--source", help="only documents of this source")
    parser.add_argument("--run", help="folder of a run: also the steps that saw it")
    args = parser.parse_args(argv)
    searched, n_found = Searched(), 0
    original = _COPY_ID.sub("", args.id)
    for root in lineage(args.folder):
        n_found += _Search(root, original, args.source, searched).print()
    if not n_found:
        source = f" of source {args.source!r}" if args.source is not None else ""
        raise ConfigError(f"{args.id!r}{source}: not found; {searched}")
    if args.run is not None:
        print(f"{args.run}:")
        when.main([args.run, args.id])


def documents_of(folder: Path, document_id: str) -> list[tuple[DocumentFile, Line]]:
    """Every document of one dataset with this id, by its indexes where they are there."""
    return _Search(open_root(folder), document_id, None, Searched()).documents()


class _Search:
    """One id in one root."""

    def __init__(self, root: Root, document_id: str, source: str | None, searched: Searched) -> None:
        self.root, self.id, self.source, self.searched = root, document_id, source, searched
        self._needle = msgspec.json.encode(document_id)
        self._within = msgspec.json.encode(self._needle.decode())[1:-1]
        """The same in a line that is itself a string of JSON, as quarantine keeps them."""

    def print(self) -> int:
        """Everything that is known of it here; returns how many places that were."""
        self.searched.roots.append(str(self.root.path))
        told: list[str] = []
        if (self.root.path / "documents").is_dir():
            for file, line in self.documents():
                told += self._document(file, line)
        for stage in self.root.stages:
            for kind in stage.kinds():
                self.searched.kept += sum(1 for _ in (stage.folder / kind).glob("*.jsonl.zst"))
                told += [text for line in stage.kept(kind) for text in self._kept(stage, line)]
        if self.root.is_shards:
            told += self._shards()
        if told:
            print(f"{self.root.path}:")
            print("\n".join(f"  {text}" for text in told))
        return len(told)

    # ---- documents -------------------------------------------------------------------------------------------------------

    def documents(self) -> list[tuple[DocumentFile, Line]]:
        """With their files."""
        try:
            files = find_document_files([str(self.root.path)])
        except ShardError:
            return []  # records only
        indexes = self._indexes(files)
        unindexed = [file for file in files if file.name not in indexes]
        size = sum(file.path.stat().st_size for file in unindexed)
        if size >= BIG:
            print(f"{self.root.path}: {size / 1e9:,.1f} GB without an index of ids are read line by line", file=sys.stderr)
        self.searched.indexes += len(indexes)
        self.searched.scanned += len(unindexed)
        numbers = self._numbers({file.name: indexes[file.name] for file in files if file.name in indexes})
        found = []
        for file in files:
            at = numbers.get(file.name, [])
            lines = lines_at(file.path, at) if file.name in indexes else read_lines(file.path, lambda reject: None)
            found += [(file, line) for line in lines if self._is_it(line.id) and self.source in (None, line.source)]
        return found

    def _numbers(self, indexes: dict[str, Path]) -> dict[str, list[int]]:
        """Lines of each file that may have the id, or that of one of its copies, which are numbered from 2 without a gap."""
        found: dict[str, list[int]] = {}
        number = 1
        while True:
            word = self.id if number == 1 else f"{self.id}{COPY}{number}"
            there = {name: lines for name, index in indexes.items() if (lines := find_lines(index, word))}
            for name, lines in there.items():
                found[name] = [*found.get(name, []), *lines]
            if not there and number > 1:
                return found
            number += 1

    def _is_it(self, document_id: str) -> bool:
        copy = document_id.removeprefix(self.id)
        return document_id.startswith(self.id) and (not copy or (copy.startswith(COPY) and copy.removeprefix(COPY).isdigit()))

    def _indexes(self, files: list[DocumentFile]) -> dict[str, Path]:
        """The index of ids that a stage left for each file of documents, where it fits the file's part."""
        names = {name: file.name for file in files for name in (file.name, file.part_name)}
        found = {}
        for stage in self.root.stages:
            for path in stage.outputs:
                if path.suffix != ".idx" or not path.is_relative_to(stage.folder / "ids") or not path.exists():
                    continue
                stem = str(path.relative_to(stage.folder / "ids"))[: -len(".idx")]
                if stem in names:
                    found[names[stem]] = path
        return found

    def _document(self, file: DocumentFile, line: Line) -> list[str]:
        characters = sum(len(piece) for piece in line.pieces())
        told = [f"{line.id!r}, a document of source {line.source!r}: {file.path} line {line.line}, {characters:,} characters"]
        values = line.values()
        told += [f"  {name}: {_short(values[name])}" for name in ("added", "created", "metadata") if values.get(name)]
        writer = _writer(self.root, file)
        if writer is not None:
            stage, record = writer
            read = ", ".join(record.inputs) or "other parts of the stage"
            told.append(f"  written by {stage.name}, part {record.name}, from {_short(read)}")
        spans = attributes_at(file, line.line, line.id)
        told += [f"  {name}: {say_spans(each, characters)}" for name, each in sorted(spans.items()) if each]
        return told

    # ---- what stages left ------------------------------------------------------------------------------------------------

    def _kept(self, stage: StageFolder, line: KeptLine) -> list[str]:
        if self._needle not in line.raw and self._within not in line.raw:
            return []
        values = msgspec.json.decode(line.raw)
        if line.kind == "quarantine":
            if not _rejected_id(values, self.id):
                return []
        elif not _names(values, self.id, self.source):
            return []
        place = f"{line.path} line {line.line}"
        facts = {name: value for name, value in values.items() if name not in ("raw", "raw_base64")}
        told = [f"{stage.name}: {line.kind} ({place})"]
        return [*told, *(f"  {name}: {_short(value)}" for name, value in facts.items())]

    # ---- shards ----------------------------------------------------------------------------------------------------------

    def _shards(self) -> list[str]:
        corpus, told = Corpus(self.root.path), []
        places, copy = corpus.find_document(self.id), 2
        while copies := corpus.find_document(f"{self.id}{COPY}{copy}"):
            places, copy = [*places, *copies], copy + 1
        for number, ordinal in places:
            file = corpus.files[number]
            if self.source not in (None, file.entry.source):
                continue
            row = file.index.row(ordinal)
            split = "held out" if file.index.train_position(row.start) is None else "train"
            told.append(
                f"{row.id!r} in shards, source {file.entry.source!r}: file {number} ({file.entry.path}), tokens "
                f"[{row.start}, {row.end}), {split}; from {row.src} line {row.loc}"
            )
        self.searched.indexes += len(corpus.files)
        return told


def _writer(root: Root, file: DocumentFile) -> tuple[StageFolder, Record] | None:
    """The stage and part that wrote a file of documents."""
    for stage in root.stages:
        for _, record in stage.records():
            if any(stage.output(name) == file.path for name in record.outputs):
                return stage, record
    return None


def _names(values: Any, document_id: str, source: str | None) -> bool:
    """Whether an object, or one in it, is about this document."""
    if isinstance(values, dict):
        if values.get("id") == document_id and (source is None or values.get("source", source) == source):
            return True
        return any(_names(inner, document_id, source) for inner in values.values() if isinstance(inner, (dict, list)))
    return isinstance(values, list) and any(_names(inner, document_id, source) for inner in values)


def _rejected_id(values: dict[str, Any], document_id: str) -> bool:
    """Whether a rejected line spells this id out."""
    raw = values.get("raw")
    return isinstance(raw, str) and msgspec.json.encode(document_id).decode() in raw


def _short(value: Any) -> str:
    """A value in one line of a terminal, without what would move its cursor."""
    told = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    told = "".join(c if c.isprintable() else repr(c)[1:-1] for c in told)
    return told if len(told) <= 300 else f"{told[:297]}..."


if __name__ == "__main__":
    raise SystemExit(run_command(main))
