"""What this machine published from which step folders, so that what is there already need not be assembled again to know it.

A record can be lost: then a release is assembled and compared. It never replaces a look at the target.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from checkpoints.cache import cache_folder
from olmo_train.files import write_atomic
from olmo_train.step_folder import MANIFEST


@dataclass(frozen=True)
class Record:
    """Of one step folder published in one way to one target."""

    path: Path

    def read(self) -> str | None:
        """SHA-256 of the release that it became; None if unknown."""
        try:
            return str(json.loads(self.path.read_text())["release_sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, release_sha256: str) -> None:
        """Remember it, if the cache can be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps({"release_sha256": release_sha256}).encode())
        except OSError:
            return


def record_of(folder: Path, where: str, options: list[object]) -> Record:
    """The record of a step folder (by its manifest, which has the SHA-256 of its files) and how it is published."""
    manifest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps([manifest, where, *options]).encode()).hexdigest()
    return Record(cache_folder("published", f"{key}.json"))
