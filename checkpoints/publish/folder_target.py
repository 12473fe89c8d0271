"""Publish to a folder: built beside, in a folder named by its content, and renamed when whole."""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from checkpoints.publish.file_store import FileStore
from checkpoints.publish.filling import Files, fill, finish
from checkpoints.publish.staging import Staged
from checkpoints.publish.targets import Manner, check_listing, choose_main, read_entries
from checkpoints.release import INDEX, MAIN, MANIFEST, UNLISTED, Release, index_bytes, read_release_folder
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import write_atomic

WORK = ".publishing"
"""Folder beside the revisions, where they are built."""
TURNS = 100
"""How often another process may get in between before it is an error."""


class FolderTarget:
    """A folder on a file system of this machine, or a network file system with an atomic rename."""

    def __init__(self, where: str, manner: Manner) -> None:
        self.root, self.manner = Path(where), manner
        self.store = FileStore(where, manner.patience, manner.said)
        self.where = self.store.where

    def prepare(self, private: bool | None, takes_main: bool) -> None:
        """Create the folder."""
        if private is not None:
            raise ConfigError(f"private={str(private).lower()} is for hubs; for {self.where} set the rights of the folder")
        try:
            (self.root / WORK).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"target={self.where} cannot be written: {error.strerror}") from None
        main = self.root / MAIN
        if takes_main and main.is_dir() and not (main / MANIFEST).exists() and {path.name for path in main.iterdir()} - {INDEX}:
            raise ConfigError(
                f"{main} holds files that no publishing wrote; give another target, main=null, or replace=true to lose them"
            )

    def damage(self, release: Release) -> list[str]:
        """By the sizes."""
        return check_listing(release, self.store.files(release.name), UNLISTED)

    def put(self, staged: Staged, replace: bool, moved: Callable[[int], None]) -> bool:
        """Fill `.publishing/NAME-CONTENT`, then rename. Two with the same content fill one folder; others do not meet."""
        name, final = staged.release.name, self.root / staged.release.name
        work = self.root / WORK / f"{name}-{staged.release.sha256[:16]}"
        done = False
        for _ in range(TURNS):
            if done or (final.exists() and not replace):
                break
            try:
                self._fill(work, staged, moved)
                if replace:
                    self._step_aside(final)
                done = finish(work, final)
            except FileNotFoundError:  # another process finished this revision, and removed what was being built for it
                continue
            except OSError as error:
                _remove(work)
                raise CheckpointError(f"{work}: {error.strerror}; {name} was not published, and nothing of it is left") from None
        self._tidy(name)
        return done

    def set_main(self, choice: str | None) -> tuple[str | None, int]:
        """Rename a folder of links to the chosen release into place; write the index until it says what the folder has."""
        index_path = self.root / MAIN / INDEX
        for _ in range(TURNS):
            entries = read_entries(self.store, self.manner)
            name = choose_main(entries, choice, self.where)
            index = index_bytes(entries.values())
            try:
                if name is not None and not self._main_is(entries[name].release_sha256):
                    self._swap_main(name, index)
                if name is None:
                    index_path.parent.mkdir(exist_ok=True)
                if not index_path.exists() or index_path.read_bytes() != index:
                    write_atomic(index_path, index)
                is_right = name is None or self._main_is(entries[name].release_sha256)
                if is_right and read_entries(self.store, self.manner) == entries and index_path.read_bytes() == index:
                    with contextlib.suppress(OSError):  # not empty: others are at work
                        (self.root / WORK).rmdir()
                    return name, len(entries)
            except FileNotFoundError:  # another process puts another main there
                continue
            except OSError as error:
                raise CheckpointError(f"{index_path.parent}: {error.strerror}; the same command brings it up to date") from None
        raise CheckpointError(f"{index_path}: other processes never stopped changing it; run the same command again")

    def _fill(self, work: Path, staged: Staged, moved: Callable[[int], None]) -> None:
        work.mkdir(parents=True, exist_ok=True)
        closing = {name: _entry(staged.folder / name) for name in staged.closing}
        files: Files = {**staged.files, **closing}
        for path in files:
            if (staged.folder / path).stat().st_nlink == 1:  # else it is still the run's own file, which may change
                _link(staged.folder / path, work / path)
        fill(work, files, lambda path: (staged.folder / path).open("rb"), self.where, self.manner.workers, moved)

    def _main_is(self, sha256: str) -> bool:
        try:
            release = read_release_folder(self.root / MAIN)
            return release.sha256 == sha256 and not check_listing(release, self.store.files(MAIN), UNLISTED)
        except CheckpointError:
            return False

    def _swap_main(self, name: str, index: bytes) -> None:
        work = self.root / WORK / f"{MAIN}-{secrets.token_hex(8)}"
        source = self.root / name
        for path in [path for path in source.rglob("*") if path.is_file()]:
            target = work / path.relative_to(source)
            if path.suffix == ".safetensors":  # who edits a text of main shall not edit that of the release
                _link(path, target)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        write_atomic(work / INDEX, index)
        self._step_aside(self.root / MAIN)
        finish(work, self.root / MAIN)  # if another process was first, the caller compares and comes again
        self._tidy(MAIN)

    def _step_aside(self, folder: Path) -> None:
        (self.root / WORK).mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, self.root / WORK / f"{folder.name}-old-{secrets.token_hex(8)}")

    def _tidy(self, name: str) -> None:
        """Remove what was being built under this name, by whomever: those still at it find that out and look again."""
        for leftover in (self.root / WORK).glob(f"{name}-*"):
            _remove(leftover)


def _entry(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, where the file system can; it costs no space and no time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        return
