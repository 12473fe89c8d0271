"""Gather real text that every machine with Python has, as Dolma documents: standard library sources, packages' documentation.

olmo data gather folder=corpus  ->  corpus/documents/{stdlib,package_docs}.jsonl.gz
"""

import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from platform import python_version

from omegaconf import MISSING

from data_tools.documents import Document, write_documents
from olmo_train.errors import ShardError, run_command
from olmo_train.schema import load_config

DOCUMENTATION = (".md", ".rst", ".txt")


@dataclass
class GatherConfig:
    """`configs/gather.yaml`."""

    folder: str = MISSING
    """Documents go to <folder>/documents/."""
    sources: list[str] = field(default_factory=list)
    """Any of stdlib (Python's standard library) and package_docs (documentation and metadata of installed packages)."""
    max_bytes: int | None = None
    """UTF-8 bytes of text per source, from the front of a sorted list; None: all."""
    max_document_bytes: int = 400_000
    """Longer files are tables, not text."""


def main(argv: list[str]) -> None:
    """Write one file of documents per source and say what was gathered."""
    config = load_config("gather", GatherConfig, argv, _problems)
    for source in config.sources:
        seen = _Counts()
        path = Path(config.folder) / "documents" / f"{source}.jsonl.gz"
        write_documents(path, _limited(_READERS[source](), config, seen))
        if not seen.documents:
            path.unlink()
            raise ShardError(
                f"{source}: no text was found within max_bytes={config.max_bytes} and "
                f"max_document_bytes={config.max_document_bytes} ({seen.undecodable} undecodable, {seen.too_long} too long); "
                "raise them, or leave this source out"
            )
        print(
            f"{path}: {seen.documents:,} documents, {seen.text_bytes:,} bytes of text ({seen.undecodable} "
            f"undecodable, {seen.too_long} too long)"
        )


def _problems(config: GatherConfig) -> list[str]:
    unknown = [source for source in config.sources if source not in _READERS]
    problems = [f"sources: {source} is not one of {', '.join(_READERS)}" for source in unknown]
    return problems or ([] if config.sources else ["sources is empty; give [stdlib, package_docs]"])


@dataclass
class _Counts:
    documents: int = 0
    text_bytes: int = 0
    undecodable: int = 0
    too_long: int = 0


def _limited(documents: Iterator[Document | None], config: GatherConfig, seen: _Counts) -> Iterator[Document]:
    """Documents within the limits; what is left out is counted."""
    for document in documents:
        if document is None:
            seen.undecodable += 1
            continue
        size = len(document.text.encode("utf-8"))
        if size > config.max_document_bytes:
            seen.too_long += 1
            continue
        if config.max_bytes is not None and seen.text_bytes + size > config.max_bytes:
            return
        seen.documents += 1
        seen.text_bytes += size
        yield document


def _stdlib() -> Iterator[Document | None]:
    """Sources of the standard library, tests included where they are installed."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if "site-packages" in name.parts or "__pycache__" in name.parts:
            continue
        try:
            with tokenize.open(path) as file:  # honours the encoding a source declares
                text = file.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            yield None
            continue
        if text.strip():
            facts = {"path": str(name), "python": python_version()}
            yield Document(f"stdlib/{name}", text, "stdlib", added=_now(), metadata=facts)


def _package_docs() -> Iterator[Document | None]:
    """Metadata (the project's description) and text files of every installed distribution, each once.

    Where environments are layered, the same distribution is found more than once; the first is what Python imports.
    """
    seen: set[str] = set()
    for distribution in sorted(metadata.distributions(), key=lambda d: str(d.metadata["Name"]).lower()):
        name, version = str(distribution.metadata["Name"]), distribution.version
        for file in sorted(distribution.files or [], key=str):
            if file.name != "METADATA" and file.suffix.lower() not in DOCUMENTATION:
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                yield None
                continue
            except OSError:
                continue  # listed by the package, but not on this disk
            place = f"{name}/{version}/{file}"
            if text.strip() and place not in seen:
                seen.add(place)
                facts = {"package": name, "version": version, "path": str(file)}
                yield Document(place, text, "package_docs", added=_now(), metadata=facts)


_READERS = {"stdlib": _stdlib, "package_docs": _package_docs}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
