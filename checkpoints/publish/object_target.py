"""Publish to an object store: under a claim, release.json last; without it a revision is not there for any reader of ours."""

from collections.abc import Callable

from checkpoints.publish.claims import CLAIMS, Claim
from checkpoints.publish.file_store import FileStore
from checkpoints.publish.filling import in_parallel
from checkpoints.publish.staging import Staged
from checkpoints.publish.targets import Manner, check_listing, choose_main, read_entries
from checkpoints.release import INDEX, MAIN, MANIFEST, SIGNATURE, UNLISTED, IndexEntry, Release, index_bytes, read_release
from olmo_train.errors import CheckpointError, ConfigError

TURNS = 100
"""How often another process may get in between before it is an error."""


class ObjectTarget:
    """Whatever fsspec knows whose writes of one object are whole or absent, and whose lists show every finished write."""

    def __init__(self, where: str, manner: Manner) -> None:
        self.manner, self.store = manner, FileStore(where, manner.patience, manner.said)
        self.where, self.fs = self.store.where, self.store.fs

    def prepare(self, private: bool | None, takes_main: bool) -> None:
        """See that the place can be written."""
        if private is not None:
            raise ConfigError(f"private={str(private).lower()} is for hubs; for {self.where} set the rights of the bucket")
        try:
            self._write(CLAIMS, "can-write", b"written to see whether it can be\n")
            self._delete(CLAIMS, ["can-write"])
        except CheckpointError as error:
            if "not there" not in str(error):
                raise
            raise ConfigError(f"target={error}; does the bucket exist?") from None
        main = self.store.sizes(MAIN) if takes_main else {}
        if MANIFEST not in main and set(main) - {INDEX} and not self._started(MAIN):
            raise ConfigError(
                f"{self.where}/{MAIN} holds files that no publishing wrote; give another target, main=null, or replace=true to "
                "lose them"
            )

    def damage(self, release: Release) -> list[str]:
        """By the sizes."""
        return check_listing(release, self.store.files(release.name), UNLISTED)

    def put(self, staged: Staged, replace: bool, moved: Callable[[int], None]) -> bool:
        """Write what is not there yet, look whether all is there, then write release.json."""
        name = staged.release.name
        with Claim(self.store, name, staged.release.sha256, self.manner.claims) as claim:
            sizes = self.store.sizes(name)
            if MANIFEST in sizes and not replace:
                return False
            if MANIFEST in sizes or self._started(name) != staged.release.sha256:
                self._delete(name, sorted(sizes, key=lambda path: path != MANIFEST))  # without it nothing else is there either
                self._write(CLAIMS, started(name), staged.release.sha256.encode())
                sizes = {}

            def bring(path: str) -> None:
                claim.check()
                size = staged.files[path][0]
                if sizes.get(path) != size:
                    self._upload(staged, path)
                moved(size)

            in_parallel(self.manner.workers, bring, staged.files)
            problems = check_listing(staged.release, self.store.sizes(name), UNLISTED)
            if problems:
                raise CheckpointError(
                    f"{self.where}/{name} is not as it was written: {'; '.join(problems)}; it was not published"
                )
            claim.check()
            for path in staged.closing:
                self._upload(staged, path)
                moved((staged.folder / path).stat().st_size)
            self._delete(CLAIMS, [started(name)])
        return True

    def set_main(self, choice: str | None) -> tuple[str | None, int]:
        """Copy the chosen release within the store, release.json last; write the index until it says what the store has."""
        for _ in range(TURNS):
            entries = read_entries(self.store, self.manner)
            name = choose_main(entries, choice, self.where)
            if name is not None:
                self._copy_to_main(entries[name])
            index = index_bytes(entries.values())
            if self._read(MAIN, INDEX) != index:
                self._write(MAIN, INDEX, index)
            if read_entries(self.store, self.manner) == entries and self._read(MAIN, INDEX) == index:
                return name, len(entries)
        raise CheckpointError(
            f"{self.where}/{MAIN}/{INDEX}: other processes never stopped changing it; run the same command again"
        )

    def _copy_to_main(self, entry: IndexEntry) -> None:
        with Claim(self.store, MAIN, entry.release_sha256, self.manner.claims) as claim:
            release = read_release(self.store.read(entry.name, MANIFEST), f"{self.where}/{entry.name}")
            there, sizes = self._main_release(), self.store.sizes(MAIN)
            if there is not None and there.sha256 == release.sha256 and not check_listing(release, sizes, UNLISTED):
                return
            old = {path: file["sha256"] for path, file in there.files.items()} if there is not None else {}
            self._delete(MAIN, [MANIFEST, SIGNATURE])
            self._write(CLAIMS, started(MAIN), release.sha256.encode())
            self._delete(MAIN, [path for path in sizes if path not in release.files and path not in UNLISTED])

            def bring(path: str) -> None:
                claim.check()
                file = release.files[path]
                if sizes.get(path) != file["bytes"] or old.get(path) != file["sha256"]:
                    self._copy(entry.name, path)

            in_parallel(self.manner.workers, bring, release.files)
            claim.check()
            if SIGNATURE in self.store.sizes(entry.name):
                self._copy(entry.name, SIGNATURE)
            self._copy(entry.name, MANIFEST)
            self._delete(CLAIMS, [started(MAIN)])

    def _upload(self, staged: Staged, path: str) -> None:
        remote = self.store.path(staged.release.name, path)
        self.store.call(lambda: self.fs.put_file(str(staged.folder / path), remote), f"{staged.release.name}/{path}")

    def _copy(self, name: str, path: str) -> None:
        source, target = self.store.path(name, path), self.store.path(MAIN, path)
        self.store.call(lambda: self.fs.cp_file(source, target), f"{MAIN}/{path}")

    def _write(self, name: str, path: str, data: bytes) -> None:
        self.store.call(lambda: self.fs.pipe_file(self.store.path(name, path), data), f"{name}/{path}")

    def _read(self, name: str, path: str) -> bytes | None:
        def once() -> bytes | None:
            try:
                return bytes(self.fs.cat_file(self.store.path(name, path)))
            except FileNotFoundError:
                return None

        return self.store.call(once, f"{name}/{path}")

    def _delete(self, name: str, paths: list[str]) -> None:
        """In this order; what is not there is no failure."""
        for path in paths:

            def once(remote: str = self.store.path(name, path)) -> None:
                try:
                    self.fs.rm_file(remote)
                except FileNotFoundError:
                    return

            self.store.call(once, f"{name}/{path}")

    def _started(self, name: str) -> str:
        return (self._read(CLAIMS, started(name)) or b"").decode()

    def _main_release(self) -> Release | None:
        text = self._read(MAIN, MANIFEST)
        return read_release(text, f"{self.where}/{MAIN}") if text is not None else None


def started(name: str) -> str:
    """The object that says which content the files of an unfinished revision have, so that the next attempt can keep them."""
    return f"{name}.started"
