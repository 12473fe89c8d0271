"""All checkpoints of a place that holds several: a run, or a store of releases."""

from pathlib import Path

from checkpoints.catalog import find_folders
from checkpoints.opening import Checkpoint, open_checkpoint
from checkpoints.publish.hub_store import HubStore
from checkpoints.publish.stores import open_store
from checkpoints.release import parse_revision
from olmo_train.errors import ConfigError
from olmo_train.step_folder import MANIFEST


def is_run(where: str) -> bool:
    """Whether it is the folder of a run (a step folder has a config.yaml too)."""
    return (Path(where) / "config.yaml").exists() and not is_one(where)


def is_one(where: str) -> bool:
    """Whether it is one checkpoint: a step folder, a Hugging Face folder, or a revision of a hub repository."""
    path = Path(where)
    is_revision = not path.exists() and "@" in where.rpartition("/")[2]
    return (path / MANIFEST).exists() or (path / "config.json").exists() or is_revision


def find_checkpoints(where: str, steps: tuple[int, ...] | None = None) -> list[str]:
    """What `open_checkpoint` takes for each checkpoint of `where`, oldest first; `steps`: only those.

    Raises:
        ConfigError: there is none, not every one of `steps`, or `where` is one checkpoint and `steps` asks for some.
    """
    if is_one(where):
        if steps is not None:
            raise ConfigError(f"--steps goes with a run or a store of releases; {where} is one checkpoint already")
        return [where]
    if is_run(where):
        found = [(step, str(folder)) for step, folder in find_folders(Path(where))]
    else:
        found = releases_of(where)
        if not found:
            raise ConfigError(f"{where} is no run (no config.yaml), no checkpoint, and no release is in it")
    missing = set(steps or ()) - {step for step, _ in found}
    if missing:
        saved = ", ".join(str(step) for step, _ in found)
        raise ConfigError(f"--steps={','.join(map(str, sorted(missing)))} not in {where}; there are {saved}")
    return [address for step, address in found if steps is None or step in steps]


def releases_of(where: str) -> list[tuple[int, str]]:
    """(step, what `open_checkpoint` takes) of the releases of a store, by stage and step."""
    store = open_store(where)
    prefix = f"{store.name}@" if isinstance(store, HubStore) else f"{where.rstrip('/')}/"
    parsed = [(revision, parse_revision(revision)) for revision in store.revisions()]
    return [(parts[1], prefix + revision) for revision, parts in parsed if parts is not None]


def open_named(where: str, with_optimizer: bool = False) -> Checkpoint:
    """`open_checkpoint`, where `runs/first@STEP` is a step of a run.

    Raises:
        ConfigError, CheckpointError: as `open_checkpoint`.
    """
    run, at, step = where.rpartition("@")
    if at and step.isdigit() and not Path(where).exists() and is_run(run):
        return open_checkpoint(run, int(step))
    return open_checkpoint(where, with_optimizer=with_optimizer)
