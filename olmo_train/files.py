"""Files that are whole or not there."""

import contextlib
import hashlib
import os
import uuid
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary name, synced to disk before the rename."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")  # process ids are the same on two machines
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def copy_hashed(source: Path, target: Path, block: int = 8 * 2**20) -> str:
    """Copy a file, synced to disk; return the SHA-256 of what was read, from the disk rather than from memory where it can be.

    Raises:
        OSError: its `filename` is `source` if reading failed, and None or `target` if writing did.
    """
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while True:
            try:
                data = reader.read(block)
            except OSError as error:
                error.filename = str(source)
                raise
            if not data:
                break
            digest.update(data)
            writer.write(data)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
