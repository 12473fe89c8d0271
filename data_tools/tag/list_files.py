"""Files of the lists and models that a user names: whether they are there, and the lines of a list."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from data_tools.files import CutShortError, lines_of
from olmo_train.errors import ConfigError


def file_problems(field: str, path: str, sha256: str | None) -> list[str]:
    """What is wrong with a file that `field` names."""
    if not Path(path).is_file():
        return [f"{field}={path} does not exist; give the path of a file on this machine, nothing is downloaded"]
    if sha256 is not None and (found := sha256_of(Path(path))) != sha256.lower():
        return [f"{field}={path} has sha256 {found}, not {sha256}; get the file again, or correct the sum"]
    return []


def sha256_of(path: Path) -> str:
    """Of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_lines(path: Path) -> Iterator[str]:
    """Lines of a list without the white space around them, from a file that is plain, .gz or .zst.

    Raises:
        ConfigError: it is damaged, or not UTF-8; names the line.
    """
    number = 0
    try:
        for raw in lines_of(path):
            number += 1
            yield raw.decode("utf-8").strip("\ufeff \t\r\v\f")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: line {number} is not UTF-8: {error.reason}; convert the file") from None
    except CutShortError as error:
        raise ConfigError(f"{path}: damaged after line {number}: {error}; get it again") from None
