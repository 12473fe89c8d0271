"""Text out of tokens, piece by piece: no half characters, nothing past a text to stop at."""

import codecs
from collections.abc import Sequence

from olmo_train.tokenizer import Tokenizer


class TextStream:
    """The text of one sample as it grows. The pieces joined are the whole text, and nothing is ever taken back."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), id_bytes: list[bytes] | None = None) -> None:
        """`stops`: the text ends before the first of them. `id_bytes`: the tokenizer's, to share the table."""
        self._tokenizer, self._stops = tokenizer, stops
        self._id_bytes = tokenizer.id_bytes() if id_bytes is None else id_bytes
        self._ids: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        """Characters that may be the beginning of a stop, and all of them where tokens have no bytes of their own."""
        self._given: list[str] = []
        self.is_stopped = False

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._given)

    def push(self, token: int) -> str:
        """What can be shown now that `token` is there; may be empty."""
        if self._id_bytes is None:
            # Such a decoder may change earlier characters, so nothing is certain before the end.
            self._ids.append(token)
            self._held = self._tokenizer.decode(self._ids)
            return self._cut() if any(stop in self._held for stop in self._stops) else ""
        self._held += self._utf8.decode(self._id_bytes[token] if token < len(self._id_bytes) else b"")
        return self._cut()

    def end(self) -> str:
        """What is left; incomplete characters become U+FFFD."""
        if self.is_stopped:
            return ""
        self._held += self._utf8.decode(b"", final=True)
        piece = self._cut()
        return piece if self.is_stopped else piece + self._give(len(self._held))

    def _cut(self) -> str:
        """Give out what no stop can begin in any more; up to the first stop, if one is there."""
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            return self._give(min(places))
        if self._id_bytes is None:
            return ""
        return self._give(len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0))

    def _give(self, n: int) -> str:
        piece, self._held = self._held[:n], self._held[n:]
        self._given.append(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
