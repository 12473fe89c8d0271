"""Dolma documents: JSON lines with id, text, source, added, created, metadata; plain or .gz by name."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olmo_train.errors import ShardError

ENDINGS = ("*.jsonl", "*.jsonl.gz", "*.json.gz", "*.jsonl.zst", "*.json.zst")
"""Of documents in a folder; the last two are found so that they are refused, not passed over."""


@dataclass
class Document:
    """One document. `id` is unique within `source`."""

    id: str
    text: str
    source: str
    added: str | None = None
    created: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    """The file it was read from."""
    line: int = 0
    """1-based line in that file."""


def find_files(patterns: list[str]) -> list[Path]:
    """Files of documents that the patterns name, sorted; a folder stands for every .jsonl(.gz) and .json.gz below it.

    Raises:
        ShardError: a pattern matches nothing.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = [p for ending in ENDINGS for p in path.rglob(ending)]
        else:
            matches = [path] if path.is_file() else list(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        matches = [p for p in matches if p.is_file()]
        if not matches:
            raise ShardError(
                f"documents: nothing matches {pattern}; give a .jsonl, .jsonl.gz or .json.gz file, a folder of them, or a glob"
            )
        found.update(matches)
    return sorted(found)


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of one file, in order.

    Raises:
        ShardError: the file is damaged, cut short or .zst, a line is not a JSON object, or id, text or source is missing or no
            string; names the line. Nothing is skipped silently.
    """
    if path.suffix == ".zst":
        raise ShardError(f"{path}: .zst is not read here; unpack it with `zstd -d --rm`")
    number = 0
    try:
        if path.suffix == ".gz" and path.stat().st_size == 0:
            raise EOFError("0 bytes are no gzip file")  # Python reads them as an empty one
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(line, path, number)
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise ShardError(
            f"{path}: damaged after line {number}: {error}; the file was cut short or changed, or is not UTF-8; get it again"
        ) from error


def _parse(line: str, path: Path, number: int) -> Document:
    try:
        values = json.loads(line)
    except ValueError as error:
        why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise ShardError(f"{path}: line {number} is not JSON: {why}; mend or remove it") from None
    if not isinstance(values, dict):
        raise ShardError(f"{path}: line {number} is not a JSON object; a document has id, text and source")
    for name in ("id", "text", "source"):
        if not isinstance(values.get(name), str):
            raise ShardError(
                f"{path}: line {number}: {name}={values.get(name)!r} must be a string; Dolma requires id, text and source"
            )
        if name != "text" and any("\ud800" <= c <= "\udfff" for c in values[name]):
            raise ShardError(
                f"{path}: line {number}: {name}={values[name]!r} holds half a surrogate pair; ids and sources are UTF-8"
            )
    # Half a surrogate pair is legal in JSON, but no UTF-8, which tokenizers take: a question mark stands for it.
    text = values["text"].encode("utf-8", "replace").decode("utf-8")
    return Document(
        values["id"], text, values["source"], values.get("added"), values.get("created"),
        values.get("metadata") or {}, str(path), number,
    )  # fmt: skip


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents, plain or gzipped by the name of the file; returns how many. The time stamp inside is 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with open(path, "wb") as raw:
        file = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        for document in documents:
            values = {name: getattr(document, name) for name in ("id", "text", "source", "added", "created", "metadata")}
            kept = {name: value for name, value in values.items() if value not in (None, {})}
            file.write((json.dumps(kept, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
            count += 1
        if file is not raw:
            file.close()
    return count
