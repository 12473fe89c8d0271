"""Releases in a folder or an object store, read: one sub-folder per revision."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from checkpoints.publish.retry import Patience, may_pass, retry, scrub, short, status_of
from checkpoints.release import MANIFEST, in_order, parse_revision
from olmo_train.errors import CheckpointError, ConfigError

T = TypeVar("T")
BLOCK = 8 * 2**20


def file_system(where: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it) of a folder or URL; options of a protocol come from fsspec's own configuration.

    Raises:
        ConfigError: fsspec or the package of the protocol is missing, or no file system has that name.
    """
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{scrub(where)}: the package fsspec is not installed; pip install 'olmo-train[publish]'") from None
    try:
        fs, path = fsspec.core.url_to_fs(where if "://" in where else str(Path(where).absolute()))
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{scrub(where)}: {scrub(short(error))}; give a folder, hub:owner/name, or a protocol of fsspec whose package is "
            "installed, e.g. s3:// with s3fs"
        ) from None
    return fs, path.rstrip("/")


class FileStore:
    """Reads a folder or an object store (see `stores.Store`). A revision without release.json is not there."""

    def __init__(self, where: str, patience: Patience | None = None, said: Callable[[str], None] = lambda text: None) -> None:
        """Raises:
        ConfigError: no such file system.
        """
        self.where = scrub(where).rstrip("/")
        self.fs, self.root = file_system(where)
        self.patience, self.said = patience or Patience(), said

    def revisions(self) -> list[str]:
        """Sub-folders that are releases, by stage and step."""

        def listed() -> list[str]:
            self.fs.invalidate_cache()
            try:
                if not _is_local(self.fs):  # one list of everything is fewer requests than one for every revision
                    return [path[len(self.root) + 1 :] for path in self.fs.find(self.root)]
                return [f"{Path(path).name}/{MANIFEST}" for path in self.fs.ls(self.root, detail=False) if self._is_release(path)]
            except FileNotFoundError:
                return []

        paths = (path.split("/") for path in self.call(listed, ""))
        return in_order(path[0] for path in paths if path[1:] == [MANIFEST])

    def has(self, revision: str) -> bool:
        """Whether it is a release, of whatever name."""

        def asked() -> bool:
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.path(revision, MANIFEST)))

        return self.call(asked, revision)

    def files(self, revision: str) -> dict[str, int]:
        """Bytes by path."""
        sizes = self.sizes(revision)
        if MANIFEST not in sizes and revision not in sizes:
            raise CheckpointError(f"{self.where}/{revision} has no {MANIFEST}: no such release, or one that is not published yet")
        return sizes

    def _is_release(self, path: str) -> bool:
        return parse_revision(Path(path).name) is not None and (Path(path) / MANIFEST).exists()

    def sizes(self, revision: str) -> dict[str, int]:
        """Bytes by path of whatever lies there, release or not."""

        def listed() -> dict[str, int]:
            self.fs.invalidate_cache()
            base = self.path(revision)
            try:
                found = self.fs.find(base, detail=True)
            except FileNotFoundError:
                return {}
            return {name[len(base) + 1 :]: entry["size"] for name, entry in found.items() if entry["type"] == "file"}

        return self.call(listed, revision)

    def read(self, revision: str, path: str) -> bytes:
        """A small file, whole."""
        return cast(bytes, self.call(lambda: self.fs.cat_file(self.path(revision, path)), f"{revision}/{path}"))

    def open(self, revision: str, path: str) -> BinaryIO:
        """A file as a stream."""
        what = f"{revision}/{path}"

        def opened() -> BinaryIO:
            options = {} if _is_local(self.fs) else {"block_size": BLOCK, "cache_type": "readahead"}
            return cast(BinaryIO, self.fs.open(self.path(revision, path), "rb", **options))

        return cast(BinaryIO, io.BufferedReader(_Retried(self, self.call(opened, what), what), BLOCK))

    def path(self, *parts: str) -> str:
        """Of a file or folder, for the file system."""
        return "/".join([self.root, *parts])

    def call(self, request: Callable[[], T], what: str) -> T:
        """A request with retries; failures in our words.

        Raises:
            ConfigError: not allowed. CheckpointError: not there, or the store failed.
        """
        try:
            return retry(request, self.patience, lambda text: self.said(f"{self.where}: {text}"))
        except Exception as error:
            raise self.in_words(error, what) from None

    def in_words(self, error: Exception, what: str) -> Exception:
        """The error of ours for one of a file system's; itself, if it is a bug."""
        if isinstance(error, (ConfigError, CheckpointError)):
            return error
        place = f"{self.where}/{what}" if what else self.where
        if isinstance(error, FileNotFoundError):
            return CheckpointError(f"{place}: not there")
        name = type(error).__name__
        if isinstance(error, PermissionError) or status_of(error) in (401, 403) or "Credentials" in name:
            return ConfigError(f"{place}: not allowed: {scrub(short(error))}; check the credentials of this store")
        if isinstance(error, OSError) or status_of(error) is not None or may_pass(error) or "botocore" in type(error).__module__:
            return CheckpointError(f"{place}: {scrub(short(error))}; the same command goes on from here")
        return error


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, (tuple, list)) else (fs.protocol,))


class _Retried(io.RawIOBase):
    """A file of a file system, each read tried again where it began."""

    def __init__(self, store: FileStore, file: BinaryIO, what: str) -> None:
        self.store, self.file, self.what, self.at = store, file, what, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        def once() -> bytes:
            if self.file.tell() != self.at:
                self.file.seek(self.at)
            return self.file.read(len(buffer))

        data = self.store.call(once, self.what)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()
