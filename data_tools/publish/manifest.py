"""`data_manifest.json`: what a release of data consists of, file by file. Equal releases have equal manifests, to the byte."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from olmo_train.errors import ShardError

NAME = "data_manifest.json"
FORMAT = "olmo_train.data_release"
VERSION = 1
FOREIGN = (NAME, ".gitattributes")
"""Of a release, not in its list of files: the manifest itself, and what a hub adds."""


@dataclass
class Release:
    """One release."""

    name: str
    description: str
    licenses: dict[str, str]
    """By source."""
    roots: dict[str, str]
    """Folder of each dataset and set of shards: dataset, shards, or records (of a dataset before them, without its documents)."""
    rewritten: dict[str, dict[str, Any]]
    """Files in which paths were replaced: bytes and xxh3_128 of the file as the stage wrote it."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path to bytes and sha256."""

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        values["files"] = dict(sorted(self.files.items()))
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode("utf-8")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry["bytes"] for entry in self.files.values())

    @property
    def sha256(self) -> str:
        """Of the manifest: of everything."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def read_release(data: bytes, where: str) -> Release:
    """Raises:
    ShardError: it is no such manifest."""
    try:
        values = json.loads(data)
        if values.pop("format") != FORMAT or values.pop("version") != VERSION:
            raise ValueError(f"it is not of format {FORMAT} version {VERSION}")
        release = Release(**{f.name: values.pop(f.name) for f in fields(Release)})
        for path, entry in release.files.items():
            if path.startswith("/") or ".." in path.split("/") or not (isinstance(entry["bytes"], int) and entry["sha256"]):
                raise ValueError(f"{path!r} is no file of a release")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{where}/{NAME}: is no manifest of a release: {error!s}; get it again") from None
    return release


def listing_problems(release: Release, sizes: dict[str, int]) -> list[str]:
    """Files that are missing, of another size, or not of the release."""
    problems = []
    for path, entry in release.files.items():
        if path not in sizes:
            problems.append(f"{path} is missing")
        elif sizes[path] != entry["bytes"]:
            problems.append(f"{path} has {sizes[path]:,} bytes, {NAME} says {entry['bytes']:,}")
    return problems + [f"{path} is not in {NAME}" for path in sorted(sizes) if path not in release.files and path not in FOREIGN]
