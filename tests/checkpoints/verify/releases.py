"""Releases of a run in a folder, as `olmo publish` leaves them, and the ways in which they can be made wrong."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.publish.signature import sign_release
from checkpoints.release import (
    INDEX,
    MAIN,
    MANIFEST,
    SIGNATURE,
    UNLISTED,
    Release,
    index_bytes,
    index_entry,
    read_release_folder,
    weights_digest,
)
from checkpoints.verify.command import main
from checkpoints.verify.stream import HashedFile, read_tensors
from olmo_train.errors import CheckpointError


def assemble_series(run: Path, steps: list[int], folder: Path, **options: Any) -> None:
    """Releases of some steps, each the parent of the next, `main` and the index."""
    chosen: dict[str, Any] = {
        "stage": 1,
        "dtype": None,
        "optimizer_state": True,
        "license": "apache-2.0",
        "sign": None,
        **options,
    }
    parent = None
    for step in steps:
        parent = assemble(run, step, folder / "new", AssembleOptions(parent=parent, **chosen))
        (folder / "new").rename(folder / parent.name)
    finish(folder)


def finish(store: Path) -> None:
    """Write `main` and the index for the releases that are there."""
    releases = {folder.name: read_release_folder(folder) for folder in store.iterdir() if folder.name != MAIN}
    newest = max(releases, key=lambda name: (releases[name].stage, releases[name].step))
    shutil.rmtree(store / MAIN, ignore_errors=True)
    shutil.copytree(store / newest, store / MAIN)
    (store / MAIN / INDEX).write_bytes(index_bytes(map(index_entry, releases.values())))


def problems(where: Path | str, *words: str) -> list[str]:
    """What `olmo verify` finds wrong."""
    try:
        main([str(where), *words])
    except CheckpointError as error:
        return str(error).splitlines()
    return []


def name(step: int) -> str:
    """Of the release of a step."""
    return f"stage1-step{step}-tokens0B"


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    write(path, bytes(data))


def write(path: Path, data: bytes) -> None:
    """Replace a file; others that are links to it stay."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    write(path, json.dumps(values, indent=1).encode())


def forge(folder: Path, change: Callable[[Release], object] = lambda release: None) -> None:
    """Make release.json say what the files are now, and what `change` makes of it: what a careful forger would do."""
    release = read_release_folder(folder)
    release.files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder).as_posix()
        if relative not in UNLISTED:
            data = path.read_bytes()
            release.files[relative] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for file in sorted({entry["file"] for entry in release.tensors.values()}):
        with open(folder / file, "rb") as raw:
            for tensor, stored in read_tensors(HashedFile(raw)).items():
                release.tensors[tensor] = {
                    "dtype": stored.dtype, "shape": list(stored.shape), "file": file, "sha256": stored.sha256,
                }  # fmt: skip
    release.weights_sha256 = weights_digest(release.tensors)
    change(release)
    write(folder / MANIFEST, release.to_bytes())


def sign_all(store: Path, key: Path) -> None:
    """Sign every release of a store."""
    for manifest in store.glob(f"*/{MANIFEST}"):
        (manifest.parent / SIGNATURE).write_bytes(sign_release(manifest.read_bytes(), key))
