"""Which code runs: one hash of the trainer's source files and configs, the same wherever the files lie."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("olmo_train", "configs")
"""What decides how a run computes."""
SUFFIXES = (".py", ".yaml")


def code_sha256(root: Path = ROOT, folders: tuple[str, ...] = FOLDERS) -> str:
    """SHA-256 over the relative paths and contents of the source files of `folders` below `root`; by default the running code."""
    whole = hashlib.sha256()
    for path in sorted(_files(root, folders), key=lambda path: path.relative_to(root).as_posix()):
        content = path.read_bytes()
        # lengths go in, so that no two trees run together into the same bytes
        whole.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()


def _files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    found = (path for folder in folders for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
    return [path for path in found if path.is_file()]
