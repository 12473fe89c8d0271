"""The code as it is now, copied into a job folder, so that what was launched does not change with the working tree."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from olmo_train.code import ROOT, code_sha256
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic

KEPT = ("olmo_train", "data_tools", "checkpoints", "launch", "configs")
"""Folders of this project that a job may need."""
LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache"}


@dataclass(frozen=True)
class Snapshot:
    """Which code a job runs."""

    commit: str | None
    """Of git; None outside a checkout."""
    has_changes: bool | None
    """Files differ from the commit, or are not in it; None outside a checkout."""
    sha256: str
    """`olmo_train.code.code_sha256`, which every rank computes again."""


def describe_code(root: Path = ROOT) -> Snapshot:
    """What a snapshot of `root` would be; a snapshot of a snapshot is the same commit."""
    sha256, told = code_sha256(root), root.parent / "code.json"
    if root.name == "code" and told.is_file():
        values = json.loads(told.read_text())
        return Snapshot(values["commit"], True if values["sha256"] != sha256 else values["has_changes"], sha256)
    commit, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", *KEPT)
    known = commit is not None and _git(root, "ls-files", "--", "olmo_train")  # else the checkout around us is another project's
    return Snapshot(commit.strip() if commit and known else None, bool(status) if known else None, sha256)


def take_snapshot(job: Path, root: Path = ROOT) -> Snapshot:
    """Copy the code below `root` to `job/code` and write `job/code.json`.

    Raises:
        ConfigError: a file cannot be copied.
    """
    before = describe_code(root)
    try:
        for name in sorted(_files(root)):
            target = job / "code" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
        copied = code_sha256(job / "code")
        if copied != before.sha256:  # files were saved meanwhile; what counts is what was copied
            before = replace(before, sha256=copied, has_changes=None if before.commit is None else True)
        write_atomic(job / "code.json", json.dumps(asdict(before), indent=1).encode())
    except OSError as error:
        raise ConfigError(f"the code of {root} cannot be copied to {job}: {error}; give a run_dir that can be written") from error
    return before


def share_snapshot(job: Path, other: Path) -> None:
    """Give the job folder `other` the code of `job`, as links to the same files where the file system can."""
    shutil.copyfile(job / "code.json", other / "code.json")
    shutil.copytree(job / "code", other / "code", copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _files(root: Path) -> Iterator[str]:
    """Relative paths: what git tracks or would (ignored files stay out); without git, everything but caches."""
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *KEPT)
    if listed:
        yield from (name for name in set(listed.split("\0")) if name and (root / name).is_file())
        return
    for folder in KEPT:
        for path in (root / folder).rglob("*"):
            if path.is_file() and not LEFT_OUT & set(path.relative_to(root).parts):
                yield path.relative_to(root).as_posix()


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
