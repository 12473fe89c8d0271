"""Names of step folders, and which of them are finished; no torch. What is in one: checkpoint.py."""

from pathlib import Path

MANIFEST = "manifest.json"
"""Written last: a folder without it was never finished."""


def step_name(step: int) -> str:
    """Folder name of a step; sorts by step."""
    return f"step{step:08d}"


def list_steps(steps: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the finished step folders, oldest first."""
    return [(step, folder) for step, folder in _named(steps) if _has_manifest(folder)]


def list_unfinished(steps: Path) -> list[Path]:
    """Folders that have the name of a step but no manifest: copied by half, or damaged; no save of ours leaves such a one."""
    return [folder for _, folder in _named(steps) if not _has_manifest(folder)]


def _named(steps: Path) -> list[tuple[int, Path]]:
    found = [(folder.name.removeprefix("step"), folder) for folder in steps.glob("step*")] if steps.is_dir() else []
    return sorted((int(digits), folder) for digits, folder in found if digits.isdigit())


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).exists()
    except OSError:  # not allowed, or a failing disk: whoever reads it hears what is wrong
        return True
