"""Texts to ids at the speed of compiled code: gigatoken where it gives what `tokenizers` gives, else `tokenizers` itself."""

import json
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from data_tools.tokenize.cuts import find_cuts, regroup
from data_tools.tokenize.gate import YoungCharacters, hostile_texts
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer

try:
    import gigatoken
except ModuleNotFoundError:
    gigatoken = None

PIECE = 2**17
"""Characters that `tokenizers` gets at once, where a text may be cut: it needs 120 bytes for each."""
N_PROBES = 400
MOST_SPELT = 100


class EncoderChoice(StrEnum):
    """Who encodes."""

    AUTO = "auto"
    """gigatoken, where it passes the gate."""
    GIGATOKEN = "gigatoken"
    """It, or an error."""
    TOKENIZERS = "tokenizers"


class Encoder:
    """A tokenizer file for documents: special tokens that a text spells out stay text, and nothing is added."""

    def __init__(self, path: Path, threads: bool = False, choice: EncoderChoice = EncoderChoice.AUTO) -> None:
        """`threads`: use all cores for one batch, instead of one process per core.

        Raises:
            ConfigError: as olmo_train.tokenizer.Tokenizer; or choice=gigatoken, and it cannot be used.
        """
        self.path = path
        self._threads = threads
        text = _read(path)
        values = json.loads(text)
        values["truncation"] = values["padding"] = None
        self._reference = HFTokenizer.from_str(text)
        self._reference.no_truncation()
        self._reference.no_padding()
        self._reference.encode_special_tokens = True
        self._cuts = find_cuts(values)
        self._fast, self.why_slow = None, ""
        """`why_slow`: why gigatoken is not used, though it was asked for."""
        if choice != EncoderChoice.TOKENIZERS:
            self._fast, self.why_slow = self._load_fast(values)
        if choice == EncoderChoice.GIGATOKEN and self._fast is None:
            raise ConfigError(f"encoder=gigatoken: {self.why_slow}; give encoder=tokenizers, or auto")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The same file, both ways."""
        return Tokenizer(self.path)

    @property
    def name(self) -> str:
        """Package and version that encodes."""
        package = "gigatoken" if self._fast is not None else "tokenizers"
        return f"{package} {metadata.version(package)}"

    @property
    def can_cut(self) -> bool:
        """Whether long texts are encoded piece by piece."""
        return self._cuts is not None

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, one after the other (uint32), and where each begins (int64, one more than texts)."""
        if self._fast is None:
            return _joined([self.reference_ids(text) for text in texts])
        odd = [i for i, text in enumerate(texts) if self._young.are_in(text)]
        ids, begins = self._encode_fast(texts)
        if not odd:
            return ids, begins
        arrays = [ids[begins[i] : begins[i + 1]] for i in range(len(texts))]
        for i in odd:
            arrays[i] = self.reference_ids(texts[i])
        return _joined(arrays)

    def encode_pieces(self, pieces: Iterable[str], size: int = 2**20) -> Iterator[np.ndarray]:
        """Ids of one text that comes in pieces, cut anywhere; in bounded memory if `can_cut`."""
        for piece in ["".join(pieces)] if self._cuts is None else regroup(pieces, self._cuts, size):
            yield self.encode([piece])[0]

    def reference_ids(self, text: str) -> np.ndarray:
        """Ids of one text by `tokenizers`, uint32."""
        pieces = [text] if self._cuts is None or len(text) <= PIECE else regroup([text], self._cuts, PIECE)
        found = [self._reference.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in pieces]
        return np.array([i for ids in found for i in ids] if len(found) != 1 else found[0], np.uint32)

    def _encode_fast(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        assert self._fast is not None
        arrays = self._fast.encode_batch(texts, parallel=self._threads)
        layout = arrays.layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids.astype(np.uint32, copy=False), offsets - offsets[0]

    def _load_fast(self, values: dict[str, Any]) -> tuple[Any, str]:
        """gigatoken with this file, if it gives what `tokenizers` gives; else None and why."""
        self._young = YoungCharacters()
        if gigatoken is None:
            return None, "it is not installed: pip install 'olmo-train[data]'"
        added = values.get("added_tokens") or []
        # Special tokens would be found in texts; their ids stay free.
        plain = values | {"added_tokens": [token for token in added if not token.get("special")]}
        try:
            self._fast = gigatoken.Tokenizer.from_json(json.dumps(plain))
            probes = hostile_texts(N_PROBES, 0, [token["content"] for token in added[:MOST_SPELT]])
            ids, begins = self.encode(probes)
        except Exception as error:  # the Rust side raises what it likes
            return None, f"it cannot use this tokenizer: {error}"
        for i, text in enumerate(probes):
            if not np.array_equal(ids[begins[i] : begins[i + 1]], self.reference_ids(text)):
                return None, f"it gives other ids than tokenizers for {text[:60]!r}"
        return self._fast, ""


def _joined(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    begins = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=begins[1:])
    return np.concatenate([np.zeros(0, np.uint32), *arrays]), begins


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError):
        Tokenizer(path)  # says what is wrong
        raise
    return text
