"""Releases of a hub repository, read: one branch per revision."""

import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

from checkpoints.publish.retry import Patience, may_pass, retry, scrub, short, status_of
from checkpoints.release import in_order
from olmo_train.errors import CheckpointError, ConfigError

T = TypeVar("T")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
PIECE = 2**20
TIMEOUT_S = 60.0
"""Without a byte, before a connection counts as lost."""


def hub_api() -> Any:
    """The client of the hub that HF_ENDPOINT names now; its token is HF_TOKEN or that of `hf auth login`.

    Raises:
        ConfigError: the package is missing.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ConfigError("the package huggingface_hub is not installed; pip install 'olmo-train[publish]'") from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def use_timeouts(seconds: float) -> None:
    """Let huggingface_hub's own requests, which would wait for ever, count a silent connection as lost; and quiet its bars."""
    import httpx
    from huggingface_hub import logging, set_client_factory
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils._http import hf_request_event_hook

    def client() -> httpx.Client:
        return httpx.Client(event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=seconds)

    set_client_factory(client)
    disable_progress_bars()
    logging.set_verbosity_error()  # it names signed addresses; we tell of attempts ourselves


class HubStore:
    """Reads a repository (see `stores.Store`)."""

    def __init__(self, name: str, patience: Patience | None = None, said: Callable[[str], None] = lambda text: None) -> None:
        """Raises:
        ConfigError: `name` is not owner/name, or the package is missing.
        """
        if not HUB_NAME.fullmatch(name):
            raise ConfigError(f"hub:{name} is not a hub repository: hub:owner/name")
        self.name, self.where, self.api = name, f"hub:{name}", hub_api()
        self.patience, self.said = patience or Patience(), said

    def revisions(self) -> list[str]:
        """Branches whose names are those of releases, by stage and step."""
        refs = self.call(lambda: self.api.list_repo_refs(self.name), "")
        return in_order(branch.name for branch in refs.branches)

    def has(self, revision: str) -> bool:
        """Whether there is such a branch."""
        refs = self.call(lambda: self.api.list_repo_refs(self.name), "")
        return any(branch.name == revision for branch in refs.branches)

    def files(self, revision: str) -> dict[str, int]:
        """Bytes by path."""
        return {path: entry.size for path, entry in self.tree(revision).items()}

    def tree(self, revision: str) -> dict[str, Any]:
        """Entries of the files of a revision: size, lfs.sha256, blob_id."""

        def listed() -> dict[str, Any]:
            entries = self.api.list_repo_tree(self.name, recursive=True, revision=revision)
            return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}

        return self.call(listed, revision)

    def read(self, revision: str, path: str) -> bytes:
        """A small file, whole."""
        with self.open(revision, path) as file:
            return file.read()

    def open(self, revision: str, path: str) -> BinaryIO:
        """A file as a stream that goes on where a lost connection left it."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.name, path, revision=revision, endpoint=self.api.endpoint)
        return cast(BinaryIO, io.BufferedReader(_Download(self, url, f"{revision}/{path}"), PIECE))

    def call(self, request: Callable[[], T], what: str) -> T:
        """A request with retries; failures in our words.

        Raises:
            ConfigError: not there or not allowed. CheckpointError: no such revision or file, or the hub failed.
        """
        try:
            return retry(request, self.patience, lambda text: self.said(f"{self.where}: {text}"))
        except Exception as error:
            raise self.in_words(error, what) from None

    def in_words(self, error: Exception, what: str) -> Exception:
        """The error of ours for one of the hub's; itself, if it is a bug."""
        if isinstance(error, (ConfigError, CheckpointError)):
            return error
        name, place = type(error).__name__, f"{self.where}@{what}" if what else self.where
        if name in ("RevisionNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError"):
            return CheckpointError(f"{place}: not there; its branches are listed on the hub")
        status = status_of(error)
        if status == 402 or status == 413 or status == 507:
            return CheckpointError(f"{place}: the hub has no room for it ({status}): {scrub(short(error))}")
        if name == "RepositoryNotFoundError" or status == 401:
            return ConfigError(
                f"{self.where}: no such repository on {self.api.endpoint}, or it is private and the token is missing or not "
                "allowed to see it; check the name, and log in with `hf auth login` or HF_TOKEN"
            )
        if name == "GatedRepoError" or status == 403:
            return ConfigError(
                f"{self.where}: the token is not allowed to do this (403); it needs write access to the repository"
            )
        if "OfflineMode" in name:
            return ConfigError(f"{self.where}: HF_HUB_OFFLINE is set; unset it, or give a folder")
        if status is not None or may_pass(error) or isinstance(error, (OSError, ValueError, RuntimeError)):
            return CheckpointError(f"{place}: {scrub(short(error))}; the same command goes on from here")
        return error


class _Download(io.RawIOBase):
    """One file of the hub. After a lost connection it asks for the rest, of the same content (If-Range)."""

    def __init__(self, store: HubStore, url: str, what: str) -> None:
        self.store, self.url, self.what = store, url, what
        self.at, self.etag, self.size = 0, "", -1
        self.context: Any = None
        self.pieces: Iterator[bytes] = iter(())
        self.left = memoryview(b"")
        store.call(self._connect, what)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            self.left = memoryview(self.store.call(self._next, self.what))
        n = min(len(buffer), len(self.left))
        buffer[:n] = self.left[:n]
        self.left, self.at = self.left[n:], self.at + n
        return n

    def close(self) -> None:
        if not self.closed:
            self._disconnect()
        super().close()

    def _next(self) -> bytes:
        if self.context is None:
            self._connect()
        try:
            piece = next(self.pieces, b"")
            if not piece and self.at < self.size:
                raise ConnectionError(f"{self.what}: the connection ended at byte {self.at} of {self.size}")
        except Exception:
            self._disconnect()
            raise
        return piece

    def _connect(self) -> None:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(token=self.store.api.token) | {"Accept-Encoding": "identity"}
        if self.at:
            headers |= {"Range": f"bytes={self.at}-", "If-Range": self.etag}
        context = get_session().stream("GET", self.url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S)
        response = context.__enter__()
        self.context = context
        try:
            hf_raise_for_status(response)
            etag = response.headers.get("etag", "")
            if self.at and (response.status_code != 206 or etag != self.etag):
                raise CheckpointError(f"{self.store.where}@{self.what} changed while it was read; read it again")
            if not self.at:
                self.etag, self.size = etag, int(response.headers.get("content-length", -1))
            self.pieces = response.iter_bytes(PIECE)
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self.context is not None:
            context, self.context, self.pieces = self.context, None, iter(())
            context.__exit__(None, None, None)
