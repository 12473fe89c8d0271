"""The manifest of a set of token shards: what the headerless files do not say about themselves.

`manifest.json` stands in a folder; the files it names are relative to that folder, or absolute (published shards elsewhere).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from olmo_train.errors import ShardError
from olmo_train.files import write_atomic

FORMAT = "olmo_train.shards"
VERSION = 1
NAME = "manifest.json"
DTYPES = ("uint8", "uint16", "uint32", "uint64")
BLOCK_BYTES = 4 * 1024 * 1024
"""Granularity of the block checksums: small enough to say where a file changed, large enough that 2 GiB need 512 of them."""


@dataclass
class FileEntry:
    """One token file and its document index."""

    path: str
    source: str
    tokens: int
    documents: int
    heldout_documents: int
    heldout_tokens: int
    text_bytes: int | None
    """UTF-8 bytes of the documents' texts; None for shards we did not write."""
    sha256: str | None
    """Of the token file; None if the manifest was made without reading it."""
    block_crc32: str | None
    """Eight hex digits per BLOCK_BYTES of the token file."""
    index: str
    """Path prefix of the document index, relative to the manifest (see document_index.py)."""
    rows: str
    """The `.csv.gz` with the rows of the documents, in blocks the index can seek to."""


@dataclass
class Manifest:
    """Everything the trainer needs to know of a corpus, and its own identity."""

    dtype: str
    vocab_size: int
    """Ids are below this."""
    eos_id: int | None
    heldout_frac: float
    """Documents whose id hashes below this fraction are held out, never trained on."""
    tokenizer: str | None = None
    """Tokenizer file, relative to the manifest."""
    tokenizer_sha256: str | None = None
    token_bytes: str | None = None
    """Array of uint16: UTF-8 bytes each id stands for; None if unknown (then no bits per byte)."""
    files: list[FileEntry] = field(default_factory=list)

    @property
    def itemsize(self) -> int:
        """Bytes per token."""
        return np.dtype(self.dtype).itemsize

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of their first file."""
        return list(dict.fromkeys(entry.source for entry in self.files))

    def fingerprint(self) -> str:
        """SHA-256 over what decides tokens and order: contents, not paths. Two copies of a corpus have the same one."""
        parts = [[e.source, e.tokens, e.documents, e.heldout_documents, e.heldout_tokens, e.sha256] for e in self.files]
        key = [
            FORMAT,
            VERSION,
            self.dtype,
            self.vocab_size,
            self.eos_id,
            self.heldout_frac,
            self.tokenizer_sha256,
            parts,
        ]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def totals(self) -> dict[str, dict[str, int]]:
        """Per source: documents, tokens, heldout_documents, heldout_tokens."""
        totals: dict[str, dict[str, int]] = {}
        for entry in self.files:
            row = totals.setdefault(entry.source, {"documents": 0, "tokens": 0, "heldout_documents": 0, "heldout_tokens": 0})
            for name in row:
                row[name] += getattr(entry, name)
        return totals


def manifest_path(path: str | Path) -> Path:
    """The manifest file of a folder, or the file itself."""
    path = Path(path)
    return path if path.name == NAME else path / NAME


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` whole or not at all."""
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION, "fingerprint": manifest.fingerprint()}
    values |= {"totals": manifest.totals()} | asdict(manifest)
    write_atomic(folder / NAME, (json.dumps(values, indent=1) + "\n").encode())


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        ShardError: missing, not JSON, another format or version, unknown or missing fields, or edited since it was written.
    """
    file = manifest_path(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{file} does not exist; write it with `olmo data tokenize` or `olmo data manifest`") from None
    except (OSError, ValueError) as error:
        raise ShardError(
            f"{file} cannot be read as JSON: {error}; restore it or write it again with `olmo data manifest`"
        ) from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
        raise ShardError(f"{file} is not a manifest of format {FORMAT} version {VERSION}; write one with `olmo data manifest`")
    claimed = values.pop("fingerprint", None)
    values.pop("totals", None)
    try:
        manifest = Manifest(**{**values, "files": [FileEntry(**entry) for entry in values["files"]]})
        missing = {f.name for f in fields(Manifest)} - set(values)
    except (TypeError, KeyError) as error:
        raise ShardError(f"{file} has wrong fields: {error}; write it again with `olmo data manifest`") from error
    if missing or manifest.dtype not in DTYPES or claimed != manifest.fingerprint():
        why = (
            f"lacks {sorted(missing)}"
            if missing
            else f"dtype {manifest.dtype}"
            if manifest.dtype not in DTYPES
            else "fingerprint"
        )
        raise ShardError(f"{file} was changed by hand or damaged ({why} does not fit); write it again with `olmo data manifest`")
    return manifest
