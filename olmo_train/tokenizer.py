"""Text to ids and back, by a `tokenizers` file: byte-level BPE as in GPT-NeoX, OLMo and OLMoE."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders

from olmo_train.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A tokenizer file with an end-of-text token."""

    def __init__(self, path: Path, end_of_text: str = END_OF_TEXT) -> None:
        """Raises:
        ConfigError: the file is missing, is no tokenizer, or lacks the end-of-text token.
        """
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path}: {error.strerror}; train a tokenizer with `olmo data tokenizer`, or give the path of one"
            ) from error
        try:
            self._tokenizer = HFTokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the Rust side raises bare Exception
            raise ConfigError(f"{path} is not a tokenizers file: {error}") from error
        # Published files may carry the limits of an evaluation; documents are tokenized whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(data).hexdigest()
        eos = self._tokenizer.token_to_id(end_of_text)
        if eos is None:
            raise ConfigError(f"{path} has no token {end_of_text!r}; name its end-of-text token")
        self.eos_id: int = eos

    @property
    def vocab_size(self) -> int:
        """Ids are below this, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def token_id(self, token: str) -> int | None:
        """Id of one token by its name; None: there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end-of-text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts, on all cores. Special tokens spelt out in a text stay text."""
        return [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text as a document has them (special tokens spelt out stay text), and the characters [start, end) of each.

        Tokens that share a character have it each; spaces may lie between the characters of two tokens.
        """
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text of ids; special tokens are shown."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    @cached_property
    def _plain(self) -> HFTokenizer:
        """The same tokenizer for documents: `<|endoftext|>` in a document is text, not a boundary (a peer's silent bug)."""
        plain = HFTokenizer.from_str(self._tokenizer.to_str())
        plain.encode_special_tokens = True
        return plain

    def token_bytes(self) -> np.ndarray | None:
        """uint16, or uint32 if they need it, (vocab_size,): UTF-8 bytes of each id; 0 for special tokens. None if not byte-level.

        Source: the byte-to-unicode table of GPT-2 (one character per byte), which `tokenizers`' ByteLevel uses.
        """
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return None
        special = {t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special}
        added = {t.content for t in self._tokenizer.get_added_tokens_decoder().values()}
        table = np.zeros(self.vocab_size, np.int64)
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token not in special:
                table[number] = len(token.encode("utf-8")) if token in added else len(token)
        # A corpus with a line of equal letters can teach a tokenizer one token of more than 65,535 bytes.
        return table.astype(np.uint16 if table.max(initial=0) < 2**16 else np.uint32)

    def id_bytes(self) -> list[bytes] | None:
        """The bytes that `decode` joins, by id below vocab_size; none for an id without a token. None if not byte-level.

        Source: `tokenizers`, ByteLevel's decoder: a token with a character outside the table stands for its own UTF-8.
        """
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return None
        visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in visible]
        table = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
        found = [b""] * self.vocab_size
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            is_plain = all(char in table for char in token)
            found[number] = bytes(table[char] for char in token) if is_plain else token.encode()
        return found
