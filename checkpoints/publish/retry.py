"""Try again what may pass: lost connections, 429 and 5xx; and never show a secret in what is said about a failure."""

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that may be others next time; 401, 403, 404 and 409 will not be."""
_CONNECTION = {
    "ConnectionError", "TimeoutError",  # Python, requests, botocore
    "TransportError",  # httpx
    "HTTPClientError",  # botocore
    "ClientConnectionError", "ClientPayloadError",  # aiohttp
    "JSONDecodeError",  # the error page of a proxy, where the hub's answer should be
}  # fmt: skip
"""Classes, or bases of classes, of lost connections."""
_FINAL = {"OfflineModeIsEnabled", "UnsupportedProtocol", "FileNotFoundError", "PermissionError"}
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PATTERNS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_..."),
    (re.compile(r"(://)[^/\s:@]+:[^/\s@]+@"), r"\1...@"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)(bearer\s+)?[^\s'\",]+"), r"\1..."),
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?..."),  # signed URLs are credentials for as long as they last
)


@dataclass(frozen=True)
class Patience:
    """How often and how long to try."""

    attempts: int = 6
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0


def retry(call: Callable[[], T], patience: Patience, said: Callable[[str], None] = lambda text: None) -> T:
    """The result of `call`, tried again with exponentially longer, random waits while its failure may pass.

    Waits are drawn from [0.5, 1] times the bound, so that workers who failed together do not come back together. `Retry-After` is
    obeyed up to `max_wait_s`. The last failure is raised as it came.
    """
    for attempt in range(1, patience.attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == patience.attempts or not may_pass(error):
                raise
            wait = min(patience.max_wait_s, patience.first_wait_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            wait = min(patience.max_wait_s, max(wait, retry_after_s(error)))
            said(f"{scrub(short(error))}; attempt {attempt} of {patience.attempts}, again in {wait:.1f} s")
            time.sleep(wait)
    raise AssertionError("attempts is positive")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from; not what was merely being handled then, which may be an answer to another request."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there is one."""
    for one in chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def retry_after_s(error: BaseException) -> float:
    """What the server asked for; 0 if nothing."""
    for one in chain(error):
        headers = getattr(getattr(one, "response", None), "headers", None)
        value = headers.get("retry-after") if headers is not None else None
        if value is not None and value.strip().isdigit():
            return float(value)
    return 0.0


def may_pass(error: BaseException) -> bool:
    """Whether the same call can succeed later."""
    if is_disk_full(error):
        return False
    status = status_of(error)
    if status is not None:
        return status in PASSING
    for one in chain(error):
        names = {kind.__name__ for kind in type(one).__mro__}
        if names & _FINAL:
            return False
        if names & _CONNECTION:
            return True
        if isinstance(one, OSError) and one.errno in (errno.EBUSY, errno.ENETUNREACH, errno.EHOSTUNREACH):
            return True
    return False


def is_disk_full(error: BaseException) -> bool:
    """No space left, or no quota, somewhere behind an error; safetensors reports it as a text."""
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)) or os.strerror(errno.ENOSPC) in str(one)
        for one in chain(error)
    )


def short(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def scrub(text: str) -> str:
    """`text` without tokens, passwords in URLs and the signatures of signed URLs."""
    for name in _SECRETS:
        if len(os.environ.get(name, "")) >= 4:
            text = text.replace(os.environ[name], f"<{name}>")
    for pattern, put in _PATTERNS:
        text = pattern.sub(put, text)
    return text
