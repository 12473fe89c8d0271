"""What the words after `olmo verify` name: a run, a step folder, one release, or a store of releases."""

from dataclasses import dataclass
from pathlib import Path

from checkpoints.fetch import looks_remote
from checkpoints.publish.file_store import FileStore
from checkpoints.publish.stores import Store, open_store
from checkpoints.release import MAIN, MANIFEST, parse_revision
from olmo_train.errors import ConfigError
from olmo_train.step_folder import MANIFEST as STEP_MANIFEST


@dataclass(frozen=True)
class RunTarget:
    """The folder of a run."""

    path: Path


@dataclass(frozen=True)
class StepTarget:
    """A step folder."""

    path: Path


@dataclass(frozen=True)
class ReleaseTarget:
    """One revision of a store."""

    store: Store
    revision: str


@dataclass(frozen=True)
class SeriesTarget:
    """All revisions of a store."""

    store: Store


Target = RunTarget | StepTarget | ReleaseTarget | SeriesTarget


def find_target(where: str) -> Target:
    """What `where` names; only names are looked at.

    Raises:
        ConfigError: nothing of the kind.
    """
    path = Path(where)
    if path.is_dir():
        return _local(path)
    if path.exists() or not looks_remote(where.removeprefix("hub:")):
        raise ConfigError(f"{where} is no folder, hub repository (owner/name[@revision]) or URL; e.g. runs/first")
    if "://" in where:
        parent, _, last = where.rstrip("/").rpartition("/")
        is_one = last == MAIN or parse_revision(last) is not None
        return ReleaseTarget(open_store(parent), last) if is_one else SeriesTarget(open_store(where))
    name, _, revision = where.partition("@")
    return ReleaseTarget(open_store(name), revision) if revision else SeriesTarget(open_store(name))


def _local(path: Path) -> Target:
    if (path / STEP_MANIFEST).exists():
        return StepTarget(path)
    if (path / "config.yaml").exists():
        return RunTarget(path)
    name = path.resolve().name
    if (path / MANIFEST).exists() or parse_revision(name) is not None:
        return ReleaseTarget(open_store(str(path.resolve().parent)), name)
    if any(path.glob(f"*/{MANIFEST}")):
        return SeriesTarget(open_store(str(path)))
    raise ConfigError(
        f"{path} is not the folder of a run (it has no config.yaml), of a step ({STEP_MANIFEST}), of a release ({MANIFEST}), "
        "and has no releases in it; e.g. runs/first"
    )


def strangers(store: Store) -> list[str]:
    """Folders of a store that are no finished release under a release's name; a hub's other branches are nobody's business."""
    if not isinstance(store, FileStore):
        return []
    entries = store.call(lambda: store.fs.ls(store.root, detail=True), "")
    names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]
    known = {*store.revisions(), MAIN}
    return sorted(name for name in names if name not in known and (parse_revision(name) or MANIFEST in store.sizes(name)))
