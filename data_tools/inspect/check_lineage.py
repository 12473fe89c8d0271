"""Whether what stages wrote still lies there, and whether each read what the one before it wrote."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.files import hash_of
from data_tools.inspect.lineage import Root, StageFolder
from olmo_train.errors import ShardError

MOST = 20
"""Problems of one kind that are told one by one."""


@dataclass
class Found:
    """What a check found out."""

    files: int = 0
    links: int = 0
    """Files that one stage wrote and another read, with equal hashes."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be checked."""


class LineageCheck:
    """A check of a whole lineage; every file is hashed at most once."""

    def __init__(self, roots: list[Root], is_full: bool, may_lack: Callable[[Path], bool] | None = None) -> None:
        """`may_lack`: whether a file, by its absolute path, need not be there (what a release leaves out)."""
        self.roots, self.is_full, self.found = roots, is_full, Found()
        self._may_lack = may_lack or (lambda path: False)
        self._writers = {path: owner for root in roots for path, owner in root.writers.items()}
        self._seen: dict[Path, str | None] = {}

    def run(self) -> Found:
        """All stages of all roots, the oldest first."""
        for root in self.roots:
            for stage in root.stages:
                try:
                    self._outputs(stage)
                    self._inputs(stage)
                except ShardError as error:
                    self.found.problems.append(str(error))
        return self.found

    def _outputs(self, stage: StageFolder) -> None:
        if stage.summary is None:
            self.found.problems.append(
                f"{stage.folder}: not finished; the command that began it goes on where it ended; remove it if nobody needs it"
            )
        for path, entry in stage.outputs.items():
            if not path.exists() and (stage.was_removed(path) or self._may_lack(Path(os.path.abspath(path)))):
                continue
            self.found.files += 1
            problem = self._compare(path, entry)
            if problem:
                self.found.problems.append(
                    f"{path}: {problem}, as {stage.name} wrote it; copy it again, or run {stage.name} again"
                )

    def _inputs(self, stage: StageFolder) -> None:
        gone: list[str] = []
        for _, record in stage.records():
            for name, entry in record.inputs.items():
                path = stage.locate(name) or self._by_record(stage, name)
                if path is not None and path.is_relative_to(os.path.abspath(stage.folder)):
                    continue  # between two phases of the stage itself
                if path is None:
                    if not _is_inside(Path(name), stage):
                        gone.append(name)
                    continue
                self._input(stage, path, entry)
        if gone:
            self.found.notes.append(
                f"{stage.folder}: {len(gone):,} files that it read are not there any more, the first {sorted(gone)[0]}; what it "
                "read cannot be compared"
            )

    def _by_record(self, stage: StageFolder, name: str) -> Path | None:
        """A file that is not there, but that a stage of the lineage wrote."""
        path = Path(os.path.abspath(stage.root / name))
        return path if path in self._writers else None

    def _input(self, stage: StageFolder, path: Path, entry: dict[str, Any]) -> None:
        owner = self._writers.get(path)
        if owner is None:
            problem = self._compare(path, entry)
            if problem:
                self.found.problems.append(f"{path}: {problem}, as {stage.name} read it ({stage.folder})")
            return
        writer, written = owner
        if written["xxh3_128"] != entry["xxh3_128"]:
            self.found.problems.append(
                f"{path}: {stage.name} read another file ({entry['bytes']:,} bytes, xxh3 {entry['xxh3_128'][:16]}...) than "
                f"{writer.name} wrote ({written['bytes']:,} bytes, xxh3 {written['xxh3_128'][:16]}...): one of them ran again "
                f"since; run {stage.name} again in another folder"
            )
            return
        self.found.links += 1

    def _compare(self, path: Path, entry: dict[str, Any]) -> str | None:
        """What is wrong with a file, or None."""
        key = Path(os.path.abspath(path))
        try:
            size = key.stat().st_size
        except OSError:
            return "is not there"
        if size != entry["bytes"]:
            return f"{size:,} bytes, not {entry['bytes']:,}"
        if self.is_full:
            if key not in self._seen:
                self._seen[key] = hash_of(key)
            if self._seen[key] != entry["xxh3_128"]:
                return f"xxh3 {(self._seen[key] or '')[:16]}..., not {entry['xxh3_128'][:16]}..."
        return None


def _is_inside(path: Path, stage: StageFolder) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(stage.folder))


def check_lineage(roots: list[Root], is_full: bool, may_lack: Callable[[Path], bool] | None = None) -> Found:
    """Check every output of every stage, and every file that one wrote and another read.

    `is_full`: every byte; else sizes and what the records say. `may_lack`: see LineageCheck.
    """
    found = LineageCheck(roots, is_full, may_lack).run()
    if len(found.problems) > MOST:
        found.problems[MOST:] = [f"and {len(found.problems) - MOST:,} more"]
    return found
