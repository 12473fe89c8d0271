"""Parts of a source: large files are cut, small ones put together, by sizes and names alone: every process plans the same."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from data_tools.ingest.config import SourceConfig
from data_tools.ingest.output import OutputOptions
from data_tools.work.part import Part


@dataclass(frozen=True)
class Piece:
    """A file, or a range of one."""

    path: str
    name: str
    """As ids are made of it."""
    start: int = 0
    stop: int | None = None
    """[start, stop): bytes of a file of lines, numbers of row groups of Parquet, rows of a dataset; None: to the end."""
    size: int = 0
    row: int = 0
    """Parquet: the number of the first row."""
    license_file: str | None = None


@dataclass(frozen=True)
class Job:
    """The payload of a part."""

    name: str
    """Of the source."""
    source: SourceConfig
    number: int
    pieces: list[Piece]


@dataclass
class Planned:
    """Of one source."""

    pieces: list[Piece] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shared:
    """What every part is given."""

    options: OutputOptions


def cut(path: str, name: str, size: int, part_bytes: int) -> list[Piece]:
    """Byte ranges of about `part_bytes`, equal to within a byte; one if the file is not much larger."""
    n = max(1, round(size / part_bytes))
    edges = [size * i // n for i in range(n + 1)]
    last = len(edges) - 2
    return [
        Piece(path, name, start, None if i == last else stop, stop - start) for i, (start, stop) in enumerate(pairwise(edges))
    ]


def group(name: str, source: SourceConfig, pieces: Iterable[Piece], part_bytes: int) -> list[Part]:
    """Parts of consecutive pieces of about `part_bytes`."""
    groups: list[list[Piece]] = []
    size = 0
    for piece in pieces:
        if not groups or size + piece.size > part_bytes:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.size
    label = name.replace("/", "__")
    return [
        Part(f"{label}-{number:05d}", Job(name, source, number, each), sum(piece.size for piece in each))
        for number, each in enumerate(groups)
    ]
