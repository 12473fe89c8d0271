"""Documents and attributes by file and line."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from data_tools.datasets import DocumentFile, read_attributes
from data_tools.documents import Line, Reject, read_lines
from olmo_train.errors import ShardError


def _ignore(reject: Reject) -> None:
    """Lines that are no documents are counted by who asks for them."""


def lines_at(path: Path, numbers: Iterable[int]) -> Iterator[Line]:
    """Documents at these 1-based lines of a file, in order; lines that are no documents are left out.

    Raises:
        ShardError: the file cannot be read.
    """
    wanted = set(numbers)
    last = max(wanted, default=0)
    if not wanted:
        return
    for line in read_lines(path, _ignore):
        if line.line in wanted:
            yield line
        if line.line >= last:
            return


def document_at(path: Path, number: int) -> Line:
    """Raises:
    ShardError: there is no document at this line."""
    for line in lines_at(path, [number]):
        return line
    raise ShardError(f"{path}: line {number} is no document, or the file ends before it")


def attribute_names(dataset: Path, file: DocumentFile | None = None) -> list[str]:
    """Names below `attributes/` (which may have slashes); only those that have a file for `file`, if it is given."""
    top = dataset / "attributes"
    if file is not None:
        found = [path for path in top.rglob(Path(file.name).name) if str(path).endswith(f"/{file.name}")]
        return sorted(str(path)[len(str(top)) + 1 : -len(file.name) - 1] for path in found)
    names = {str(path.parent.relative_to(top)) for path in top.rglob("*.jsonl*")}
    inner = {str(path.parent.relative_to(dataset / "documents")) for path in (dataset / "documents").rglob("*.jsonl*")}
    stripped = {_without(name, folder) for name in names for folder in [_longest(name, inner)]}
    return sorted(name for name in stripped if name)


def _longest(name: str, folders: set[str]) -> str:
    fitting = [folder for folder in folders if folder != "." and name.endswith(f"/{folder}")]
    return max(fitting, key=len, default="")


def _without(name: str, folder: str) -> str:
    return name[: -len(folder) - 1] if folder else name


def attributes_at(file: DocumentFile, number: int, document_id: str) -> dict[str, list[list[Any]]]:
    """Every attribute of the document at a line. There is a line of them for each document, and none for lines that are none.

    Raises:
        ShardError: a file of attributes is damaged, too short, or has another id where this document's should be.
    """
    found: dict[str, list[list[Any]]] = {}
    names = attribute_names(Path(file.dataset), file)
    number = _ordinal(file.path, number) if names else 0
    for name in names:
        path = file.attributes(name)
        for at, (line_id, attributes) in enumerate(read_attributes(path), 1):
            if at == number:
                if line_id != document_id:
                    raise ShardError(
                        f"{path}: line {at} is of {line_id!r}, the document there is {document_id!r}: documents and attributes "
                        "do not belong together; write the attributes again"
                    )
                found |= attributes
                break
        else:
            raise ShardError(f"{path}: ends before line {number}; it has a line for each document; write the attributes again")
    return found


def _ordinal(path: Path, number: int) -> int:
    """Documents up to a line."""
    return sum(1 for _ in takewhile(lambda line: line.line <= number, read_lines(path, _ignore)))


def say_spans(spans: list[list[Any]], length: int) -> str:
    """Spans of one attribute in a few words: a score of the whole text, or how many spans, where, and their scores."""
    if len(spans) == 1 and spans[0][0] == 0 and spans[0][1] >= length:
        return f"{spans[0][2]:.6g}"
    shown = ", ".join(f"[{start}, {end}) {score:.6g}" for start, end, score in spans[:5])
    return f"{len(spans):,} span{'s' if len(spans) != 1 else ''}: {shown}{', ...' if len(spans) > 5 else ''}"
