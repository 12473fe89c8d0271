"""What publishing asks of a place for releases, and the index that every place has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from checkpoints.publish.claims import Timing
from checkpoints.publish.filling import in_parallel
from checkpoints.publish.retry import Patience
from checkpoints.publish.staging import Staged
from checkpoints.publish.stores import Store
from checkpoints.release import MANIFEST, IndexEntry, Release, index_entry, read_release
from olmo_train.errors import CheckpointError, ConfigError

NEWEST = "newest"


@dataclass(frozen=True)
class Manner:
    """How a target works."""

    workers: int = 4
    """Files at a time."""
    patience: Patience = field(default_factory=Patience)
    timeout_s: float = 120.0
    """Without a byte, before a connection counts as lost."""
    claims: Timing = field(default_factory=Timing)
    said: Callable[[str], None] = lambda text: None
    """Told of attempts that failed."""


class Target(Protocol):
    """A place to publish to. Methods raise ConfigError (not allowed, not usable) and CheckpointError (failed)."""

    where: str
    """As in messages."""

    @property
    def store(self) -> Store:
        """The same place, read."""

    def prepare(self, private: bool | None, takes_main: bool) -> None:
        """Make the place if it is not there, and see that it can be written, and that main, if we shall write it, is ours."""

    def damage(self, release: Release) -> list[str]:
        """What a published revision lacks or has too much, by the sizes (on a hub also the SHA-256) that the place tells."""

    def put(self, staged: Staged, replace: bool, moved: Callable[[int], None]) -> bool:
        """Publish one revision, all of it at once or nothing; `moved` is told of bytes as they are there.

        False: the revision is there already (not with `replace`), and nothing was written.
        """

    def set_main(self, choice: str | None) -> tuple[str | None, int]:
        """Bring main and the index up to date: (the release that main holds now, releases in the index).

        `choice`: `newest`, a revision, or None to leave the files of main and write only the index.
        """


def read_published(store: Store, name: str) -> Release | None:
    """The manifest of a published revision; None if there is none."""
    if not store.has(name):
        return None
    try:
        return read_release(store.read(name, MANIFEST), f"{store.where}: {name}")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; replace=true publishes {name} anew") from None


def read_entries(store: Store, manner: Manner) -> dict[str, IndexEntry]:
    """A line of the index for every release of a store, by stage and step; what only has the name of one is left out."""
    names = store.revisions()
    found: dict[str, IndexEntry] = {}

    def read(name: str) -> None:
        try:
            found[name] = index_entry(read_release(store.read(name, MANIFEST), f"{store.where}: {name}"))
        except CheckpointError as error:
            manner.said(f"{name} is left out of the index: {error}")

    in_parallel(manner.workers, read, names)
    return {name: found[name] for name in names if name in found}


def choose_main(entries: dict[str, IndexEntry], choice: str | None, where: str) -> str | None:
    """The release that main shall hold; None: main keeps its files.

    Raises:
        ConfigError: the chosen one is not published.
    """
    if choice is None or not entries:
        return None
    if choice == NEWEST:
        return max(entries, key=lambda name: (entries[name].stage, entries[name].step, entries[name].tokens))
    if choice not in entries:
        raise ConfigError(f"main={choice} is not a release of {where}; there are: {', '.join(entries)}")
    return choice


def check_listing(release: Release, sizes: dict[str, int], unlisted: tuple[str, ...]) -> list[str]:
    """What a listing has that a manifest has not, and the other way round."""
    problems = [f"{path} is missing" for path in release.files if path not in sizes]
    problems += [
        f"{path} has {sizes[path]} bytes, not {entry['bytes']}"
        for path, entry in release.files.items()
        if path in sizes and sizes[path] != entry["bytes"]
    ]
    return problems + [f"{path} is not part of it" for path in sizes if path not in release.files and path not in unlisted]
