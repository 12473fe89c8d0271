"""A release read back: every file against its manifest, and the records of its stages against each other."""

import os
from collections.abc import Callable
from pathlib import Path

from data_tools.inspect.check_lineage import LineageCheck
from data_tools.inspect.lineage import open_root
from data_tools.publish.manifest import NAME, Release, listing_problems, read_release
from data_tools.publish.opening import open_store
from data_tools.publish.stores import Store, sha256_of
from olmo_train.errors import ShardError


def is_release(where: str) -> bool:
    """Whether a path is a place of a store, or a folder with a release in it."""
    return "://" in where or (Path(where) / NAME).is_file()


def check_release(where: str, is_full: bool) -> str:
    """Check; returns a sentence.

    Raises:
        ShardError: it is not there, or not what its manifest says.
    """
    store = open_store(where)
    data = store.read(NAME)
    if data is None:
        raise ShardError(f"{store.where}: no {NAME}: no release, or one that is not published yet")
    release = read_release(data, store.where)
    problems = release_problems(store, release, is_full)
    how = "sizes"
    if "://" not in where:
        problems += records_problems(Path(where), release)
        how += ", records of the stages"
    if problems:
        raise ShardError("\n".join(f"{store.where}: {problem}" for problem in problems))
    how = f"{how}, every byte" if is_full else how
    return f"{store.where}: {release.name}, {len(release.files):,} files, {release.size:,} bytes, as {NAME} says ({how})"


def release_problems(store: Store, release: Release, is_full: bool) -> list[str]:
    """Against the manifest: names and sizes, or every byte too."""
    sizes = store.sizes()
    problems = listing_problems(release, sizes)
    for path, entry in release.files.items():
        if is_full and sizes.get(path) == entry["bytes"]:
            found = sha256_of(store.blocks(path))
            if found != entry["sha256"]:
                problems.append(f"{path} has SHA-256 {found[:16]}..., {NAME} says {entry['sha256'][:16]}...")
    return problems


def left_out_of(folder: Path) -> Callable[[Path], bool] | None:
    """Of a folder in a release: whether the release left a file out, which need not be there; None: it is in no release.

    Raises:
        ShardError: the manifest above it is none.
    """
    above = Path(os.path.abspath(folder)).parent
    if not (above / NAME).is_file():
        return None
    release = read_release((above / NAME).read_bytes(), str(above))
    there = {above / path for path in release.files}
    return lambda path: path.is_relative_to(above) and path not in there


def records_problems(folder: Path, release: Release) -> list[str]:
    """What a stage read is what the one before it wrote, as far as the records of the release say."""
    roots = [open_root(folder / name) for name in release.roots]
    return LineageCheck(roots, False, left_out_of(folder / "any")).run().problems
