"""A release in a folder: built beside it under a name made of its content, and renamed when whole."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from data_tools.publish.manifest import NAME
from data_tools.publish.stores import Staged, file_blocks, sha256_of
from olmo_train.errors import ConfigError, ShardError
from olmo_train.files import copy_hashed, sync_folder, write_atomic


class FolderStore:
    """A folder of this machine, or of a network file system with an atomic rename."""

    def __init__(self, where: str) -> None:
        self.where, self.folder = where, Path(where)

    def sizes(self) -> dict[str, int]:
        """See Store."""
        return {str(p.relative_to(self.folder)): p.stat().st_size for p in self.folder.rglob("*") if p.is_file()}

    def read(self, path: str) -> bytes | None:
        """See Store."""
        try:
            return (self.folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def blocks(self, path: str) -> Iterator[bytes]:
        """See Store."""
        return file_blocks(self.folder / path)

    def put(self, staged: Staged, said: Callable[[str], None]) -> None:
        """See Store. Every file is read back, or was hashed on its way."""
        work = self.folder.with_name(f".{self.folder.name}.publishing-{staged.release.sha256[:16]}")
        try:
            work.mkdir(parents=True, exist_ok=True)
            for path, source in staged.files.items():
                self._bring(source, work / path, staged.release.files[path])
            write_atomic(work / NAME, staged.release.to_bytes())
            for folder in [work, *(p for p in work.rglob("*") if p.is_dir())]:
                sync_folder(folder)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()
            os.rename(work, self.folder)  # onto a folder that is not empty it fails: nobody's files are lost
            sync_folder(self.folder.parent)
        except OSError as error:
            if self.folder.exists():
                shutil.rmtree(work, ignore_errors=True)
                raise ConfigError(f"target={self.where} appeared while it was being made; nothing of it was changed") from None
            raise ShardError(f"{work}: {error.strerror or error}; the same command goes on from here") from None

    def _bring(self, source: Path, target: Path, entry: dict[str, object]) -> None:
        if target.exists() and target.stat().st_size == entry["bytes"] and sha256_of(file_blocks(target)) == entry["sha256"]:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        found = copy_hashed(source, temporary)
        if found != entry["sha256"]:
            temporary.unlink()
            raise ShardError(f"{source}: changed while it was being published; run the same command again")
        os.replace(temporary, target)
