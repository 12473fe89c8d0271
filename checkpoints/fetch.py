"""Bring a release from a hub or a store to this machine, and compare every byte of it with its manifest."""

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from checkpoints.cache import cache_folder
from checkpoints.publish.file_store import FileStore
from checkpoints.publish.filling import fill, finish
from checkpoints.publish.hub_store import HubStore
from checkpoints.publish.retry import chain, is_disk_full, retry, scrub, short, status_of
from checkpoints.release import MANIFEST, SIGNATURE, TRAINING, Release, is_optimizer_file, read_release, read_release_folder
from olmo_train.checkpoint import verify_files
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import write_atomic

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
WORKERS = 4
"""Files at a time."""


def looks_remote(where: str) -> bool:
    """Whether a name that is no path here can be a hub repository or a URL."""
    return "://" in where or HUB_NAME.fullmatch(where) is not None


def fetch(where: str, with_optimizer: bool = True) -> Path:
    """The folder of a hub revision (owner/name, owner/name@REVISION) or of a release in a store (s3://bucket/first/REVISION).

    A release of ours is compared with its manifest, file by file; a repository of others on a hub is taken as it is, a folder of
    a store without release.json is not. What was fetched once and is still the same is not fetched again. Without the optimizer
    state, two thirds of a release of float32 weights stay where they are.

    Raises:
        ConfigError: the package is missing, there is no such repository, revision or store, or it cannot be read by us.
        CheckpointError: no release, a file that is not what the manifest says, or no connection.
    """
    return _fetch_url(where, with_optimizer) if "://" in where else _fetch_hub(where, with_optimizer)


def _fetch_hub(where: str, with_optimizer: bool) -> Path:
    name, _, revision = where.partition("@")
    store = HubStore(name)
    from huggingface_hub import snapshot_download

    left_out = None if with_optimizer else [f"{TRAINING}/optim-*", f"{TRAINING}/rng-*"]

    def download() -> str:
        return snapshot_download(name, revision=revision or None, endpoint=store.api.endpoint, ignore_patterns=left_out)

    try:
        folder = Path(retry(download, store.patience))
    except Exception as error:
        raise _hub_error(store, error, where, revision) from None
    if (folder / MANIFEST).exists():
        _verify_once(folder, where, with_optimizer)
    return folder


def _hub_error(store: HubStore, error: Exception, where: str, revision: str) -> Exception:
    kinds = {type(one).__name__ for one in chain(error)}
    if is_disk_full(error):
        return CheckpointError(f"{where}: no space left in Hugging Face's cache; free space, or point HF_HOME elsewhere")
    if "RevisionNotFoundError" in kinds:
        return ConfigError(f"{where}: the repository is there, and has no revision {revision}; see its branches on the hub")
    if "RepositoryNotFoundError" in kinds or "GatedRepoError" in kinds or status_of(error) in (401, 403):
        return ConfigError(
            f"{where}: not found on the hub {store.api.endpoint}, or private, and the token is missing or not allowed to see it; "
            "log in with `hf auth login` or HF_TOKEN; is a folder meant? it does not exist"
        )
    if "OfflineModeIsEnabled" in kinds:
        return ConfigError(f"{where}: HF_HUB_OFFLINE is set, and it is not in the cache, or not whole; unset it once to fetch it")
    if "LocalEntryNotFoundError" in kinds or "IncompleteSnapshotError" in kinds or isinstance(error, OSError):
        return CheckpointError(
            f"{where}: {scrub(short(error))}; no answer from {store.api.endpoint}, and it is not whole in the cache; what came "
            "until now is kept, try again"
        )
    return store.in_words(error, revision)


def _verify_once(folder: Path, where: str, with_optimizer: bool) -> None:
    """Compare a downloaded release with its manifest; the libraries compare sizes only. A stamp keeps it to once per download."""
    release = read_release_folder(folder)
    sizes = [(path, (folder / path).stat().st_mtime_ns) for path in sorted(release.files) if (folder / path).exists()]
    key = hashlib.sha256(repr((str(folder.resolve()), release.sha256, sizes)).encode()).hexdigest()
    stamp = cache_folder("verified", key)
    if stamp.exists():
        return
    problems = verify_files(folder, {"files": _wanted(release, with_optimizer)})
    if problems:
        raise CheckpointError(
            "\n".join(
                [*problems, f"{where} is not what its {MANIFEST} says; remove {folder} with the files it links to, fetch again"]
            )
        )
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(stamp, b"")
    except OSError:
        return


def _wanted(release: Release, with_optimizer: bool) -> dict[str, dict[str, Any]]:
    return {path: entry for path, entry in release.files.items() if with_optimizer or not is_optimizer_file(path)}


def _fetch_url(where: str, with_optimizer: bool) -> Path:
    parent, _, revision = where.rstrip("/").rpartition("/")
    store = FileStore(parent)
    try:
        text = store.read(revision, MANIFEST)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a folder without {MANIFEST} is no release, or one that is not published yet") from None
    release = read_release(text, store.where + "/" + revision)
    identity = hashlib.sha256(text).hexdigest()
    whole = cache_folder("releases", identity)
    if whole.is_dir():
        return whole
    folder = whole if with_optimizer else whole.with_name(f"{identity}-weights")
    if folder.is_dir():
        return folder
    work = folder.with_name(f"{folder.name}.part")
    files = {path: (entry["bytes"], entry["sha256"]) for path, entry in _wanted(release, with_optimizer).items()}
    try:
        _fill_cache(work, folder, store, revision, text, files)
    except OSError as error:
        what = "no space left" if is_disk_full(error) else error.strerror
        raise CheckpointError(
            f"{folder}: {what}; free space, or point XDG_CACHE_HOME elsewhere; {scrub(where)} was not fetched"
        ) from None
    return folder


def _fill_cache(
    work: Path, folder: Path, store: FileStore, revision: str, text: bytes, files: dict[str, tuple[int, str]]
) -> None:
    """Processes that fetch the same release fill one folder together, and one of them gives it its name."""
    while not folder.is_dir():
        try:
            work.mkdir(parents=True, exist_ok=True)
            fill(work, files, lambda path: store.open(revision, path), f"{store.where}/{revision}", WORKERS, lambda size: None)
            if SIGNATURE in store.files(revision):
                _write(work, SIGNATURE, store.read(revision, SIGNATURE))
            _write(work, MANIFEST, text)
            finish(work, folder)
        except FileNotFoundError:  # another process finished it
            if not folder.is_dir():
                raise
    for leftover in work.parent.glob(f"{work.name}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _write(work: Path, name: str, data: bytes) -> None:
    part = work.with_name(f"{work.name}-{secrets.token_hex(4)}")
    try:
        part.write_bytes(data)
        os.replace(part, work / name)
    finally:
        part.unlink(missing_ok=True)
