"""The step folders of a run, or the releases of a store: `olmo checkpoints list runs/first`."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from checkpoints.inspect.readable import NONE
from checkpoints.inspect.tables import check_target, columns, write_json
from checkpoints.publish.stores import Store, open_store
from checkpoints.release import MANIFEST as RELEASE
from checkpoints.release import Release, read_release
from checkpoints.run_files import Evaluation, read_evaluations
from olmo_train.checkpoint import read_manifest, read_state
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError, run_command
from olmo_train.schema import read_yaml
from olmo_train.step_folder import MANIFEST, list_steps


@dataclass(frozen=True)
class StepInfo:
    """One finished step folder."""

    step: int
    path: Path
    kind: str
    bytes: int
    tokens: int
    loss: float | None
    lr: float
    """Of the last step taken; 0 before the first."""
    has_optimizer: bool


def find_folders(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the finished steps of a run, oldest first; nothing in them is read.

    Raises:
        ConfigError: there is no such run, or nothing is saved.
    """
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} is not the folder of a run (it has no config.yaml); e.g. runs/first")
    folders = list_steps(run / "steps")
    if not folders:
        raise ConfigError(f"{run} has no finished step folder yet; checkpoint.save_every says when one comes")
    return folders


def find_steps(run: Path) -> list[StepInfo]:
    """Finished steps of a run, oldest first.

    Raises:
        ConfigError: there is no such run, or nothing is saved. CheckpointError: a step folder is damaged.
    """
    steps = []
    for step, path in find_folders(run):
        manifest, state = read_manifest(path), read_state(path)
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        has_optimizer = bool(manifest["tensors"].get("optim"))
        steps.append(StepInfo(step, path, manifest["kind"], size, state["tokens"], state["loss"], state["lr"], has_optimizer))
    return steps


def resolve_step(path: Path, step: int | None = None) -> Path:
    """A step folder given as such, or as a run (then the newest step, or `step`).

    Raises:
        ConfigError: there is no such step, or `path` is one step and `step` asks for another.
    """
    if (path / MANIFEST).exists():
        if step is not None:
            raise ConfigError(f"--step={step} goes with the folder of a run; {path} is one step already")
        return path
    folders = dict(find_folders(path))
    if step is None:
        return folders[max(folders)]
    if step not in folders:
        raise ConfigError(f"--step={step} is not saved in {path}; saved: {', '.join(map(str, folders))}")
    return folders[step]


# ---- the list ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """One checkpoint of a run or a store."""

    name: str
    """The folder of a step, or the revision of a release."""
    step: int
    tokens: int
    loss: float | None
    """Training loss of the step, nats per token."""
    heldout_loss: float | None
    """Over all sources, nats per token; None: not evaluated."""
    bytes: int
    kind: str
    """permanent or ephemeral; of a release its number format."""
    has_optimizer: bool
    published: dict[str, str] = field(default_factory=dict)
    """By store: the revision that this step is there."""


def list_run(run: Path, stores: Sequence[Store] = ()) -> list[Listed]:
    """The steps of a run, and what each is called in the stores: a release of the same run, step and tokens.

    Raises:
        ConfigError, CheckpointError: as `find_steps`, or a store or a manifest in it cannot be read.
    """
    steps, evaluations = find_steps(run), read_evaluations(run)
    name = read_yaml(run / "config.yaml", TrainConfig).run_name if stores else ""
    published = {store.where: list(releases(store)) for store in stores}
    rows = []
    for info in steps:
        key = (name, info.step, info.tokens)
        there = {where: r.name for where, found in published.items() for r in found if (r.run, r.step, r.tokens) == key}
        mine = [entry for entry in evaluations if entry.step == info.step]
        loss = heldout_loss(mine)
        rows.append(
            Listed(str(info.path), info.step, info.tokens, info.loss, loss, info.bytes, info.kind, info.has_optimizer, there)
        )
    return rows


