"""Runs of `olmo data ingest` for the tests, and what they left."""

import json
from pathlib import Path
from typing import Any

from data_tools.files import InputFile, lines
from data_tools.ingest.command import ingest
from data_tools.ingest.config import IngestConfig, ingest_problems
from olmo_train.errors import ConfigError
from olmo_train.schema import to_dataclass

Values = dict[str, Any]


def run(output: Path, sources: dict[str, Values], **values: Any) -> Values:
    """Ingest in this process, with every reject allowed unless told otherwise; the totals."""
    allowed = {"processes": 1, "max_rejected_frac": 1.0, "max_damaged_files": 99}
    config = to_dataclass({"output": str(output), "sources": sources, **allowed, **values}, IngestConfig)
    if problems := ingest_problems(config):
        raise ConfigError(problems)
    totals: Values = ingest(config)["totals"]
    return totals


def read(*paths: Path) -> list[Values]:
    """Lines of JSON of files, in order."""
    return [json.loads(line) for path in paths for line in lines(path, InputFile(path))]


def documents(output: Path, source: str = "*") -> list[Values]:
    """Of all files of a source, in the order of their names."""
    return read(*sorted(output.glob(f"documents/{source}/*.jsonl*")))


def texts(output: Path, source: str = "*") -> list[str]:
    return [document["text"] for document in documents(output, source)]


def told(output: Path, kind: str = "quarantine") -> list[Values]:
    """What was rejected, or dropped."""
    return read(*sorted((output / "stages/ingest" / kind).glob("*")))


def reasons(output: Path, kind: str = "quarantine") -> list[tuple[int, str]]:
    return [(value["line"], value["reason"]) for value in told(output, kind)]


def contents(output: Path) -> dict[str, bytes]:
    """All that was written, but for times."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "summary.json")
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines_of(path: Path, values: list[Any]) -> Path:
    return put(path, "".join(f"{json.dumps(value)}\n" for value in values))
