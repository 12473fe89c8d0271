"""Where a long text may be cut so its pieces have the ids of the whole: no word and no added token crosses there.

Proven for pre-tokenizers whose pattern is one of PATTERNS. None of them looks back, and in each
- a match that holds a letter or digit before white space ends there: no alternative has white space after a letter or digit;
- a match that holds a letter before a digit ends there: letters and digits are never in one alternative;
- a match that holds a letter before an ideographic comma or full stop ends there.
The character after a cut is a starter that composes with nothing before it, so NFC of the pieces is NFC of the whole.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

GPT2 = "byte level, GPT-2's pattern"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = tuple(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_REST}" for digits in (r"\p{N}{1,3}", r"\p{N}"))
"""Of cl100k, Llama 3 and dolma2; and of Qwen 2."""
NORMALIZERS = (None, "NFC")
LETTER = r"A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5"
LONGEST = 2**21
"""Characters without a cut: an encoder needs 40 bytes and more for each, and time that grows with their square."""
CUT = re.compile(rf"(?<=[{LETTER}0-9])(?=[ \t\n][!-~])|(?<=[A-Za-z])(?=[0-9])|(?<=[{LETTER}])(?=[\u3001\u3002\uff0c])")


def find_cuts(tokenizer: dict[str, Any]) -> re.Pattern[str] | None:
    """The places where texts may be cut, by the values of a tokenizer file; None: nothing is known, encode whole."""
    normalizer, model = tokenizer.get("normalizer"), tokenizer.get("model") or {}
    if (normalizer and normalizer.get("type")) not in NORMALIZERS or model.get("type") != "BPE" or model.get("dropout"):
        return None
    if not _is_known(tokenizer.get("pre_tokenizer") or {}):
        return None
    for token in tokenizer.get("added_tokens") or []:
        if token.get("special"):
            continue  # stays text in documents
        if CUT.search(f"{token['content']} x") or any(token.get(name) for name in ("single_word", "lstrip", "rstrip")):
            return None
    return CUT


def _is_known(pre: dict[str, Any]) -> bool:
    if pre.get("type") == "ByteLevel":
        return bool(pre.get("use_regex", True)) and not pre.get("add_prefix_space", True)
    steps = pre.get("pretokenizers") or []
    if pre.get("type") != "Sequence" or len(steps) != 2:
        return False
    first, second = steps
    pattern = (first.get("pattern") or {}).get("Regex")
    is_split = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    is_bytes = (
        second.get("type") == "ByteLevel" and not second.get("use_regex", True) and not second.get("add_prefix_space", True)
    )
    return is_split and pattern in PATTERNS and is_bytes


class NoCutError(Exception):
    """A stretch of LONGEST characters in which a text cannot be cut."""


def regroup(pieces: Iterable[str], cuts: re.Pattern[str], size: int) -> Iterator[str]:
    """The same text in pieces of about `size` characters that end at cuts; longer ones where there is no cut.

    Raises:
        NoCutError: a piece would have more than LONGEST characters.
    """
    held: list[str] = []
    length = 0
    for piece in pieces:
        for start in range(0, len(piece), size):
            part = piece[start : start + size]
            length += len(part)
            if held:  # a cut needs the character before it and two after it
                held[-1], part = held[-1][:-2], held[-1][-2:] + part
            held.append(part)
            at = _last_cut(part, cuts) if length >= size else 0
            if at:
                yield "".join(held[:-1]) + part[:at]
                held, length = [part[at:]], len(part) - at
            elif length >= size + LONGEST:
                raise NoCutError
    if rest := "".join(held):
        yield rest


def _last_cut(text: str, cuts: re.Pattern[str]) -> int:
    """Of the last cut of a text; 0: it has none."""
    window = 1024
    while True:
        begin = max(len(text) - window, 0)
        at = 0
        for found in cuts.finditer(text, begin):
            at = found.start()
        if at or not begin:
            return at
        window *= 8
