"""Where a release is built before it is published: a folder of its own, gone afterwards, whatever happens."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from checkpoints.publish.filling import Files
from checkpoints.release import MANIFEST, SIGNATURE, Release
from olmo_train.checkpoint import verify_files
from olmo_train.errors import CheckpointError


@dataclass(frozen=True)
class Staged:
    """A release on this machine, whole."""

    folder: Path
    release: Release

    @cached_property
    def files(self) -> Files:
        """Of the release, its manifest and signature left out."""
        return {path: (entry["bytes"], entry["sha256"]) for path, entry in self.release.files.items()}

    @cached_property
    def closing(self) -> list[str]:
        """What is published last, in this order."""
        return [*([SIGNATURE] if (self.folder / SIGNATURE).exists() else []), MANIFEST]

    @cached_property
    def bytes(self) -> int:
        """Of all files."""
        return sum(size for size, _ in self.files.values()) + sum((self.folder / name).stat().st_size for name in self.closing)


def check_staged(folder: Path, release: Release) -> Staged:
    """A staged folder, every byte compared with its manifest.

    Raises:
        CheckpointError: files are missing, changed or too many, or release.json is not this manifest.
    """
    problems = verify_files(folder, {"files": release.files})
    lying = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    problems += [f"{folder / path}: not in the manifest" for path in sorted(lying - set(release.files) - {MANIFEST, SIGNATURE})]
    if MANIFEST not in lying or (folder / MANIFEST).read_bytes() != release.to_bytes():
        problems.append(f"{folder / MANIFEST}: not the manifest of {release.name}")
    if problems:
        raise CheckpointError(f"{release.name} is not as it was built, and was not published: {'; '.join(problems)}")
    return Staged(folder, release)


@contextmanager
def staging_folder(base: Path, name: str) -> Iterator[Path]:
    """An empty folder under `base`, removed at the end; what killed processes left there is removed first.

    A process holds a lock on its folder as long as it lives, so that one knows a leftover from the work of another process.
    """
    work, descriptor = _create(base, name)
    try:
        yield work / "release"
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)
        _remove_if_empty(base)


def _create(base: Path, name: str) -> tuple[Path, int]:
    while True:
        base.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(base):
                _sweep(base)
                work = base / f"{name}-{secrets.token_hex(4)}"
                (work / "release").mkdir(parents=True)
                descriptor = os.open(work, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return work, descriptor
        except FileNotFoundError:  # another process had nothing more to do here and removed the base in between
            continue


def _sweep(base: Path) -> None:
    for folder in base.iterdir():
        if folder.is_dir():
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_if_empty(base: Path) -> None:
    try:
        with _locked(base):
            base.rmdir()
    except OSError:  # others work there, or removed it
        return
