"""What the tests of publishing ask for, and how they look at it."""

from pathlib import Path
from typing import Any

import pytest

WORDS = ["folders=[base,mixed,shards]", "name=demo data", "licenses={web: odc-by, books: cc0-1.0}", "description=Foxes."]

SMALL = ["folders=[mixed]", *WORDS[1:]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def said(capsys: pytest.CaptureFixture[str], main: Any, *words: object) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out
