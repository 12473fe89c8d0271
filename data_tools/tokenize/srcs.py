"""What the sidecars of shards call the files of documents: paths that tell them apart, and nothing of the machine."""

import os
from pathlib import Path

from data_tools.datasets import DocumentFile
from olmo_train.errors import ConfigError


def src_names(files: list[DocumentFile], root: str | None) -> list[str]:
    """One name per file: relative to `root`; or from the name of the dataset's folder on, with more folders where two are equal.

    Raises:
        ConfigError: a file is not below `root`.
    """
    paths = [Path(os.path.abspath(file.path)) for file in files]
    if root is not None:
        outside = [path for path in paths if not path.is_relative_to(os.path.abspath(root))]
        if outside:
            raise ConfigError(f"src_root={root} has no {outside[0]} below it; give a folder above all documents, or null")
        return [path.relative_to(os.path.abspath(root)).as_posix() for path in paths]
    depths = [len(path.parts) - len(Path(os.path.abspath(file.dataset)).parts) for path, file in zip(paths, files, strict=True)]
    names: list[str] = []
    for more in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[1:][-depth - more :]) for path, depth in zip(paths, depths, strict=True)]
        if len(set(names)) == len(names):
            break
    return names
