"""One document of a dataset with all that is known of it; or which files and attributes there are."""

from pathlib import Path

from data_tools.datasets import DocumentFile, find_document_files
from data_tools.documents import Line
from data_tools.inspect.document_at import attribute_names, attributes_at, document_at, say_spans
from data_tools.inspect.find import documents_of
from data_tools.inspect.lineage import open_root
from olmo_train.errors import ConfigError

LONGEST = 100_000
"""Characters of a text that are printed."""


def show_dataset(folder: Path) -> None:
    """Print files of documents and names of attributes."""
    files = find_document_files([str(folder)])
    for file in files:
        print(f"  {file.name} {file.path.stat().st_size:,} bytes")
    for name in attribute_names(folder):
        print(f"  attributes {name}")
    for stage in open_root(folder).stages:
        print(f"  stage {stage.name}{'' if stage.summary is not None else ' (not finished)'}")


def show_id(folder: Path, document_id: str) -> None:
    """Print every document with this id.

    Raises:
        ConfigError: there is none.
    """
    found = documents_of(folder, document_id)
    if not found:
        raise ConfigError(
            f"--id={document_id}: no document of {folder} has this id; `olmo data find` also looks at what was dropped"
        )
    for file, line in found:
        _print(file, line)


def show_at(folder: Path, place: str) -> None:
    """Print the document at FILE:LINE.

    Raises:
        ConfigError: there is no such file. ShardError: no document stands there.
    """
    name, _, number = place.rpartition(":")
    files = find_document_files([str(folder)])
    fitting = [file for file in files if name in (file.name, str(file.path))]
    if not fitting or not number.isdigit():
        some = ", ".join(file.name for file in files[:5])
        raise ConfigError(f"--at={place}: must be FILE:LINE with a file below {folder}/documents, e.g. of {some}")
    _print(fitting[0], document_at(fitting[0].path, int(number)))


def _print(file: DocumentFile, line: Line) -> None:
    values = {} if line.is_long else line.values()
    text = ""
    for piece in line.pieces():
        text += piece[: LONGEST - len(text)]
    print(f"id      {line.id}\nsource  {line.source}\nplace   {file.path} line {line.line}")
    for name in ("added", "created", "metadata"):
        if values.get(name):
            print(f"{name:<7} {values[name]}")
    for name, spans in sorted(attributes_at(file, line.line, line.id).items()):
        if spans:
            print(f"{name}: {say_spans(spans, len(text))}")
    print(f"\n{text}")
