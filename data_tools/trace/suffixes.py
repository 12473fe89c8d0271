"""The suffix array of one part: tokens -> bytes of their codes -> pydivsufsort -> positions of tokens."""

from dataclasses import dataclass

import numpy as np
from pydivsufsort import divsufsort

from data_tools.trace.codes import Codes
from data_tools.trace.index_folder import KEY, STRIDE
from data_tools.trace.suffix_kernels import encode, split


@dataclass(frozen=True)
class Suffixes:
    """Of one split of a part. sa: uint32 (n,); top: ranks (ceil(n / STRIDE), KEY), 0 after the end of a document."""

    sa: np.ndarray
    top: np.ndarray


def sort_suffixes(tokens: np.ndarray, ends: np.ndarray, heldout: np.ndarray, codes: Codes) -> tuple[Suffixes, Suffixes]:
    """(train, heldout) suffixes. tokens (n,); ends: int64, ends of the documents; heldout: bool, of each document."""
    n_bytes = int(codes.length_V[tokens].sum(dtype=np.int64)) + len(ends)
    data, token_of_byte = np.empty(n_bytes, np.uint8), np.full(n_bytes, -1, np.int32)
    encode(tokens, ends, codes.bytes_V3, codes.length_V, data, token_of_byte)
    order = divsufsort(data)
    is_heldout = np.zeros(len(tokens), np.bool_)
    for document in np.flatnonzero(heldout):
        is_heldout[ends[document - 1] if document else 0 : ends[document]] = True
    n_heldout = int(is_heldout.sum())
    train, held = np.empty(len(tokens) - n_heldout, np.uint32), np.empty(n_heldout, np.uint32)
    split(order, token_of_byte, is_heldout, train, held)
    return tuple(Suffixes(sa, _top(sa, tokens, ends, codes.rank_V)) for sa in (train, held))  # type: ignore[return-value]


def _top(sa: np.ndarray, tokens: np.ndarray, ends: np.ndarray, rank_V: np.ndarray) -> np.ndarray:
    positions = sa[::STRIDE].astype(np.int64)
    limit = ends[np.searchsorted(ends, positions, side="right")] if len(positions) else positions
    at = positions[:, None] + np.arange(KEY)
    return np.where(at < limit[:, None], rank_V[tokens[np.minimum(at, len(tokens) - 1)]], 0)
