"""Where a dataset or shards came from: from a folder up through what its stages read to the datasets before it.

A *root* is a folder with `stages/` in it: a dataset or shards. Records of finished parts say what was read and written, with
hashes, so that the chain from raw files to shards can be checked link by link.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from data_tools.files import lines_of
from data_tools.work.part import Record
from olmo_train.errors import ShardError

KEPT = ("quarantine", "dropped", "duplicates", "ids")
"""Folders of a stage that stay; of the others a stage may remove what nobody needs any more."""
INNER = ("documents", "attributes")


@dataclass(frozen=True)
class KeptLine:
    """One line of JSON that a stage left beside its output: a document that was dropped, rejected, found twice, ..."""

    kind: str
    """Folder of the stage: dropped, quarantine, duplicates, ..."""
    path: Path
    line: int
    raw: bytes


@dataclass(frozen=True)
class StageFolder:
    """One stage of a root, finished or not."""

    root: Path
    name: str
    """Folder below `stages/`: tag, dedupe/NAME, ..."""

    @property
    def folder(self) -> Path:
        """Of its records."""
        return self.root / "stages" / self.name

    @cached_property
    def plan(self) -> dict[str, Any]:
        """stage.json: stage, settings, inputs.

        Raises:
            ShardError: it cannot be read.
        """
        return _read_json(self.folder / "stage.json")

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None: not finished."""
        path = self.folder / "summary.json"
        return _read_json(path) if path.exists() else None

    @property
    def label(self) -> str:
        """What to call it in a table."""
        return self.name

    def records(self) -> Iterator[tuple[str, Record]]:
        """(phase, record) of each finished part, in order of their names.

        Raises:
            ShardError: a record cannot be read.
        """
        for path in sorted((self.folder / "parts").glob("*/*.json")):
            try:
                yield path.parent.name, Record(**_read_json(path))
            except TypeError as error:
                raise ShardError(f"{path}: is no record of a part: {error}; run the stage again") from None

    def output(self, name: str) -> Path:
        """The file that a record's output names."""
        return Path(os.path.normpath(self.folder / name))

    def was_removed(self, path: Path) -> bool:
        """Whether a file that is not there was the stage's own, and removed by it when it ended."""
        if self.summary is None or not path.is_relative_to(self.folder):
            return False
        first = path.relative_to(self.folder).parts[0]
        return first not in KEPT

    @cached_property
    def outputs(self) -> dict[Path, dict[str, Any]]:
        """Every file it wrote: bytes, xxh3_128."""
        return {self.output(name): entry for _, record in self.records() for name, entry in record.outputs.items()}

    def kinds(self) -> list[str]:
        """Folders with lines that it left: quarantine, dropped, ..."""
        if not self.folder.is_dir():
            return []
        inner = [p for p in sorted(self.folder.iterdir()) if p.is_dir() and p.name not in ("parts", "ids")]
        return [p.name for p in inner if not (p / "stage.json").exists() and any(p.glob("*.jsonl.zst"))]

    def kept(self, kind: str) -> Iterator[KeptLine]:
        """Lines of one kind, file by file."""
        for path in sorted((self.folder / kind).glob("*.jsonl.zst")):
            for number, raw in enumerate(lines_of(path), 1):
                yield KeptLine(kind, path, number, bytes(raw))

    def locate(self, recorded: str) -> Path | None:
        """A file that a stage read, by the name it was recorded with; None: not found.

        Names may be relative to the folder in which the command ran, or (in a release) to the root; of a dataset that was moved,
        its own files are found again.
        """
        path = Path(recorded)
        found = [path] if path.is_absolute() else [self.root / path, path]
        if not self.writes_documents:
            found += [self.root / inner / tail for inner, tail in _tails(path)]
        return next((Path(os.path.abspath(p)) for p in found if p.exists()), None)

    @cached_property
    def writes_documents(self) -> bool:
        """Whether the root's documents are its work."""
        inner = Path(os.path.abspath(self.root / "documents"))
        return any(Path(os.path.abspath(path)).is_relative_to(inner) for path in self.outputs)


