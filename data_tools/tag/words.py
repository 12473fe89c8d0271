"""`words`: words and phrases of lists, whatever their case: where they stand, how many, which fraction of all words."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.documents import Line
from data_tools.tag.list_files import list_lines
from data_tools.tag.model_config import ListConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.units import DECIMALS, Spans, Window, n_chars, windows
from olmo_train.errors import ConfigError

GAP = 8
"""White space and hyphens between two words of a phrase."""
MOST = 1000
"""Characters of an entry."""
_WORD = re.compile(r"(?<!\w)\w+")
_IN_WORD = re.compile(r"\w")
_BETWEEN = re.compile(r"[\s-]+")
_NEXT = re.compile(rf"[\s-]{{1,{GAP}}}(\w+)")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: written without spaces, so that words are found within others."""


class WordList:
    """One list.

    Raises:
        ConfigError: the file is damaged, has no entry, or an entry is too long.
    """

    def __init__(self, path: Path) -> None:
        self.phrases: dict[str, list[tuple[str, ...]]] = {}
        """First word to the words that follow it in each entry, longest first."""
        odd = set()
        for number, line in enumerate(list_lines(path), 1):
            entry = line.split("#")[0].strip().casefold() if not line.startswith("#") else ""
            if len(entry) > MOST:
                raise ConfigError(f"{path}: line {number} has {len(entry)} characters; a word or phrase has at most {MOST}")
            if not entry:
                continue
            words = _BETWEEN.split(entry)
            if all(re.fullmatch(r"\w+", word) for word in words) and not _UNSPACED.search(entry):
                followers = self.phrases.setdefault(words[0], [])
                followers.append(tuple(words[1:]))
            else:
                odd.add(entry)
        for followers in self.phrases.values():
            followers.sort(key=lambda words: (-len(words), words))
        self.odd = re.compile("|".join(map(_bounded, sorted(odd, key=lambda e: (-len(e), e)))), re.IGNORECASE) if odd else None
        """Entries with other characters than letters and digits, or in a script without spaces."""
        if not self.phrases and not odd:
            raise ConfigError(f"{path} has no word; give a file with a word or phrase on each line")


def _bounded(entry: str) -> str:
    if _UNSPACED.search(entry):
        return re.escape(entry)
    before, after = (r"(?<!\w)" if re.match(r"\w", entry) else ""), (r"(?!\w)" if re.search(r"\w\Z", entry) else "")
    return before + re.escape(entry) + after


class WordsTagger:
    """See ListConfig."""

    name = "words"

    def __init__(self, lists: Sequence[ListConfig]) -> None:
        self._lists = [(config.name, WordList(Path(config.path))) for config in lists]
        self.types: Sequence[str] = tuple(f"{name}{ending}" for name, _ in self._lists for ending in ("", "_count", "_frac"))
        self._firsts = {first for _, words in self._lists for first in words.phrases}
        longest = max((len(w) + GAP for _, words in self._lists for f in words.phrases.values() for e in f for w in e), default=0)
        self._reach = 4 * MOST + max(longest, 1)

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """Spans of the entries of each list; and of the document, how many there are, and words of them per word."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        places: dict[str, list[tuple[int, int]]] = {name: [] for name, _ in self._lists}
        spans = {name: Spans() for name, _ in self._lists}
        n_words = 0
        for window in windows(line, self._reach):
            n_words += self._search(window, places)
            for name, found in places.items():
                for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
                    spans[name].add(start, end)
                found.clear()
        chars, scores = n_chars(line), {}
        for name, kept in spans.items():
            scores[name] = kept.spans
            scores[f"{name}_count"] = [[0, chars, kept.count]]
            scores[f"{name}_frac"] = [[0, chars, round(kept.count / max(n_words, 1), DECIMALS)]]
        return {name: found for name, found in scores.items() if found}

    def _search(self, window: Window, places: dict[str, list[tuple[int, int]]]) -> int:
        """Add what begins in the window; returns how many words do."""
        for name, words in self._lists:
            if words.odd is not None:
                for match in words.odd.finditer(window.text, window.pos):
                    if match.start() >= window.limit:
                        break
                    places[name].append((window.offset + match.start(), window.offset + match.end()))
        words_here = _WORD.findall(window.text, window.pos, window.limit)
        hits = [word for word in set(words_here) if word.casefold() in self._firsts]
        if hits:
            pattern = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(hits, key=len, reverse=True)))})(?!\w)")
            for match in pattern.finditer(window.text, window.pos):
                if match.start() >= window.limit:
                    break
                if match.start() == 0 or not _IN_WORD.match(window.text, match.start() - 1):
                    self._add(match, window, places)
        return len(words_here)

    def _add(self, match: re.Match[str], window: Window, places: dict[str, list[tuple[int, int]]]) -> None:
        first = match.group().casefold()
        for name, words in self._lists:
            for end in _ends(window.text, match.end(), words.phrases.get(first, ())):
                places[name].append((window.offset + match.start(), window.offset + end))


def _ends(text: str, end: int, followers: Sequence[tuple[str, ...]]) -> Iterator[int]:
    """Where the longest entry ends whose first word ends at `end`; nothing: none stands there."""
    for words in followers:
        last: int | None = end
        for word in words:
            match = _NEXT.match(text, last) if last is not None else None
            last = match.end() if match is not None and match[1].casefold() == word else None
        if last is not None:
            yield last
            return
