"""A keyed permutation of 0 .. n-1 that is evaluated at single points, forwards and backwards, without a table.

Source: a Feistel network over a rectangle (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, the
generalised Feistel cipher) with cycle walking. The round function is the finaliser of splitmix64; a shuffle, not a cipher.
"""

import hashlib
import json
import math
from collections.abc import Callable

import numpy as np

ROUNDS = 6
"""Pairs of half-rounds. Two fail the uniformity test of the suite on four values, three pass all of it; six leave a margin."""


class Permutation:
    """A bijection of 0 .. n-1 chosen by `key` (anything JSON can write)."""

    def __init__(self, n: int, key: object) -> None:
        assert 0 < n < 2**62, n
        self.n = n
        self._rows = math.isqrt(n - 1) + 1
        self._columns = -(-n // self._rows)
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=64).digest()
        seeds = np.frombuffer(digest, "<u8")
        self._keys = _mix(np.arange(1, 2 * ROUNDS + 1, dtype=np.uint64) * seeds[0] + seeds[1])

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Images of `x`, an int64 array of values in 0 .. n-1."""
        return self._walk(x, self._encrypt)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """The x with forward(x) == y."""
        return self._walk(y, self._decrypt)

    def _walk(self, x: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Apply `step` until every value is back inside 0 .. n-1; at most rows - 1 of the rectangle's cells lie outside."""
        out = step(np.asarray(x, np.int64))
        while (outside := out >= self.n).any():
            out[outside] = step(out[outside])
        return out

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        left, right = x // self._columns, x % self._columns
        for i in range(ROUNDS):
            left = (left + self._hash(right, 2 * i, self._rows)) % self._rows
            right = (right + self._hash(left, 2 * i + 1, self._columns)) % self._columns
        return left * self._columns + right

    def _decrypt(self, y: np.ndarray) -> np.ndarray:
        left, right = y // self._columns, y % self._columns
        for i in reversed(range(ROUNDS)):
            right = (right - self._hash(left, 2 * i + 1, self._columns)) % self._columns
            left = (left - self._hash(right, 2 * i, self._rows)) % self._rows
        return left * self._columns + right

    def _hash(self, half: np.ndarray, number: int, modulus: int) -> np.ndarray:
        return (_mix(half.astype(np.uint64) ^ self._keys[number]) % np.uint64(modulus)).astype(np.int64)


def _mix(z: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) on a uint64 array; wraps."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
