"""A release in an object store: its manifest is written last, and without it nothing is there for any reader of ours."""

from collections.abc import Callable, Iterator
from typing import Any

from data_tools.publish.manifest import NAME, listing_problems
from data_tools.publish.stores import BLOCK, Staged, retry, say, scrub, sha256_of
from olmo_train.errors import ConfigError, ShardError

STARTED = ".publishing"
"""Object that says which release the files of an unfinished one are of."""


class ObjectStore:
    """A prefix of whatever fsspec knows, whose writes of one object are whole or absent."""

    def __init__(self, where: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise ConfigError(f"{scrub(where)}: needs the package fsspec; pip install 'olmo-train[publish]'") from None
        try:
            self.fs, root = fsspec.core.url_to_fs(where)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{scrub(where)}: {say(error)}; give a folder, hf://owner/name, or a protocol of fsspec whose package is "
                "installed, e.g. s3:// with s3fs"
            ) from None
        self.where, self.root = scrub(where).rstrip("/"), root.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """See Store."""

        def listed() -> dict[str, int]:
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.root, detail=True)
            except FileNotFoundError:
                return {}
            return {name[len(self.root) + 1 :]: int(entry["size"]) for name, entry in found.items() if entry["type"] == "file"}

        return retry(listed, self.where)

    def read(self, path: str) -> bytes | None:
        """See Store."""
        try:
            return bytes(retry(lambda: self.fs.cat_file(self._path(path)), f"{self.where}/{path}"))
        except FileNotFoundError:
            return None

    def blocks(self, path: str) -> Iterator[bytes]:
        """See Store."""
        size = self.fs.size(self._path(path))
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)

            def once(start: int = start, end: int = end) -> Any:
                return self.fs.cat_file(self._path(path), start=start, end=end)

            yield bytes(retry(once, f"{self.where}/{path}"))

    def put(self, staged: Staged, said: Callable[[str], None]) -> None:
        """See Store. Each file is read back and hashed before the manifest is written."""
        mine = staged.release.sha256.encode()
        there, started = self.sizes(), self.read(STARTED)
        if started is None and there:
            raise ConfigError(f"target={self.where} holds files that no publishing wrote; give another target")
        if started is not None and started != mine:
            raise ConfigError(
                f"target={self.where} holds the beginning of another release; finish that one, or remove what lies there"
            )
        self._write(STARTED, mine)
        for number, (path, source) in enumerate(staged.files.items(), 1):
            entry = staged.release.files[path]
            where = f"{self.where}/{path}"
            if there.get(path) != entry["bytes"] or sha256_of(self.blocks(path)) != entry["sha256"]:
                retry(lambda path=path, source=source: self.fs.put_file(str(source), self._path(path)), where)  # type: ignore[misc]
                self.fs.invalidate_cache()
                if sha256_of(self.blocks(path)) != entry["sha256"]:
                    raise ShardError(f"{where}: did not arrive as it was sent; the same command sends it again")
            said(f"{number:,} of {len(staged.files):,} files, {path}")
        sizes = {path: size for path, size in self.sizes().items() if path != STARTED}
        problems = listing_problems(staged.release, sizes)
        if problems:
            raise ShardError(f"{self.where} is not as it was written: {'; '.join(problems[:5])}; it was not published")
        self._write(NAME, staged.release.to_bytes())
        retry(lambda: self.fs.rm_file(self._path(STARTED)), self.where)

    def _write(self, path: str, data: bytes) -> None:
        try:
            retry(lambda: self.fs.pipe_file(self._path(path), data), f"{self.where}/{path}")
        except FileNotFoundError:
            raise ConfigError(f"target={self.where}: cannot be written; does the bucket exist?") from None

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}"