def _tails(path: Path) -> Iterator[tuple[str, Path]]:
    parts = path.parts
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in INNER:
            yield parts[i], Path(*parts[i + 1 :])
            return


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: cannot be read: {error}; run the stage again, or copy it again") from None
    if not isinstance(values, dict):
        raise ShardError(f"{path}: is not a JSON object; run the stage again, or copy it again")
    return values


@dataclass
class Root:
    """A dataset or shards, with its stages in the order in which they ran."""

    path: Path
    stages: list[StageFolder] = field(default_factory=list)

    @property
    def is_shards(self) -> bool:
        """Whether token shards lie here."""
        return (self.path / "manifest.json").is_file()

    @cached_property
    def writers(self) -> dict[Path, tuple[StageFolder, dict[str, Any]]]:
        """Absolute path of each file that a stage wrote: the stage, and its entry."""
        return {Path(os.path.abspath(path)): (stage, entry) for stage in self.stages for path, entry in stage.outputs.items()}


def open_root(path: Path) -> Root:
    """A folder and its stages: who writes documents first, then each after those whose files it reads.

    Raises:
        ShardError: the folder is neither a dataset nor shards.
    """
    inner = ("stages", *INNER)
    if not any((path / name).is_dir() for name in inner) and not (path / "manifest.json").is_file():
        raise ShardError(
            f"{path}: no dataset or shards: none of {', '.join(f'{name}/' for name in inner)} or manifest.json is in it; give "
            "the folder that a stage wrote"
        )
    names = sorted(str(p.parent.relative_to(path / "stages")) for p in (path / "stages").rglob("stage.json"))
    return Root(path, _in_order([StageFolder(path, name) for name in names]))


def _in_order(stages: list[StageFolder]) -> list[StageFolder]:
    left = sorted(stages, key=lambda stage: (not stage.writes_documents, stage.name))
    done: list[StageFolder] = []
    while left:
        owners = {Path(os.path.abspath(path)): stage for stage in left for path in stage.outputs}

        def is_free(stage: StageFolder, owners: dict[Path, StageFolder] = owners) -> bool:
            read = (stage.locate(name) for name in stage.plan.get("inputs", {}))
            return all(owners.get(path, stage) is stage for path in read if path is not None)

        following = next((stage for stage in left if is_free(stage)), left[0])
        left.remove(following)
        done.append(following)
    return done


def parents(root: Root) -> list[Path]:
    """Roots of the files that the stages of a root read, without itself."""
    found: dict[Path, None] = {}
    own = Path(os.path.abspath(root.path))
    for stage in root.stages:
        for folder in {Path(name).parent for name in stage.plan.get("inputs", {})}:
            path = stage.locate(str(folder)) or Path(os.path.abspath(root.path / folder))
            above = root_above(path)
            if above is not None and above != own:
                found[above] = None
    return sorted(found)


def root_above(path: Path) -> Path | None:
    """The nearest folder above (or at) a path that has `stages/` or holds documents; None: it came from outside."""
    for folder in (path, *path.parents):
        if (folder / "stages").is_dir() or (folder.name not in INNER and (folder / "documents").is_dir()):
            return folder
    return None


def lineage(folder: str | Path) -> list[Root]:
    """A root and all before it, the oldest first.

    Raises:
        ShardError: the folder is none, or a stage's files cannot be read.
    """
    done: dict[Path, Root] = {}

    def visit(path: Path, root: Root) -> None:
        if path in done:
            return
        done[path] = root  # a circle ends here
        for parent in parents(root):
            if parent not in done:
                visit(parent, open_root(parent))
        done[path] = done.pop(path)  # behind its parents

    start = Path(folder)
    visit(Path(os.path.abspath(start)), open_root(start))
    return list(done.values())


def by_reason(stage: StageFolder, kind: str) -> dict[str, dict[str, int]]:
    """Lines of one kind: source to reason to number."""
    found: dict[str, dict[str, int]] = {}
    for line in stage.kept(kind):
        values = msgspec.json.decode(line.raw)
        inner = values.get("removed") if isinstance(values.get("removed"), dict) else values
        row = found.setdefault(str(inner.get("source", "")), {})
        reason = str(values.get("reason", kind))
        row[reason] = row.get(reason, 0) + 1
    return found
