"""Which files a source has, by names that do not depend on where they lie; and what of a tree is left out, by stated rules."""

import fnmatch
import glob
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.ingest.config import Kind, SourceConfig
from data_tools.ingest.languages import language_of

_PACKED = ("", ".gz", ".zst")
ENDINGS = {
    Kind.JSONL: tuple(e + packed for e in (".jsonl", ".json", ".ndjson") for packed in _PACKED),
    Kind.PARQUET: (".parquet",),
    Kind.TEXT: tuple(e + packed for e in (".txt", ".text", ".md", ".rst") for packed in _PACKED),
    Kind.WARC: (".warc", ".warc.gz", ".warc.zst"),
    Kind.HTML: (".html", ".htm", ".xhtml"),
}
"""Of files below a folder that are taken without `include`."""
VENDORED = frozenset(
    [
        "node_modules", "bower_components", "vendor", "vendors", "third_party", "third-party", "thirdparty", "__pycache__",
        "site-packages", "dist-packages", "venv", "virtualenv", "env", "build", "dist", "target", "out", "obj", "eggs", "wheels",
        "htmlcov", "Pods", "DerivedData",
    ]
)  # fmt: skip
"""Folders of other people's, or of generated, code. Hidden ones (.git, .venv) and *.egg-info count as well."""
GENERATED = ("*.min.js", "*.min.css", "*.map", "*_pb2.py", "*_pb2_grpc.py", "*.pb.go", "package-lock.json", "yarn.lock")
LICENSES = ("license", "licence", "copying", "unlicense")
"""How the name of a file that holds a licence begins, in small letters."""


@dataclass(frozen=True)
class Input:
    """One file of a source."""

    path: str
    name: str
    """Relative to what was named in `paths`, with slashes, without the ending of a compression: ids are made of it."""
    size: int
    license_file: str | None = None
    """kind=tree: the relative name of the nearest licence, in its folder or above."""


@dataclass
class Found:
    """The files of a source."""

    inputs: list[Input] = field(default_factory=list)
    """Sorted by name."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Why files below folders are no input: how many."""
    problems: list[str] = field(default_factory=list)
    licenses: dict[str, str] = field(default_factory=dict)
    """Folder, relative, to its licence."""


def find_inputs(source: SourceConfig) -> Found:
    """Files that a source names, each once. Links to folders are not followed."""
    found = Found()
    seen: dict[str, str] = {}
    for pattern in source.paths:
        for path, root in _matches(pattern, found):
            if path.is_dir():
                _walk(path, source, found)
            else:
                _add(path, path.relative_to(root), source, found)
    names: dict[str, str] = {}
    for each in sorted(found.inputs, key=lambda i: (i.path, i.name)):
        other, name = seen.setdefault(each.name, each.path), names.setdefault(os.path.abspath(each.path), each.name)
        if os.path.abspath(other) != os.path.abspath(each.path):
            found.problems.append(
                f".paths: {other} and {each.path} are both called {each.name}, and ids are made from names; give the folder "
                "above both, or a source for each"
            )
        if name != each.name:
            found.problems.append(
                f".paths: {each.path} is found twice, as {name} and as {each.name}, and ids are made from names; name it once"
            )
    found.inputs = sorted({each.name: each for each in reversed(found.inputs)}.values(), key=lambda i: i.name)
    if not found.inputs and not found.problems:
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(found.skipped.items()))
        why = f" (skipped: {why})" if why else ""
        found.problems.append(f".paths: {source.paths} hold no input{why}; name files, or give include")
    return found


def _matches(pattern: str, found: Found) -> list[tuple[Path, Path]]:
    """(what a pattern matches, the front of it that has no wildcard)."""
    if os.path.exists(pattern):
        path = Path(pattern)
        return [(path, path if path.is_dir() else path.parent)]
    fixed: list[str] = []
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    names = sorted(glob.glob(pattern, recursive=True))
    if not names:
        found.problems.append(f".paths: nothing matches {pattern}; give a file, a folder or a glob")
    return [(Path(name), Path(*fixed)) for name in names if os.path.isfile(name)]


def _walk(root: Path, source: SourceConfig, found: Found) -> None:
    is_tree = source.kind == Kind.TREE and source.skip_vendored
    found.licenses.clear()
    for folder, folders, names in os.walk(root):
        inner = Path(folder).relative_to(root)
        if is_tree:
            kept = [name for name in folders if not _is_vendored(name)]
            found.skipped["folders vendored"] += len(folders) - len(kept)
            folders[:] = kept
        for name in sorted(names):
            if source.kind == Kind.TREE and name.lower().startswith(LICENSES):
                found.licenses.setdefault(inner.as_posix(), (inner / name).as_posix())
        for name in names:
            if name.startswith("."):
                found.skipped["hidden"] += 1
            elif is_tree and any(fnmatch.fnmatchcase(name, each) for each in GENERATED):
                found.skipped["generated"] += 1
            else:
                _add(Path(folder, name), inner / name, source, found)


def _is_vendored(name: str) -> bool:
    return name.startswith(".") or name in VENDORED or name.endswith(".egg-info")


def _add(path: Path, relative: Path, source: SourceConfig, found: Found) -> None:
    name = relative.as_posix()
    is_named = name == path.name and str(path) in source.paths
    if any(_fits(name, each) for each in source.exclude):
        found.skipped["excluded"] += 1
    elif source.include and not is_named and not any(_fits(name, each) for each in source.include):
        found.skipped["not included"] += 1
    elif not source.include and not is_named and not _has_ending(path.name, source.kind):
        found.skipped["other ending"] += 1
    elif source.kind == Kind.TREE and path.is_symlink() and not is_named:
        found.skipped["links"] += 1
    elif not path.is_file():
        found.skipped["no files"] += 1
    else:
        license_file = _license_above(relative, found.licenses) if source.kind == Kind.TREE else None
        for packed in _PACKED[1:] if source.kind != Kind.TREE else ():
            name = name.removesuffix(packed)
        found.inputs.append(Input(str(path), name, path.stat().st_size, license_file))


def _has_ending(name: str, kind: Kind) -> bool:
    return language_of(name) is not None if kind == Kind.TREE else name.lower().endswith(ENDINGS[kind])


def _fits(name: str, pattern: str) -> bool:
    """A pattern without a slash is of the last name; one with slashes is of the whole."""
    return fnmatch.fnmatchcase(name if "/" in pattern else name.rsplit("/", 1)[-1], pattern)


def _license_above(relative: Path, licenses: dict[str, str]) -> str | None:
    return next((licenses[folder.as_posix()] for folder in relative.parents if folder.as_posix() in licenses), None)
