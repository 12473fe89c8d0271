"""Columns of text for the terminal, and results as a JSON file."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.inspect.readable import NONE, number
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic


def columns(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), indent: str = "") -> list[str]:
    """Lines with aligned columns: those numbered in `left` to the left, others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    out = []
    for row in rows:
        cells = (cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths)))
        out.append((indent + "  ".join(cells)).rstrip())
    return out


def value(x: float | None, digits: int = 4) -> str:
    """A measured number, which may be missing or not finite, or a count."""
    if isinstance(x, int):
        return f"{x:,}"
    return NONE if x is None else number(x, digits) if math.isfinite(x) else str(x)


def check_target(path: Path | None, flag: str = "--json") -> None:
    """Whether a file can be written later, asked before the work.

    Raises:
        ConfigError: its folder is not there, or it is a folder.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ConfigError(f"{flag}={path} {what}; give the name of a file in a folder that exists")


def write_json(path: Path, values: Any) -> None:
    """Write a result whole or not at all.

    Raises:
        ConfigError: the file system refused.
    """
    try:
        write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give --json a file that can be written") from error