def list_store(store: Store) -> list[Listed]:
    """The releases of a store, by stage and step.

    Raises:
        ConfigError: there is none. CheckpointError: a manifest cannot be used.
    """
    rows = []
    for release in releases(store):
        size = sum(entry["bytes"] for entry in release.files.values())
        evaluations = [Evaluation(release.step, **entry) for entry in release.evaluations]
        rows.append(
            Listed(
                release.name, release.step, release.tokens, release.loss, heldout_loss(evaluations), size, release.dtype,
                release.has_optimizer,
            )
        )  # fmt: skip
    if not rows:
        raise ConfigError(f"{store.where} is neither a run (it has no config.yaml) nor a store with releases in it")
    return rows


def releases(store: Store) -> Iterable[Release]:
    """The manifests of all releases of a store, read."""
    for revision in store.revisions():
        yield read_release(store.read(revision, RELEASE), f"{store.where}/{revision}")


def heldout_loss(evaluations: Iterable[Evaluation]) -> float | None:
    """Over all sources: `all`, or the only one."""
    found = {entry.label: entry.metrics.get("loss") for entry in evaluations if entry.suite == "heldout"}
    return next(iter(found.values())) if len(found) == 1 else found.get("all")


def main(argv: list[str]) -> None:
    """Print a line per checkpoint."""
    parser = argparse.ArgumentParser("olmo checkpoints list", description=__doc__)
    parser.add_argument("where", help="folder of a run, or a store of releases: a folder, a URL, or owner/name on a hub")
    parser.add_argument("--also", nargs="+", default=[], metavar="STORE", help="stores: say which steps of the run are there")
    parser.add_argument("--json", type=Path, help="also write the list to this file")
    args = parser.parse_args(argv)
    check_target(args.json)
    is_store = _is_store(args.where)
    if args.also and is_store:
        raise ConfigError(f"--also={args.also[0]} goes with the folder of a run; {args.where} is a store of releases")
    problems = [f"--also={where} does not exist" for where in args.also if _is_missing(where)]
    if problems:
        raise ConfigError(problems)
    stores = [open_store(where) for where in args.also]
    rows = list_store(open_store(args.where)) if is_store else list_run(Path(args.where), stores)
    if args.json is not None:
        write_json(args.json, [asdict(row) for row in rows])
    print("\n".join(_lines(rows, [store.where for store in stores])))


def _is_store(where: str) -> bool:
    """`runs/frist` is a mistyped run, not a repository of a hub, where there is a folder `runs`."""
    path = Path(where)
    if "://" in where or where.startswith("hub:"):
        return True
    return not (path / "config.yaml").exists() if path.is_dir() else not path.is_absolute() and not path.parent.is_dir()


def _is_missing(where: str) -> bool:
    """A folder that is not there (and whose parent is, or that can be nothing else) would be listed as an empty store."""
    return "://" not in where and not Path(where).is_dir() and not _is_store(where)


def _lines(rows: Sequence[Listed], stores: Sequence[str]) -> list[str]:
    """A table; one column per store, numbered where they are named."""
    titles = ["step", "tokens", "loss", "held-out", "MiB", "kind", "optimizer", *(f"[{n}]" for n, _ in enumerate(stores, 1))]
    table = [[*titles, "name"]]
    for row in rows:
        there = [row.published.get(where, NONE) for where in stores]
        size, optimizer = f"{row.bytes / 2**20:,.1f}", "yes" if row.has_optimizer else "no"
        numbers = [str(row.step), f"{row.tokens:,}", _loss(row.loss), _loss(row.heldout_loss), size]
        table.append([*numbers, row.kind, optimizer, *there, row.name])
    named = [f"[{n}] {where}" for n, where in enumerate(stores, 1)]
    return [*columns(table, left=range(5, len(table[0]))), *([""] if named else []), *named]


def _loss(loss: float | None) -> str:
    return NONE if loss is None else f"{loss:.4f}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
