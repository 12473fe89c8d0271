"""Fill a folder with files of known SHA-256, from anywhere, in any number of attempts, and give it its name when it is whole."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from olmo_train.errors import CheckpointError
from olmo_train.files import sync_folder

T = TypeVar("T")
PIECE = 4 * 2**20
Files = Mapping[str, tuple[int, str]]
"""By path: (bytes, SHA-256)."""


def in_parallel(workers: int, call: Callable[[T], None], items: Iterable[T]) -> None:
    """`call` on every item; after a failure no further ones begin, and the first failure is raised."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def check_path(path: str, where: str) -> None:
    """Raises:
    CheckpointError: a path of a manifest leads out of its folder.
    """
    if not path or path.startswith("/") or "\\" in path or "\0" in path or ".." in PurePosixPath(path).parts:
        raise CheckpointError(f"{where}: its manifest names the file {path!r}, which is not inside the release; do not use it")


def fill(
    work: Path, files: Files, source: Callable[[str], BinaryIO], where: str, workers: int, moved: Callable[[int], None]
) -> None:
    """Bring every file that is not yet in `work` as it should be; each has its name only when whole and of the right SHA-256.

    Several processes may fill the same folder.

    Raises:
        CheckpointError: what came is not what `files` says, or a path leads out of the folder.
    """
    for path in files:
        check_path(path, where)

    def bring(path: str) -> None:
        size, sha256 = files[path]
        if not holds(work / path, size, sha256):
            part = work.with_name(f"{work.name}.part-{secrets.token_hex(4)}")  # beside, so that `work` never holds anything else
            _bring(work / path, part, sha256, source(path), f"{where}/{path}")
        moved(size)

    in_parallel(workers, bring, files)


def holds(path: Path, size: int, sha256: str) -> bool:
    """Whether a file is there and has this content."""
    try:
        if path.stat().st_size != size:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def finish(work: Path, final: Path) -> bool:
    """Give a filled folder its name, durably. False: another process was first, or took `work` away."""
    for folder in [work, *(path for path in work.rglob("*") if path.is_dir())]:
        sync_folder(folder)
    try:
        os.rename(work, final)
    except OSError:
        if final.is_dir():
            return False
        raise
    sync_folder(final.parent)
    return True


def _bring(path: Path, part: Path, sha256: str, stream: BinaryIO, where: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with stream, open(part, "xb") as file:
            while piece := stream.read(PIECE):
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise CheckpointError(
                f"{where}: SHA-256 {digest.hexdigest()}, its release.json says {sha256}: it changed where it lies or on its way; "
                "try again, and if it stays so the release is damaged there"
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
