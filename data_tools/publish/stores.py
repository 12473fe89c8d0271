"""Where releases go: a folder, a hub (hf://owner/name), or whatever fsspec knows (s3://bucket/prefix)."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from data_tools.publish.manifest import Release
from olmo_train.errors import ConfigError, ShardError

T = TypeVar("T")
BLOCK = 8 * 2**20
ATTEMPTS = 5
FIRST_WAIT_S = 1.0
_PASSING = (408, 429, 500, 502, 503, 504)
_LOST = {"ConnectionError", "TimeoutError", "TransportError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError"}
_SECRET = re.compile(r"(://)[^/\s:@]+:[^/\s@]+@|\bhf_[A-Za-z0-9]{8,}|(?<=\?)[^\s'\"]+")


@dataclass(frozen=True)
class Staged:
    """A release as it lies on this machine."""

    release: Release
    files: dict[str, Path]
    """Path in the release to the file; all but the manifest."""


class Store(Protocol):
    """One place for one release."""

    where: str

    def sizes(self) -> dict[str, int]:
        """Bytes by path of whatever lies there; nothing if the place does not exist."""
        ...

    def read(self, path: str) -> bytes | None:
        """A small file; None: it is not there."""
        ...

    def blocks(self, path: str) -> Iterator[bytes]:
        """A file, block by block."""
        ...

    def put(self, staged: Staged, said: Callable[[str], None]) -> None:
        """Bring a release there, whole or not visible; what an earlier attempt brought is used. The place holds no other one.

        Raises:
            ConfigError: not allowed. ShardError: it did not arrive as it was sent.
        """
        ...


def sha256_of(blocks: Iterator[bytes]) -> str:
    """Of a file."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def file_blocks(path: Path) -> Iterator[bytes]:
    """Of a file of this machine."""
    with open(path, "rb") as file:
        while data := file.read(BLOCK):
            yield data


def retry(call: Callable[[], T], where: str) -> T:
    """The result of a request, tried again while its failure may pass (lost connections, 429, 5xx); failures in our words.

    Raises:
        ConfigError: not allowed. ShardError: not there, or it failed for good.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (ConfigError, ShardError, FileNotFoundError):
            raise
        except Exception as error:
            if attempt == ATTEMPTS or not may_pass(error):
                raise in_words(error, where) from None
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError


def may_pass(error: Exception) -> bool:
    """Whether the same request can succeed later."""
    status = _status(error)
    return status in _PASSING if status is not None else bool({kind.__name__ for kind in type(error).__mro__} & _LOST)


def in_words(error: Exception, where: str) -> Exception:
    """The error of ours for one of a store; itself, if it is a bug."""
    status, names = _status(error), [kind.__name__ for kind in type(error).__mro__]
    if status in (401, 403) or isinstance(error, PermissionError) or any("Credentials" in name for name in names):
        return ConfigError(f"{scrub(where)}: not allowed: {say(error)}; check the credentials of this store")
    if status is not None or may_pass(error) or isinstance(error, (OSError, ValueError, RuntimeError)):
        return ShardError(f"{scrub(where)}: {say(error)}; the same command goes on from here")
    return error


def _status(error: BaseException | None) -> int | None:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return found if isinstance(found, int) else None
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def say(error: BaseException) -> str:
    """An error in one line, without secrets."""
    return scrub(" ".join(str(error).split()) or type(error).__name__)


def scrub(text: str) -> str:
    """Without passwords in URLs, tokens, and the signatures of signed URLs."""
    return _SECRET.sub(lambda match: f"{match[1] or ''}..." + ("@" if match[1] else ""), text)
