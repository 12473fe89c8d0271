"""Dolma's layout of a dataset: documents, and what was found out about them, in files of the same names.

<dataset>/documents/**.jsonl.zst           one document a line
<dataset>/attributes/<name>/**.jsonl.zst   one line for each line of the documents, in the same order
<dataset>/stages/<stage>/                  how each came about (work/stage.py)
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from data_tools.documents import find_files
from data_tools.files import CutShortError, LineWriter, lines_of, shortened
from olmo_train.errors import ShardError

Span = Sequence[Any]
"""[start, end, score]: characters (Unicode code points) of the text, end-exclusive, and a number."""
Attributes = Mapping[str, Sequence[Span]]
"""Name to spans. Dolma's names are <experiment>__<tagger>__<type>."""

MOST_PART_NAME = 150
"""Bytes: with a phase before and endings behind it, it still is a file name."""


@dataclass(frozen=True)
class DocumentFile:
    """One file of documents."""

    dataset: str
    """Folder that has `documents/`."""
    name: str
    """Path below `documents/`; of a file that has no such folder above it: its name."""

    @property
    def path(self) -> Path:
        """Of the documents."""
        inner = Path(self.dataset, "documents", self.name)
        return inner if inner.is_file() else Path(self.dataset, self.name)

    def attributes(self, name: str) -> Path:
        """The file of attributes that belongs to it."""
        return Path(self.dataset, "attributes", name, self.name)

    @property
    def part_name(self) -> str:
        """Of the part that works on it, unless it must be told from others: see `part_names`."""
        return self.name.replace("/", "__")


def find_document_files(patterns: list[str]) -> list[DocumentFile]:
    """Files that the patterns name (see find_files), with their datasets; without what stages wrote beside documents.

    Raises:
        ShardError: a pattern matches nothing, a file is given twice, or has a name that is not UTF-8.
    """
    found: dict[str, Path] = {}
    for path in find_files(patterns):
        if _is_made(path):
            continue
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ShardError(f"documents: {str(path)!r} has a name that is not UTF-8; rename it") from None
        first = found.setdefault(os.path.realpath(path), path)
        if first is not path:
            raise ShardError(f"documents: {first} and {path} are the same file; give it once")
    if not found:
        raise ShardError(f"documents: {', '.join(patterns)} hold attributes and records of stages, but no documents")
    return [_place(path) for path in found.values()]


def _is_made(path: Path) -> bool:
    """Whether a stage wrote it into a folder of documents that has no `documents/`: else the next stage would read it as such."""
    parts = path.parts
    for i in range(len(parts) - 3, -1, -1):
        if parts[i] == "documents":
            return False
        above = Path(*parts[:i])
        if parts[i] == "attributes" and Path(above, *parts[i + 2 :]).is_file():
            return True
        if parts[i] == "stages" and Path(above, *parts[i : i + 2], "stage.json").is_file():
            return True
    return False


def _place(path: Path) -> DocumentFile:
    parts = path.parts
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "documents":
            return DocumentFile(str(Path(*parts[:i])) if i else ".", "/".join(parts[i + 1 :]))
    return DocumentFile(str(path.parent), path.name)


def part_names(files: list[DocumentFile]) -> list[str]:
    """A name for the part of each file; files of one name in several datasets get a number in front.

    Long ones, and those of two files (a/b and a__b), end in a hash: names of records are made from them.
    """
    datasets = {dataset: number for number, dataset in enumerate(dict.fromkeys(file.dataset for file in files))}
    names = [file.part_name if len(datasets) == 1 else f"{datasets[file.dataset]:03d}__{file.part_name}" for file in files]
    times = Counter(names)
    return [
        name
        if times[name] == 1 and len(name.encode()) <= MOST_PART_NAME
        else f"{shortened(name, MOST_PART_NAME)}~{xxhash.xxh3_64_hexdigest(f'{file.dataset}/{file.name}'.encode())}"
        for name, file in zip(names, files, strict=True)
    ]


def stage_folder(files: list[DocumentFile], stage: str) -> Path:
    """Where a stage that writes attributes keeps its records: in the first dataset."""
    return Path(files[0].dataset, "stages", stage)


def output_problems(output: str, patterns: Sequence[str]) -> list[str]:
    """What is wrong with a folder to write into: in one that is read, its files would be read as well at the next start."""
    target, problems = os.path.realpath(output), []
    for pattern in dict.fromkeys(patterns):
        inner = Path(pattern, "documents")
        folder = inner if inner.is_dir() else Path(pattern)
        if folder.is_dir() and Path(target).is_relative_to(os.path.realpath(folder)):
            problems.append(f"output={output} lies in {folder}, which is read; give a folder elsewhere")
    return problems


# ---- attributes --------------------------------------------------------------------------------------------------------------


class _AttributeLine(msgspec.Struct, gc=False):
    id: str
    attributes: dict[str, list[list[Any]]]
    source: str | None = None


_decode = msgspec.json.Decoder(_AttributeLine).decode


class AttributeWriter:
    """Writes attributes in Dolma's format. `path` is usually a PartContext's output."""

    def __init__(self, path: Path) -> None:
        self._lines = LineWriter(path)

    def write(self, id: str, source: str, attributes: Attributes) -> None:
        """Of the next document. Names without a span may be left out."""
        self._lines.write(msgspec.json.encode({"id": id, "source": source, "attributes": attributes}))

    def close(self) -> None:
        """Everything is on disk."""
        self._lines.close()


def read_attributes(path: Path) -> Iterator[tuple[str, dict[str, list[list[Any]]]]]:
    """(id, attributes) line by line: those of another tool as well.

    Raises:
        ShardError: the file is missing, damaged, or a line is not Dolma's; names the line.
    """
    number = 0
    try:
        for raw in lines_of(path):
            number += 1
            found = _decode(raw)
            yield found.id, found.attributes
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: line {number} is no line of attributes: {error}; write them again") from None
    except CutShortError as error:
        raise ShardError(f"{path}: damaged after line {number}: {error}; write the attributes again") from None
    except FileNotFoundError:
        raise ShardError(f"{path} does not exist; attributes lie in files of the same names as their documents") from None
