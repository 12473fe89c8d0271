"""A release in a dataset repository of a hub: one commit on main, which is whole or not there."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_tools.publish.manifest import FOREIGN, NAME, listing_problems
from data_tools.publish.stores import ATTEMPTS, BLOCK, Staged, in_words, may_pass, retry
from olmo_train.errors import ConfigError, ShardError

_NAME = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)/?")
_KIND = "dataset"


class HubStore:
    """hf://owner/name, on the hub that HF_ENDPOINT names."""

    def __init__(self, where: str, private: bool | None) -> None:
        match = _NAME.fullmatch(where)
        if match is None:
            raise ConfigError(f"{where} is no dataset of a hub: hf://owner/name")
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise ConfigError(f"{where}: needs the package huggingface_hub; pip install 'olmo-train[publish]'") from None
        self.where, self.name, self.private = f"hf://{match[1]}", match[1], private
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)

    def sizes(self) -> dict[str, int]:
        """See Store."""
        return {path: entry.size for path, entry in self._tree().items()}

    def read(self, path: str) -> bytes | None:
        """See Store."""
        return b"".join(self.blocks(path)) if path in self._tree() else None

    def blocks(self, path: str) -> Iterator[bytes]:
        """See Store."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url, at = hf_hub_url(self.name, path, repo_type=_KIND, endpoint=self.api.endpoint), 0
        for attempt in range(1, ATTEMPTS + 1):
            headers = build_hf_headers(token=self.api.token) | {"Accept-Encoding": "identity"}
            headers |= {"Range": f"bytes={at}-"} if at else {}
            try:
                with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=60.0) as response:
                    hf_raise_for_status(response)
                    if at and response.status_code != 206:
                        raise RuntimeError("the hub does not send the rest of a file")
                    for piece in response.iter_bytes(BLOCK):
                        at += len(piece)
                        yield piece
                return
            except Exception as error:
                if attempt == ATTEMPTS or not may_pass(error):
                    raise in_words(error, f"{self.where}/{path}") from None

    def put(self, staged: Staged, said: Callable[[str], None]) -> None:
        """See Store. Large files that the hub has already are not sent again."""
        from huggingface_hub import CommitOperationAdd, get_token

        if not get_token():
            raise ConfigError(f"{self.where}: no token; log in with `hf auth login`, or set HF_TOKEN")
        self._call(lambda: self.api.create_repo(self.name, repo_type=_KIND, private=self.private, exist_ok=True))
        there = self._tree()
        foreign = sorted(set(there) - set(FOREIGN) - {"README.md"})
        if foreign:
            raise ConfigError(
                f"target={self.where} holds files that no publishing wrote ({', '.join(foreign[:3])}); give another"
            )
        head = self._call(lambda: self.api.repo_info(self.name, repo_type=_KIND)).sha
        additions = [CommitOperationAdd(path, str(source)) for path, source in staged.files.items()]
        additions.append(CommitOperationAdd(NAME, staged.release.to_bytes()))
        for number, addition in enumerate(additions, 1):
            self._call(lambda one=addition: self.api.preupload_lfs_files(self.name, [one], repo_type=_KIND, free_memory=False))  # type: ignore[misc]
            said(f"{number:,} of {len(additions):,} files, {addition.path_in_repo}")
        if NAME in self._tree():
            raise ShardError(
                f"{self.where}: another process published there meanwhile; the same command says what lies there now"
            )

        def commit() -> None:
            if NAME not in self._tree():  # else only the answer of an earlier attempt was lost
                self.api.create_commit(
                    self.name, additions, commit_message=staged.release.name, repo_type=_KIND, parent_commit=head
                )

        self._call(commit)
        problems = self._problems(staged)
        if problems:
            raise ShardError(
                f"{self.where}: the commit is not the release: {'; '.join(problems[:5])}; remove the repository's files"
            )

    def _problems(self, staged: Staged) -> list[str]:
        """By size, and by the hash that the hub tells: SHA-256 of large files, git's own of small ones."""
        tree = self._tree()
        problems = listing_problems(staged.release, {path: entry.size for path, entry in tree.items()})
        for path, source in staged.files.items():
            entry = tree.get(path)
            if entry is None:
                continue
            if entry.lfs is not None:
                is_same = entry.lfs.sha256 == staged.release.files[path]["sha256"]
            else:
                is_same = entry.blob_id == _blob_id(source)
            if not is_same:
                problems.append(f"{path} has another content")
        return problems

    def _tree(self) -> dict[str, Any]:
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        def listed() -> dict[str, Any]:
            try:
                found = self.api.list_repo_tree(self.name, recursive=True, repo_type=_KIND)
                return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}
            except (RepositoryNotFoundError, EntryNotFoundError):
                return {}

        return self._call(listed)

    def _call(self, request: Callable[[], Any]) -> Any:
        return retry(request, self.where)


def _blob_id(path: Path) -> str:
    """As git names a file of this content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while data := file.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()
