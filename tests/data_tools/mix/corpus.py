"""Documents with attributes in Dolma's format, written by hand, and a mixture run over them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_tools.files import InputFile, lines
from data_tools.mix.command import mix
from data_tools.mix.config import MixConfig
from olmo_train.schema import to_dataclass
from tests.data_tools.texts import write_lines

Values = dict[str, Any]


def write_dataset(folder: Path, files: Mapping[str, list[Values]], attributes: Mapping[str, Mapping[str, list[Values]]]) -> Path:
    """`attributes`: folder -> file -> the `attributes` of each document."""
    for name, documents in files.items():
        write_lines(folder / "documents" / name, documents)
    for experiment, each in attributes.items():
        for name, rows in each.items():
            ids = [document["id"] for document in files[name]]
            found = [{"id": id, "source": "s", "attributes": row} for id, row in zip(ids, rows, strict=True)]
            write_lines(folder / "attributes" / experiment / name, found)
    return folder


def config_of(output: Path, sources: Mapping[str, Values], **values: Any) -> MixConfig:
    """Of one process, unless told otherwise."""
    return to_dataclass({"output": str(output), "sources": dict(sources), "processes": 1, **values}, MixConfig)


def run(output: Path, sources: Mapping[str, Values], **values: Any) -> Values:
    """The summary."""
    return mix(config_of(output, sources, **values))


def read(paths: Iterable[Path]) -> list[Values]:
    """Every line of files."""
    return [json.loads(line) for path in sorted(paths) for line in lines(path, InputFile(path))]


def documents_of(output: Path, source: str = "*") -> list[Values]:
    """Written to a mixture."""
    return read((output / "documents").glob(f"{source}/*"))


def records_of(output: Path, kind: str) -> list[Values]:
    """dropped, quarantine, redactions."""
    return read((output / "stages/mix" / kind).glob("*"))


def contents(output: Path) -> dict[str, bytes]:
    """Every file but the summary, which tells the time."""
    files = [path for path in output.rglob("*") if path.is_file() and path.name != "summary.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(files)}
