"""Publish to a hub repository: a revision is a branch, created at a commit that is whole already.

A branch made from main would show main's weights under the new name until its own commit arrives, and for ever if it never does.
So the files are committed to a branch of another name, which starts at the repository's first commit with everything inherited
deleted; what the commit holds is compared with the manifest; then the revision is created at that commit, and the other branch
goes.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from checkpoints.publish.filling import in_parallel
from checkpoints.publish.hub_store import HubStore, use_timeouts
from checkpoints.publish.retry import status_of
from checkpoints.publish.staging import Staged
from checkpoints.publish.targets import Manner, check_listing, choose_main, read_entries
from checkpoints.release import INDEX, MAIN, MANIFEST, UNLISTED, Release, index_bytes
from olmo_train.errors import CheckpointError, ConfigError

STAGING = "publishing"
KEPT = ".gitattributes"
"""The hub's own: which files are large."""
ALONE = 2**20
"""Bytes from which a file is uploaded on its own; smaller ones mostly travel in the commit."""
GONE = ("RevisionNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError")


class HubTarget:
    """A model repository of a hub."""

    def __init__(self, name: str, manner: Manner) -> None:
        self.manner = manner
        self.store = HubStore(name, manner.patience, manner.said)
        self.where, self.name, self.api = self.store.where, name, self.store.api
        use_timeouts(manner.timeout_s)

    def prepare(self, private: bool | None, takes_main: bool) -> None:
        """Create the repository if it is not there; check that it is as private as asked."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import RepositoryNotFoundError

        if not get_token():
            raise ConfigError(f"{self.where}: no token; log in with `hf auth login`, or set HF_TOKEN")

        def info() -> Any:
            with contextlib.suppress(RepositoryNotFoundError):
                return self.api.repo_info(self.name)
            self.api.create_repo(self.name, exist_ok=True, private=private)
            return self.api.repo_info(self.name)

        found = self.store.call(info, "")
        if private is not None and found.private != private:
            is_there = "private" if found.private else "public"
            raise ConfigError(
                f"private={str(private).lower()}: {self.where} is {is_there} already; change it on the hub, or leave private out"
            )
        probe = f"{STAGING}/can-write-{secrets.token_hex(4)}"
        self.store.call(lambda: self.api.create_branch(self.name, branch=probe, exist_ok=True), "")
        self._remove_branch(probe)
        if takes_main:
            main = self.store.files(MAIN)
            foreign = sorted(set(main) - {KEPT, INDEX, "README.md"})
            if MANIFEST not in main and foreign:
                raise ConfigError(
                    f"{self.where}: main holds files that no publishing wrote ({', '.join(foreign[:3])}); give another "
                    "repository, main=null, or replace=true to lose them"
                )

    def damage(self, release: Release) -> list[str]:
        """By the sizes, and the SHA-256 of large files."""
        return _tree_problems(release, self.store.tree(release.name))

    def put(self, staged: Staged, replace: bool, moved: Callable[[int], None]) -> bool:
        """Commit elsewhere, compare, then create the branch at the commit."""
        name = staged.release.name
        there = self._heads()
        if name in there and not replace:
            return False
        first = self.store.call(lambda: self.api.list_repo_commits(self.name, revision=MAIN)[-1].commit_id, MAIN)
        branch = f"{STAGING}/{name}-{secrets.token_hex(4)}"
        self.store.call(lambda: self.api.create_branch(self.name, branch=branch, revision=first, exist_ok=True), branch)
        try:
            additions = self._upload(staged, branch, moved)
            commit = self._commit(staged, branch, first, additions)
            if name in there:
                return self._replace(staged, there[name], additions)
            return self._show(name, commit)
        except CheckpointError:
            if name in self._heads():  # another process published it, and removed our branch with its own
                return False
            raise
        finally:
            self._tidy(name, branch)

    def set_main(self, choice: str | None) -> tuple[str | None, int]:
        """One commit on main: copies within the hub, and the index; made again if another process committed in between."""
        for _ in range(max(20, self.manner.patience.attempts)):
            heads = self._heads()
            entries = read_entries(self.store, self.manner)
            name = choose_main(entries, choice, self.where)
            operations = self._main_operations(heads, name, index_bytes(entries.values()))
            if not operations:
                return name, len(entries)
            title = f"main is {name}" if name is not None else "Index of releases"
            if self._compare_and_swap(MAIN, heads[MAIN], operations, title):
                return name, len(entries)
        raise CheckpointError(f"{self.where}: other commits to main came in between every time; run the same command again")

    # ---- steps of put -------------------------------------------------------------------------------------------------

    def _upload(self, staged: Staged, branch: str, moved: Callable[[int], None]) -> list[Any]:
        """Bring large files to the hub's storage, which says what it has already; the others come with the commit."""
        from huggingface_hub import CommitOperationAdd

        paths = [*staged.files, *staged.closing]
        additions = [CommitOperationAdd(path, staged.folder / path) for path in paths]
        small = [addition for addition in additions if addition.upload_info.size < ALONE]
        large = [[addition] for addition in additions if addition.upload_info.size >= ALONE]

        def upload(group: list[Any]) -> None:
            self.store.call(
                lambda: self.api.preupload_lfs_files(self.name, group, revision=branch, free_memory=False, num_threads=1), branch
            )
            moved(sum(addition.upload_info.size for addition in group))

        in_parallel(self.manner.workers, upload, [*([small] if small else []), *large])
        return additions

    def _commit(self, staged: Staged, branch: str, first: str, additions: list[Any]) -> str:
        """The commit that holds exactly the release. An attempt whose answer was lost is found by looking at the branch first."""
        from huggingface_hub import CommitOperationDelete

        ours = {addition.path_in_repo for addition in additions}
        inherited = [path for path in self.store.files(first) if path not in ours and path != KEPT]
        operations = [*(CommitOperationDelete(path) for path in inherited), *additions]

        def committed() -> str:
            head = self._heads().get(branch)
            if head is not None and head != first:
                return head
            info = self.api.create_commit(
                self.name, operations, commit_message=staged.release.name, revision=branch, parent_commit=first
            )
            return str(info.oid)

        commit = self.store.call(committed, branch)
        self._check(staged, commit)
        return commit

    def _check(self, staged: Staged, commit: str) -> None:
        tree = self.store.tree(commit)
        problems = _tree_problems(staged.release, tree)
        for path in [*staged.files, *staged.closing]:
            entry = tree.get(path)
            if entry is not None and entry.lfs is None and entry.blob_id != _blob_id((staged.folder / path).read_bytes()):
                problems.append(f"{path} has another content")
        problems += [f"{path} is missing" for path in staged.closing if path not in tree]
        if problems:
            raise CheckpointError(
                f"{self.where}: the commit for {staged.release.name} is not the release: {'; '.join(problems[:5])}; it was not "
                "published"
            )

    def _show(self, name: str, commit: str) -> bool:
        """Create the revision at a commit; False if another process did."""

        def created() -> bool:
            try:
                self.api.create_branch(self.name, branch=name, revision=commit)
            except Exception as error:
                if status_of(error) != 409:
                    raise
                return self._heads().get(name) == commit  # ours, and only the answer was lost
            return True

        if not self.store.call(created, name):
            return False
        if self.store.call(self._heads, name).get(name) != commit:
            raise CheckpointError(
                f"{self.where}: {name} is not at commit {commit}, at which it was created; look at the repository"
            )
        return True

    def _replace(self, staged: Staged, head: str, additions: list[Any]) -> bool:
        """One commit on the revision itself: from one whole state to the other."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        name = staged.release.name
        paths = {addition.path_in_repo for addition in additions}
        gone = [path for path in self.store.files(head) if path not in paths and path != KEPT]
        again = [CommitOperationAdd(path, staged.folder / path) for path in sorted(paths)]
        self._compare_and_swap(name, head, [*(CommitOperationDelete(path) for path in gone), *again], f"{name}, replaced")
        self._check(staged, name)  # also says so if another process was first
        return True

    def _tidy(self, name: str, branch: str) -> None:
        """Remove our staging branch; once the revision is there, all that were made for it: who works there finds that out."""
        try:
            heads = self._heads()
            doomed = [head for head in heads if head == branch or (name in heads and head.startswith(f"{STAGING}/{name}-"))]
            for head in doomed:
                self._remove_branch(head)
        except (CheckpointError, ConfigError) as error:
            self.manner.said(f"{branch} may be left over; the next publishing of {name} removes it: {error}")

    def _remove_branch(self, branch: str) -> None:
        def removed() -> None:
            try:
                self.api.delete_branch(self.name, branch=branch)
            except Exception as error:
                if status_of(error) != 404:
                    raise

        self.store.call(removed, branch)

    # ---- main ---------------------------------------------------------------------------------------------------------

    def _main_operations(self, heads: dict[str, str], name: str | None, index: bytes) -> list[Any]:
        """What makes main's tree the release's and the index; nothing if it is that already."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        main = self.store.tree(heads[MAIN])
        operations: list[Any] = []
        if name is not None:
            release = self.store.tree(heads[name])
            operations += [CommitOperationDelete(path) for path in main if path not in release and path not in (KEPT, INDEX)]
            operations += [
                CommitOperationCopy(path, path, src_revision=heads[name])
                for path, entry in release.items()
                if path not in (KEPT, INDEX) and (path not in main or main[path].blob_id != entry.blob_id)
            ]
        old = main.get(INDEX)
        if old is None or not (
            old.lfs.sha256 == hashlib.sha256(index).hexdigest() if old.lfs is not None else old.blob_id == _blob_id(index)
        ):
            operations.append(CommitOperationAdd(INDEX, index))
        return operations

    def _compare_and_swap(self, branch: str, head: str, operations: list[Any], title: str) -> bool:
        """Commit to a branch if it is at `head`; False if it is not any more."""

        def committed() -> bool:
            try:
                self.api.create_commit(self.name, operations, commit_message=title, revision=branch, parent_commit=head)
            except Exception as error:
                if status_of(error) not in (409, 412):
                    raise
                return False
            return True

        return self.store.call(committed, branch)

    def _heads(self) -> dict[str, str]:
        """Commit of every branch."""
        refs = self.store.call(lambda: self.api.list_repo_refs(self.name), "")
        return {branch.name: branch.target_commit for branch in refs.branches}


def _tree_problems(release: Release, tree: dict[str, Any]) -> list[str]:
    problems = check_listing(release, {path: entry.size for path, entry in tree.items()}, UNLISTED)
    for path, entry in tree.items():
        if path in release.files and entry.lfs is not None and entry.lfs.sha256 != release.files[path]["sha256"]:
            problems.append(f"{path} has another SHA-256")
    return problems


def _blob_id(data: bytes) -> str:
    """As git names a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
