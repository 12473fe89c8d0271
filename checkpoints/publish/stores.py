"""What holds releases: a hub repository (a branch per revision), a folder or an object store (a sub-folder per revision).

owner/name, hub:owner/name      a hub repository; HF_ENDPOINT says which hub, HF_TOKEN or `hf auth login` who asks
releases/first                  a folder
s3://bucket/first               whatever fsspec knows
"""

from pathlib import Path
from typing import BinaryIO, Protocol

from checkpoints.publish.file_store import FileStore
from checkpoints.publish.hub_store import HUB_NAME, HubStore


class Store(Protocol):
    """Releases as their readers see them. Failures that may pass are tried again before they are raised.

    Every method raises ConfigError if the store cannot be used (not there, not allowed, package missing), and CheckpointError if
    it has no such revision or file, or failed.
    """

    where: str
    """As in messages."""

    def revisions(self) -> list[str]:
        """Names of the releases by stage and step; `main` is not among them, but can be given to the other methods."""

    def has(self, revision: str) -> bool:
        """Whether a revision is there."""

    def files(self, revision: str) -> dict[str, int]:
        """Bytes of every file of a revision by its path, those that its manifest does not list included."""

    def read(self, revision: str, path: str) -> bytes:
        """A small file."""

    def open(self, revision: str, path: str) -> BinaryIO:
        """A file, to be read once from its start to its end; close it."""


def open_store(where: str) -> Store:
    """The store that `where` names (see the module). An existing folder takes precedence over a hub repository of that name.

    Raises:
        ConfigError: it is none of them, or its package is missing.
    """
    if where.startswith("hub:") or ("://" not in where and not Path(where).is_dir() and HUB_NAME.fullmatch(where)):
        return HubStore(where.removeprefix("hub:"))
    return FileStore(where)
