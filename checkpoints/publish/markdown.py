"""Words of others in Markdown: names from configs stay names, whatever characters they have."""

import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!@^])")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]+")


def one_line(text: str) -> str:
    """The text without line breaks, control characters, and marks that turn the direction of writing."""
    return re.sub(r"\s+", " ", _UNPRINTABLE.sub(" ", text)).strip() or "(empty)"


def escape(text: str) -> str:
    """As running text: nothing in it is markup."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """As code, where nothing is markup; a bar, which would end a cell of a table, is escaped as GitHub's dialect wants it."""
    line = one_line(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence, pad = "`" * (longest + 1), " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table; cells are Markdown already. The columns numbered in `right` are set to the right."""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def wrap(text: str, indent: str = "") -> list[str]:
    """Lines of prose; lines after the first begin with `indent`, and no word is broken."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def fenced(language: str, text: str) -> list[str]:
    """Lines of a block of code."""
    return [f"```{language}", *text.splitlines(), "```"]
