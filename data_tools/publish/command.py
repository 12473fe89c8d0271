"""Publish a dataset with everything that leads back to where it came from.

olmo data publish folders=[mixed,shards/demo] target=hf://owner/name name=demo 'licenses={web: odc-by}'
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from data_tools.publish.assemble import Assembled, Options, assemble, document_sources, recorded_licenses
from data_tools.publish.card import card_of
from data_tools.publish.check_release import release_problems
from data_tools.publish.manifest import NAME, Release, listing_problems, read_release
from data_tools.publish.opening import open_store
from data_tools.publish.stores import Staged, Store
from olmo_train.errors import ConfigError, ShardError, run_command
from olmo_train.files import copy_hashed
from olmo_train.schema import load_config


@dataclass
class PublishDataConfig:
    """`configs/publish_data.yaml`."""

    folders: list[str] = field(default_factory=list)
    """Datasets and shards. Of the datasets before them the records go with them, their documents only if they are named here."""
    target: str = MISSING
    """A folder; hf://owner/name; s3://bucket/prefix or what else fsspec knows."""
    name: str = MISSING
    description: str = ""
    """Markdown, for the card."""
    licenses: dict[str, str] = field(default_factory=dict)
    """By source; `default` is that of every other one; what is not given is taken from the settings of `ingest`. Identifiers as
    hubs know them, e.g. odc-by, cc-by-4.0."""
    quarantine: bool = False
    """Also what was rejected, as it was: it may hold anything."""
    allow_paths: bool = MISSING
    """Publish documents whose ids or metadata hold paths of this machine."""
    private: bool | None = None
    """Of a hub's repository that is made."""
    scratch: str | None = None
    """Folder for rewritten records until they are sent; None: that of the system."""


def main(argv: list[str]) -> None:
    """Assemble, upload, read back, and say where it is."""
    config = load_config("publish_data", PublishDataConfig, argv, _problems)
    store = open_store(config.target, config.private)
    work = Path(tempfile.mkdtemp(prefix="olmo-publish-", dir=config.scratch))
    try:
        staged = stage_release(config, work)
        is_new = publish(store, staged)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    release = staged.release
    state = "published" if is_new else "was there already"
    print(
        f"{store.where}: {release.name} {state}: {len(release.files):,} files, {release.size:,} bytes, {release.sha256[:16]}..."
    )


def _problems(config: PublishDataConfig) -> list[str]:
    problems = [] if config.folders else ["folders is empty; give datasets or shards"]
    if not config.name.strip():
        problems.append("name is empty; it is the title of the card")
    for folder in config.folders:
        if config.target and Path(config.target).absolute() == Path(folder).absolute():
            problems.append(f"target={config.target} is one of folders; give another")
    return problems


def stage_release(config: PublishDataConfig, work: Path) -> Staged:
    """The release as it lies on this machine.

    Raises:
        ConfigError: a source has no license, or a private path would be published.
        ShardError: something is not as its stage wrote it.
    """
    made = assemble(Options(config.folders, work / "files", config.quarantine, config.allow_paths, _said))
    licenses = {**recorded_licenses(made), **config.licenses}
    _check_licenses(licenses, config, made)
    release = Release(
        config.name,
        config.description,
        dict(sorted(licenses.items())),
        made.kinds,
        dict(sorted(made.rewritten.items())),
        dict(made.entries),
    )
    card = work / "README.md"
    card.write_text(card_of(release, made), encoding="utf-8")
    made.files["README.md"] = card
    release.files["README.md"] = {"bytes": card.stat().st_size, "sha256": copy_hashed(card, work / "card")}
    return Staged(release, dict(sorted(made.files.items())))


def _check_licenses(licenses: dict[str, str], config: PublishDataConfig, made: Assembled) -> None:
    sources = document_sources(made)
    lacking = [source for source in sources if source not in licenses and "default" not in licenses]
    unknown = [name for name in config.licenses if name not in sources and name != "default"]
    problems = []
    if lacking:
        problems.append(f"licenses: none for {', '.join(lacking)}; give 'licenses={{{lacking[0]}: odc-by}}', or default")
    if unknown:
        problems.append(f"licenses: no source is called {', '.join(unknown)}; there are {', '.join(sources)}")
    if problems:
        raise ConfigError(problems)


def publish(store: Store, staged: Staged) -> bool:
    """Bring a release to a place; False: it was there already, whole.

    Raises:
        ConfigError: another release is there. ShardError: it is there, but damaged, or did not arrive whole.
    """
    there = store.read(NAME)
    if there is None:
        sizes = store.sizes()
        if sizes and not _is_ours(store, sizes):
            raise ConfigError(f"target={store.where} holds files that no publishing wrote; give another target")
        store.put(staged, _said)
        problems = listing_problems(staged.release, store.sizes())
        if problems:
            raise ShardError(f"{store.where}: is not as it was written: {'; '.join(problems[:5])}")
        return True
    if read_release(there, store.where).to_bytes() != staged.release.to_bytes():
        raise ConfigError(f"target={store.where} holds another release, which is never overwritten; give another target")
    problems = release_problems(store, staged.release, False)
    if problems:
        raise ShardError(f"{store.where}: is damaged: {'; '.join(problems[:5])}; remove it and publish again")
    return False


def _is_ours(store: Store, sizes: dict[str, int]) -> bool:
    """Whether an unfinished publishing left these files, or a hub its own."""
    return store.read(".publishing") is not None or set(sizes) <= {".gitattributes", "README.md"}


def _said(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
