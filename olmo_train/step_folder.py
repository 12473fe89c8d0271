"""Names of step folders, and which of them are finished; no torch. What is in one: checkpoint.py."""

from pathlib import Path

MANIFEST = "manifest.json"
"""Written last: a folder without it was never finished."""


def step_name(step: int) -> str:
    """Folder name of a step; sorts by step."""
    return f"step{step:08d}"


def list_steps(steps: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the finished step folders, oldest first."""
    found = []
    for folder in steps.glob("step*") if steps.is_dir() else []:
        digits = folder.name.removeprefix("step")
        if digits.isdigit() and (folder / MANIFEST).exists():
            found.append((int(digits), folder))
    return sorted(found)
