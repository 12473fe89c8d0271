"""A folder that is whole or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import sync_folder


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which gets its name `path` at the end of the block; an exception leaves nothing.

    Raises:
        ConfigError: there is something at `path`. CheckpointError: the file system refused.
    """
    refuse_existing(path)
    temporary = path.absolute().with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sync_folder(temporary)
        refuse_existing(path)
        os.rename(temporary, path)
        sync_folder(temporary.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}; give another folder, or free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Raises:
    ConfigError: there is something at `path`.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already and is never overwritten; give another name, or move it away")
