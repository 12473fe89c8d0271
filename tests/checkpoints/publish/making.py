"""Releases for tests, and damage to the runs they are made of."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.release import Release

OPTIONS = AssembleOptions(stage=1, dtype=None, optimizer_state=False, license="apache-2.0", sign=None, parent=None)


def make(run: Path, step: int, folder: Path, **changes: Any) -> Release:
    """A release of a step in `folder`, with other options than OPTIONS where named."""
    return assemble(run, step, folder, replace(OPTIONS, **changes))


def content(folder: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(step_folder: Path, name: str, text: str) -> None:
    """Exchange a text of a step folder, and let its manifest say so."""
    (step_folder / name).write_text(text)
    file = step_folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    file.write_text(json.dumps(manifest, indent=1))
