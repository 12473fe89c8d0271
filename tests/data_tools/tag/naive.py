"""The rules once more, each in a few lines of plain Python, and texts that they may stumble over."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from data_tools.documents import Line

Values = dict[str, Any]
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

HOSTILE = [
    "", " ", "\n", "\n\n\n", "\t \n", "word", "…", "*", "-", "#", "a\n", "\na", "\r\n", "a\r\nb\r\n\r\nc", "a\u2028b\u2029c\x85d",
    "\x00 \x00\x00 \x00\n\x00\n\x00\x00", "\x00", "a\x00b \x00", "\x1c\x1d\x1e\x1f", "日本語 テキスト。日本語", "e\u0301 e\u0301\u0301", "\ufffd \ufffd", "😀 😀😀", "١٢ ٣",
    "İstanbul javascrİpt JavaScript", "uses coo\u212aies", "use of COO\u212aIES. a b", "lorem\nipsum", "LoReM IpSuM", "lorem  ipsum",
    "javascript", "xjavascript", "javascriptx", "a javascript.", "javascript\u0301", "{", "a b c...", "a b c. . .", "a b c ..",
    "* a\n- b\n -c\n*", "x…\n…\n…y", "the be to of and that have with The the. thex", "w" * 1000, "w" * 1001 + ".", "w" * 1024 + " v",
    ("w" * 1500 + " ") * 3, "a b c.\n" * 5 + "\n\na b c.", "one. Two! Three? \"four.\" (five.) six", "x " * 40, "a b a b a b a c",
    "the cat sat the cat ran the cat sat the cat ran", "\u00a0a\u3000b\u00a0", "ª º ʰ ǅ Ⅷ ① ् า", "p q.\n\np  q.\n \np\nq.\n\n\n\nr",
]  # fmt: skip
PIECES = [
    "the", "to", "of", "fox", "jumps", "Fox", ".", "...", "…", "!", "?", '"', ")", " ", " ", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\t",
    "* ", "- ", "#", "{", "}", "javascript", "JavaScript", "lorem ipsum", "privacy policy", "uses cookies", "日本語", "é", "e\u0301",
    "😀", "\u2028", "\x00", "\ufffd", "12", "a b c d e f.", "Use of coo\u212aies", "İ", "w" * 40, "\u00a0",
]  # fmt: skip


def line_of(text: str, is_long: bool = False, **values: Any) -> Line:
    """A document as the reader gives it."""
    import msgspec

    raw = msgspec.json.encode({"id": "x", "source": "s", "text": text, **values})
    return Line("x", "s", None if is_long else text, raw, "p", 1, msgspec.json.encode(text) if is_long else None)


def texts(n: int, seed: int) -> Iterator[str]:
    """Every hostile text, then `n` at random: some with many words, some with few different ones."""
    yield from HOSTILE
    rng = np.random.default_rng(seed)
    for _ in range(n):
        pieces = rng.choice(PIECES, int(rng.integers(2, len(PIECES))), replace=False)
        joint = " " if rng.random() < 0.5 else ""
        yield joint.join(rng.choice(pieces, int(rng.integers(1, 200))).tolist())


def gopher(text: str) -> Values:
    """Dolma's formulas, and of paragraphs datatrove's."""
    words, lines = text.split(), text.split("\n")
    letters = max(sum(map(len, words)), 1)
    n_words, counts = max(len(words), 1), Counter(lines)
    paragraphs = Counter(_paragraphs(lines))
    found: Values = {
        "character_count": len(text),
        "word_count": len(words),
        "median_word_length": float(median(map(len, words))) if words else 0.0,
        "mean_word_length": sum(map(len, words)) / n_words,
        "symbol_to_word_ratio": sum("#" in word or "…" in word for word in words) / n_words,
        "fraction_of_words_with_alpha_character": sum(any(map(str.isalpha, word)) for word in words) / n_words,
        "required_word_count": sum(word in {"the", "be", "to", "of", "and", "that", "have", "with"} for word in words),
        "fraction_of_lines_starting_with_bullet_point": sum(line.startswith(("*", "-")) for line in lines) / len(lines),
        "fraction_of_lines_ending_with_ellipsis": sum(line.endswith("…") for line in lines) / len(lines),
        "fraction_of_duplicate_lines": sum(n for n in counts.values() if n > 1) / len(lines),
        "fraction_of_characters_in_duplicate_lines": sum(len(line) * n for line, n in counts.items() if n > 1) / letters,
        "fraction_of_duplicate_paragraphs": sum(n - 1 for n in paragraphs.values()) / max(paragraphs.total(), 1),
        "fraction_of_characters_in_duplicate_paragraphs": sum(len(p) * (n - 1) for p, n in paragraphs.items())
        / max(len(text), 1),
    }
    for n in range(2, 11):
        grams = Counter(zip(*[words[i:] for i in range(n)], strict=False))
        size = {gram: sum(map(len, gram)) for gram in grams}
        if grams and n < 5:
            top, number = grams.most_common(1)[0]
            found[f"fraction_of_characters_in_most_common_{n}grams"] = number * size[top] / letters
        elif grams:
            every = max(sum(number * size[gram] for gram, number in grams.items()), 1)
            many = sum(number * size[gram] for gram, number in grams.items() if number > 1)
            found[f"fraction_of_characters_in_duplicate_{n}grams"] = many / every
    return found


def _paragraphs(lines: Sequence[str]) -> list[str]:
    held: list[list[str]] = [[]]
    for line in lines:
        if line.split():
            held[-1] += line.split()
        else:
            held.append([])
    return [" ".join(words) for words in held if words]


def c4(text: str) -> Values:
    """Dolma's c4_v1 and the rules of tensorflow/datasets: spans of lines, scores of the document."""
    found: Values = {"sentence_count": 0}
    lines = text.split("\n")
    start = 0
    for i, line in enumerate(lines):
        end = start + len(line) + (i < len(lines) - 1)
        low, words = line.lower().strip(), line.split()
        is_kept = True
        for name, is_so in {
            "lines_with_no_ending_punctuation": not low.endswith((".", "?", "!", '"')),
            "lines_with_too_few_words": len(words) < 3,
            "lines_with_ending_ellipsis": low.endswith("..."),
            "lines_with_javascript": "javascript" in low,
            "lines_with_policy": any(phrase in low for phrase in POLICY),
            "lines_with_long_word": any(len(word) > 1000 for word in words),
        }.items():
            if is_so:
                is_kept = False
                found.setdefault(name, []).append([start, end, 1.0])
        if is_kept:
            ends = [bool(re.search(r"""[.?!]["')\]\u201d\u2019]*$""", word)) for word in words]
            found["sentence_count"] += sum(ends) + (not ends[-1])
        start = end
    lower = text.lower()
    for name, is_so in {
        "has_javascript": "javascript" in lower.split(),
        "has_lorem_ipsum": "lorem ipsum" in lower,
        "has_curly_brace": "{" in text,
    }.items():
        if is_so:
            found[name] = 1.0
    return {**found, "line_count": len(lines)}


def fineweb(text: str) -> Values:
    """datatrove's formulas, with words between white space."""
    lines = [line for line in text.split("\n") if line.strip()]
    again = sum(len(line) * (n - 1) for line, n in Counter(lines).items())
    return {
        "fraction_of_lines_ending_with_punctuation": sum(line.endswith((".", "'", '"', "!", "?")) for line in lines)
        / max(len(lines), 1),
        "fraction_of_short_lines": sum(len(line) <= 30 for line in lines) / max(len(lines), 1),
        "fraction_of_characters_in_duplicate_lines": again / max(len(text.replace("\n", "")), 1),
        "newlines_per_word": text.count("\n") / max(len(text.split()), 1),
    }


def runs(ids: Sequence[int], max_period: int) -> list[tuple[int, int, int]]:
    """(start, end, repeats) of every longest stretch of a period, in tokens."""
    found = []
    for period in range(1, max_period + 1):
        start = None
        for i in range(period, len(ids) + 1):
            if i < len(ids) and ids[i] == ids[i - period]:
                start = i - period if start is None else start
            elif start is not None:
                found.append((start, i, (i - start) // period))
                start = None
    return found
