"""One pass over a file, wherever it lies: its SHA-256 and, of safetensors, each tensor's. Memory holds one block."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from olmo_train.checkpoint import DTYPES

BLOCK = 4 * 2**20
MAX_HEADER = 100 * 2**20
"""Longest header that safetensors itself reads."""
HEAD = 512
"""Bytes kept of the front of every tensor: what a series compares."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file has it."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    """Of its raw bytes."""
    head: bytes
    """Its first HEAD bytes."""


class HashedFile:
    """A file read from front to end; every byte that passes is counted and hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.n_bytes = file, hashlib.sha256(), 0

    def blocks(self, n_bytes: float = math.inf) -> Iterator[bytes]:
        """The next `n_bytes`, or what is left, block by block."""
        while n_bytes > 0:
            data = self._file.read(int(min(BLOCK, n_bytes)))
            if not data:
                return
            self._digest.update(data)
            self.n_bytes += len(data)
            n_bytes -= len(data)
            yield data

    def read(self, n_bytes: float = math.inf) -> bytes:
        """The next `n_bytes`, or what is left."""
        return b"".join(self.blocks(n_bytes))

    def lines(self) -> Iterator[bytes]:
        """The lines that are left, without their ends; a last line without an end is one too."""
        rest = b""
        for block in self.blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def sha256(self) -> str:
        """Of the whole file; reads what is left."""
        for _ in self.blocks():
            pass
        return self._digest.hexdigest()


def read_tensors(file: HashedFile) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; reads it to its end.

    Raises:
        ValueError: it is no whole safetensors file; says why.
    """
    header = _read_header(file)
    out, at = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        if start != at or end < start:
            raise ValueError(f"tensor {name} lies at bytes {start} to {end} of the data, the one before it ends at {at}")
        if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"tensor {name} of {dtype} {list(shape)} has {end - start} bytes")
        digest, n, head = hashlib.sha256(), 0, b""
        for block in file.blocks(end - start):
            digest.update(block)
            head += block[: HEAD - len(head)]
            n += len(block)
        if n < end - start:
            raise ValueError(f"the file ends within tensor {name}, {end - start - n} bytes before its end")
        out[name] = StoredTensor(dtype, shape, digest.hexdigest(), head)
        at = end
    if file.read(1):
        raise ValueError("there are bytes after the last tensor")
    return out


def _read_header(file: HashedFile) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"not safetensors: its header would have {length} bytes")
    try:
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            start, end = entry["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (start, end, *entry["shape"])):
                raise ValueError(f"{entry} is no place of a tensor")
            str(entry["dtype"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not safetensors: its header cannot be used: {error}") from error
    return header
