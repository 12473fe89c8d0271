"""Which line of a file of documents has an id: sorted hashes beside each file, so that one of billions is found without a scan.

<dataset>/stages/<stage>/ids/<file>.idx: NumPy's format, uint64 (2, documents): xxh3-64 of the ids, sorted; their line numbers.
"""

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_tools.documents import encode_document
from data_tools.files import LineWriter


def id_key(document_id: str) -> int:
    """64 bits of xxh3 of the id."""
    return xxhash.xxh3_64_intdigest(document_id.encode("utf-8", "surrogatepass"))


def find_lines(path: Path, document_id: str) -> list[int]:
    """1-based lines that may have this id (equal hashes; the reader compares)."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    key = np.uint64(id_key(document_id))
    first, last = np.searchsorted(table[0], key), np.searchsorted(table[0], key, "right")
    return sorted(int(line) for line in table[1, first:last])


class DocumentWriter:
    """Writes a file of documents and the index of its ids. Both paths are usually a PartContext's outputs."""

    def __init__(self, path: Path, ids_path: Path) -> None:
        self._lines, self._ids_path, self._keys = LineWriter(path), ids_path, array("Q")

    def write_raw(self, document_id: str, raw: bytes | bytearray) -> None:
        """A document as it stood in another file, unchanged."""
        self._keys.append(id_key(document_id))
        self._lines.write(raw)

    def write(self, values: dict[str, Any]) -> None:
        """A document by its fields; those without a value are left out."""
        self.write_raw(values["id"], encode_document(values))

    def write_pieces(self, document_id: str, pieces: Iterable[bytes]) -> None:
        """A long document, as consecutive pieces of its line of JSON."""
        self._keys.append(id_key(document_id))
        self._lines.write_pieces(pieces)

    @property
    def documents(self) -> int:
        """Written so far."""
        return self._lines.lines

    @property
    def size(self) -> int:
        """Bytes of JSON written so far."""
        return self._lines.size

    def close(self) -> None:
        """Everything is on disk."""
        self._lines.close()
        keys = np.frombuffer(self._keys, np.uint64) if self._keys else np.zeros(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        with open(self._ids_path, "wb") as file:
            np.save(file, np.stack([keys[order], order.astype(np.uint64) + np.uint64(1)]))
