"""fastText's model files, as far as it takes to know that one is whole, and its labels.

The library reads a file that was cut short as if nothing were amiss, or ends the process; so it is given only what fits here.
Source: facebookresearch/fastText src/fasttext.cc (loadModel), args.cc, dictionary.cc, densematrix.cc, quantmatrix.cc,
productquantizer.cc.
"""

import mmap
import os
import struct
from pathlib import Path

from olmo_train.errors import ConfigError

MAGIC = 793712314
VERSIONS = (11, 12)
LABEL = "__label__"
_ARGS = struct.Struct("<12id")
_MODEL_AT = 7 * 4
SUPERVISED = 3
LOSSES = (1, 2, 3, 4)
"""Hierarchical softmax, negative sampling, softmax, one against all."""
_DICTIONARY = struct.Struct("<3i2q")


class _Reader:
    """Fields of a file, one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 0

    def take(self, form: str | struct.Struct) -> tuple[int, ...]:
        form = struct.Struct(form) if isinstance(form, str) else form
        values = form.unpack_from(self._data, self.at)
        self.at += form.size
        return values

    def skip(self, size: int) -> None:
        if size < 0 or self.at + size > len(self._data):
            raise struct.error("a matrix is longer than the file")
        self.at += size

    def word(self) -> bytes:
        end = self._data.find(b"\0", self.at)
        if end < 0:
            raise struct.error("a word has no end")
        word = self._data[self.at : end]
        self.at = end + 1
        return word


def read_labels(path: Path) -> list[str]:
    """Labels of a supervised model, without __label__, in the order of the file.

    Raises:
        ConfigError: it is no model, cut short, or no classifier.
    """
    if os.path.getsize(path) < 8:
        raise ConfigError(f"{path} is no fastText model: it has {os.path.getsize(path)} bytes; get it again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        magic, version = reader.take("<2i")
        if magic != MAGIC or version not in VERSIONS:
            raise ConfigError(f"{path} is no fastText model (.bin or .ftz of fastText 0.1.0 or later): it does not begin as one")
        try:
            if data[8 + _MODEL_AT] != SUPERVISED:
                raise ConfigError(f"{path} is a model of word vectors, not a classifier: it has no labels")
            labels = _read(reader)
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise ConfigError(
                f"{path} is damaged or cut short, at byte {reader.at} of {len(data)}: {error}; get it again"
            ) from None
        if reader.at != len(data):
            raise ConfigError(f"{path} has {len(data)} bytes where its fields take {reader.at}; get it again")
    return labels


def _read(reader: _Reader) -> list[str]:
    args = reader.take(_ARGS)
    dim, bucket = args[0], args[8]
    size, n_words, n_labels, _, pruned = reader.take(_DICTIONARY)
    if min(dim, n_words, n_labels) < 0 or bucket < 0 or size != n_words + n_labels:
        raise struct.error(f"it says that it has {n_words} words and {n_labels} labels of {size}, in {dim} dimensions")
    if args[6] not in LOSSES:
        raise struct.error(f"its loss is number {args[6]}")
    labels = []
    for _ in range(size):
        word = reader.word()
        _, kind = reader.take("<qb")
        if kind == 1:
            labels.append(word.decode("utf-8").removeprefix(LABEL))
    if len(labels) != n_labels:
        raise struct.error(f"it has {len(labels)} labels, and says {n_labels}")
    reader.skip(8 * max(pruned, 0))
    (quantized,) = reader.take("<?")
    rows = _skip_matrix(reader, dim, bool(quantized))
    if rows != n_words + bucket and not quantized:
        raise struct.error(f"it has {rows} vectors for {n_words} words and {bucket} buckets")
    (quantized_output,) = reader.take("<?")
    rows = _skip_matrix(reader, dim, bool(quantized and quantized_output))
    if rows != n_labels:
        raise struct.error(f"it has {rows} vectors for {n_labels} labels")
    return labels


def _skip_matrix(reader: _Reader, dim: int, quantized: bool) -> int:
    """Step over a matrix of `dim` columns; returns its rows."""
    if not quantized:
        rows, columns = reader.take("<2q")
        reader.skip(4 * rows * columns)
    else:
        with_norms, rows, columns, size = reader.take("<?2qi")
        reader.skip(size)
        _skip_quantizer(reader)
        if with_norms:
            reader.skip(rows)
            _skip_quantizer(reader)
    if rows < 0 or columns != dim:
        raise struct.error(f"it has a matrix of {rows} x {columns} for {dim} dimensions")
    return int(rows)


def _skip_quantizer(reader: _Reader) -> None:
    dim, *_ = reader.take("<4i")
    reader.skip(4 * 256 * dim)
