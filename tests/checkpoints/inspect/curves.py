"""Curves of the test run, made once by the command a user has."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from checkpoints.inspect.curve import main

TEXTS = ("the red cat sees a small house", "stone <b>& river\n\ttree")


@functools.cache
def make_curves(run: Path) -> Path:
    """The folder that `olmo checkpoints curve` wrote for a copy of the run."""
    copy = Path(shutil.copytree(run, run.parent / "curved" / run.name))
    main([str(copy), "--tokens-per-source", "512", "--text", TEXTS[0], "--text", TEXTS[1]])
    return copy / "inspect"


def read_curves(run: Path) -> dict[str, Any]:
    """Its curves.json, for a test to change."""
    document: dict[str, Any] = json.loads((make_curves(run) / "curves.json").read_text())
    return document
