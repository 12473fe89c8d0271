"""A mirror of a run: the layout of a run folder in a folder or an object store, each step's manifest written last.

PLACE/  config.yaml provenance.json metrics.jsonl data.jsonl wandb_id
        steps/step00001000/  the files of the step folder; manifest.json is there only after all others were read back
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints.publish.file_store import BLOCK, FileStore
from checkpoints.publish.filling import check_path, in_parallel
from checkpoints.publish.retry import Patience
from olmo_train.checkpoint import read_manifest, verify_files
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import copy_hashed, sync_folder, write_atomic
from olmo_train.step_folder import MANIFEST, step_name

RECORDS = ("config.yaml", "provenance.json", "metrics.jsonl", "data.jsonl", "wandb_id")
"""Files of a run folder that a restored run needs beside a step."""
WORKERS = 4
"""Files at a time."""


class Place:
    """Where a run is mirrored. Each request is tried again a few times; then its failure is raised as in `FileStore.call`."""

    def __init__(self, where: str, say: Callable[[str], None], patience: Patience | None = None) -> None:
        """Raises:
        ConfigError: no such file system.
        """
        self.store = FileStore(where, patience, say)
        self.where, self.say = self.store.where, say
        self._local = "://" not in where or where.startswith(("file://", "local://"))

    # ---- writing -----------------------------------------------------------------------------------------------------------

    def put_step(self, folder: Path) -> None:
        """Copy a finished step folder, read every byte back, and only then write its manifest.

        Raises:
            CheckpointError: the folder is damaged, or the place fails or gives back other bytes.
            ConfigError: not allowed.
        """
        manifest, text = read_manifest(folder), (folder / MANIFEST).read_bytes()
        name = f"steps/{folder.name}"
        there = self.store.sizes(name)
        if MANIFEST in there:  # of a step with this number that was taken again, e.g. after the first was found damaged
            self._remove(f"{name}/{MANIFEST}")

        def bring(path: str) -> None:
            entry = manifest["files"][path]
            if there.get(path) == entry["bytes"] and self._sha256(name, path) == entry["sha256"]:
                return
            self._upload(folder / path, name, path)
            found = self._sha256(name, path)
            if found != entry["sha256"]:
                damage = verify_files(folder, manifest, [path])
                reason = "; ".join(damage) or f"{self.where}/{name}/{path} was read back with SHA-256 {found}"
                raise CheckpointError(f"{reason}; {folder.name} is not mirrored")

        in_parallel(WORKERS, bring, manifest["files"])
        self._write(f"{name}/{MANIFEST}", text)

    def put_records(self, run: Path) -> None:
        """Copy what a restored run needs beside its steps; lines that are being written are left out.

        Raises:
            ConfigError: the place holds another run.
        """
        ours, theirs = _first_start(run / "provenance.json"), self.first_start()
        if None not in (ours, theirs) and ours != theirs:
            raise ConfigError(
                f"{self.where} is the mirror of another run (its first start is {theirs}, not {ours}); give another"
            )
        for name in RECORDS:
            if (run / name).exists():
                data = (run / name).read_bytes()
                self._write(name, data[: data.rfind(b"\n") + 1] if name.endswith(".jsonl") else data)

    # ---- reading -----------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps that are whole, the oldest first."""
        paths = (path.split("/") for path in self.store.sizes("steps"))
        names = {path[0].removeprefix("step") for path in paths if path[1:] == [MANIFEST]}
        return sorted(int(name) for name in names if name.isdigit())

    def holds(self, folder: Path) -> bool:
        """Whether it holds this very step, each file with its size."""
        name = f"steps/{folder.name}"
        there = self.store.sizes(name)
        if MANIFEST not in there or self.store.read(name, MANIFEST) != (folder / MANIFEST).read_bytes():
            return False
        return all(there.get(path) == entry["bytes"] for path, entry in read_manifest(folder)["files"].items())

    def get_step(self, step: int, folder: Path) -> None:
        """Bring a step into the empty `folder`, every byte compared on the way, its manifest last.

        Raises:
            CheckpointError: it is damaged there, or the place or the disk fails.
        """
        name = f"steps/{step_name(step)}"
        text = self.store.read(name, MANIFEST)
        try:
            files = json.loads(text)["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.where}/{name}/{MANIFEST} cannot be read: {error}") from error

        def bring(path: str) -> None:
            check_path(path, f"{self.where}/{name}")
            found = self._sha256(name, path, folder / path)
            if found != files[path]["sha256"]:
                raise CheckpointError(f"{self.where}/{name}/{path}: SHA-256 {found}, its manifest says {files[path]['sha256']}")

        try:
            folder.mkdir(parents=True, exist_ok=True)
            in_parallel(WORKERS, bring, files)
            write_atomic(folder / MANIFEST, text)
            sync_folder(folder)
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or folder}: {error.strerror}; free space, then the same command again"
            ) from error

    def get_records(self, run: Path) -> None:
        """Bring the records that the run folder lacks."""
        for name in RECORDS:
            if not (run / name).exists() and (data := self._read(name)) is not None:
                write_atomic(run / name, data)

    def first_start(self) -> str | None:
        """What names the run that is mirrored here; None if there is none."""
        data = self._read("provenance.json")
        return None if data is None else _parse_first_start(data)

    # ---- files -------------------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes | None:
        def once() -> bytes | None:
            try:
                return bytes(self.store.fs.cat_file(f"{self.store.root}/{name}"))
            except FileNotFoundError:
                return None

        return self.store.call(once, name)

    def _remove(self, name: str) -> None:
        self.store.call(lambda: self.store.fs.rm_file(f"{self.store.root}/{name}"), name)

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self.store.root}/{name}"
        if self._local:
            self.store.call(lambda: _write_local(Path(path), data), name)
        else:
            self.store.call(lambda: self.store.fs.pipe_file(path, data), name)

    def _upload(self, source: Path, name: str, path: str) -> None:
        remote = self.store.path(name, path)
        if self._local:
            self.store.call(lambda: _copy_local(source, Path(remote)), f"{name}/{path}")
        else:
            self.store.call(lambda: self.store.fs.put_file(str(source), remote), f"{name}/{path}")

    def _sha256(self, name: str, path: str, target: Path | None = None) -> str:
        """Of a file there; also written to `target`, synced."""
        digest = hashlib.sha256()
        with self.store.open(name, path) as reader, open(target or os.devnull, "wb") as writer:
            while data := reader.read(BLOCK):
                digest.update(data)
                writer.write(data)
            writer.flush()
            if target is not None:
                os.fsync(writer.fileno())
        return digest.hexdigest()


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    sync_folder(path.parent)


def _copy_local(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        copy_hashed(source, temporary)
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _first_start(provenance: Path) -> str | None:
    return _parse_first_start(provenance.read_bytes()) if provenance.exists() else None


def _parse_first_start(data: bytes) -> str | None:
    try:
        value: Any = json.loads(data)["starts"][0]["attempt"]
    except (ValueError, LookupError, TypeError):
        return None
    return str(value)
