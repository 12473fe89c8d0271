"""Texts to ids at the speed of compiled code: gigatoken where it gives what `tokenizers` gives, else `tokenizers` itself."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np

from olmo_train.tokenizer import Tokenizer

try:
    import gigatoken
except ModuleNotFoundError:
    gigatoken = None


class Encoder:
    """A tokenizer file for documents: special tokens that a text spells out stay text, and nothing is added."""

    def __init__(self, path: Path, threads: bool = False) -> None:
        """`threads`: use all cores for one batch, instead of one process per core.

        Raises:
            ConfigError: as olmo_train.tokenizer.Tokenizer.
        """
        self.tokenizer = Tokenizer(path)
        self._threads = threads
        self._fast = None
        if gigatoken is not None:
            self._fast = gigatoken.Tokenizer.from_json(_without_special_tokens(path.read_text(encoding="utf-8")))

    @property
    def name(self) -> str:
        """Package and version that encodes."""
        package = "gigatoken" if self._fast is not None else "tokenizers"
        return f"{package} {metadata.version(package)}"

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts, one after the other (uint32), and where each begins (int64, one more than texts)."""
        if self._fast is None:
            found = self.tokenizer.encode_batch(texts)
            ends = np.cumsum([0, *map(len, found)], dtype=np.int64)
            return np.array([i for ids in found for i in ids], np.uint32), ends
        arrays = self._fast.encode_batch(texts, parallel=self._threads)
        layout = arrays.layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids.astype(np.uint32, copy=False), offsets - offsets[0]


def _without_special_tokens(text: str) -> str:
    """The tokenizer file without its special tokens, which would be found in texts; their ids stay free."""
    values = json.loads(text)
    values["added_tokens"] = [token for token in values.get("added_tokens") or [] if not token.get("special")]
    values["truncation"] = values["padding"] = None
    return json.dumps(values)
