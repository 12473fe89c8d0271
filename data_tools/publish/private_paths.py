"""Records without the folders of the machine that wrote them: names are relative to the release, and nothing else is told."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_tools.inspect.lineage import Root, StageFolder

_ABSOLUTE = re.compile(r"(?<![\w/.:~$-])/(?:[\w.@+~=-]+/)+[\w.@+~=-]*")
ORIGIN = "origin"
"""Stands for the folder that raw files were read from."""
UNCHANGED = ("id", "text", "raw", "raw_base64")
"""Fields that are never rewritten: an id leads back to its document."""
NAMED = ("path", "src", "file", "files", "documents", "input", "inputs")
"""Fields of lines whose relative names are of files."""


class Names:
    """Where everything of a lineage stands in the release."""

    def __init__(self, roots: Mapping[str, Root]) -> None:
        """`roots`: by their folder in the release."""
        self.folders = {Path(os.path.abspath(root.path)): name for name, root in roots.items()}
        self.private = sorted(_private_folders(roots.values()), key=len, reverse=True)
        words = "|".join([*map(re.escape, self.private), r"/(?:home|Users|root)/[\w.@+~-]+"])
        self._leaks = re.compile(rf"(?:(?<![\w/.:~$-])|(?<=file://))(?:{words})(?![\w.-])[\w.@+~=/-]*")
        self._origins: dict[Path, Path | None] = {}

    def of(self, path: Path) -> str | None:
        """Name of a file in the release; None: it does not belong to any of its roots."""
        path = Path(os.path.abspath(path))
        for folder in (path, *path.parents):
            if folder in self.folders:
                rest = path.relative_to(folder)
                return self.folders[folder] if rest == Path() else f"{self.folders[folder]}/{rest}"
        return None

    def seen_from(self, path: Path, folder: Path) -> str | None:
        """The same, relative to a folder of a root (as it stands now)."""
        target, start = self.of(path), self.of(folder)
        return None if target is None or start is None else os.path.relpath(target, start)

    def name(self, text: str, stage: StageFolder) -> str:
        """A recorded name of a file, relative to the stage's root; raw files stand below `origin/`."""
        located = stage.locate(text)
        path = located or Path(os.path.abspath(text))
        inside = self.seen_from(path, stage.root)
        if inside is not None:
            return inside
        if located is None and not os.path.isabs(text) and not text.startswith(".."):
            return text  # a relative name tells nothing of a machine
        above = self._origin(stage)
        return f"{ORIGIN}/{path.relative_to(above)}" if above is not None and path.is_relative_to(above) else path.name

    def _origin(self, stage: StageFolder) -> Path | None:
        """The folder above all raw files of a stage."""
        if stage.folder not in self._origins:
            found = [Path(os.path.abspath(stage.locate(name) or name)) for name in stage.plan.get("inputs", {})]
            outside = [str(path.parent) for path in found if self.of(path) is None]
            self._origins[stage.folder] = Path(os.path.commonpath(outside)) if outside else None
        return self._origins[stage.folder]

    def clean(self, value: Any, stage: StageFolder, is_named: bool = False) -> Any:
        """Nested values of a record. `is_named`: strings of this value are names of files, relative ones too."""
        if isinstance(value, dict):
            return {
                self._clean_text(key, stage, is_named) if is_named else self._clean_text(key, stage, False): inner
                if key in UNCHANGED
                else self.clean(inner, stage, key in NAMED or (is_named and not isinstance(inner, dict)))
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return [self.clean(inner, stage, is_named) for inner in value]
        return self._clean_text(value, stage, is_named) if isinstance(value, str) else value

    def _clean_text(self, text: str, stage: StageFolder, is_named: bool) -> str:
        if len(text) > 4096 or "/" not in text:
            return text
        if os.path.isabs(text) and _ABSOLUTE.fullmatch(f"{text}"):
            return self.name(text, stage)
        if is_named and "\n" not in text and "://" not in text:
            return self.name(text, stage)
        return _ABSOLUTE.sub(lambda match: self.name(match[0], stage) if _exists(match[0]) else match[0], text)

    def leak(self, text: str) -> str | None:
        """A path of this machine in a text, if there is one."""
        match = self._leaks.search(text)
        return match[0] if match else None


def _exists(path: str) -> bool:
    """Whether its first two folders are there: a path of this machine, and not of somebody's text."""
    return Path(*Path(path).parts[:3]).exists()


def _private_folders(roots: Any) -> set[str]:
    found = {str(Path.home()), os.getcwd(), *(os.path.abspath(root.path) for root in roots)}
    return {folder for folder in found if len(Path(folder).parts) > 2 or folder == str(Path.home())}
