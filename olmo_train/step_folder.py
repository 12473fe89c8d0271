"""Names of step folders, and which of them are finished and trusted; no torch. What is in one: checkpoint.py."""

import json
from pathlib import Path

MANIFEST = "manifest.json"
"""Written last: a folder without it was never finished."""

SUSPECT = "suspect.json"
"""In the run folder, left by a failed check of the hardware: {"after_step": N}, the last step whose state is trusted."""


def step_name(step: int) -> str:
    """Folder name of a step; sorts by step."""
    return f"step{step:08d}"


def list_steps(steps: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the finished step folders, oldest first."""
    return [(step, folder) for step, folder in _named(steps) if _has_manifest(folder)]


def list_unfinished(steps: Path) -> list[Path]:
    """Folders that have the name of a step but no manifest: copied by half, or damaged; no save of ours leaves such a one."""
    return [folder for _, folder in _named(steps) if not _has_manifest(folder)]


def list_set_aside(steps: Path) -> list[str]:
    """Names of step folders that a start has moved away: damaged, or made suspect by a failed check."""
    return sorted(path.name for word in ("damaged", "suspect") for path in steps.glob(f".step*.{word}-*"))


def last_trusted(run_dir: Path) -> int | None:
    """The last step before those that a failed check has made suspect; None: all are trusted.

    Raises:
        OSError, ValueError, KeyError: the note cannot be read.
    """
    note = run_dir / SUSPECT
    return int(json.loads(note.read_text())["after_step"]) if note.exists() else None


def _named(steps: Path) -> list[tuple[int, Path]]:
    found = [(folder.name.removeprefix("step"), folder) for folder in steps.glob("step*")] if steps.is_dir() else []
    return sorted((int(digits), folder) for digits, folder in found if digits.isdigit())


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).exists()
    except OSError:  # not allowed, or a failing disk: whoever reads it hears what is wrong
        return True
