"""Pieces of HTML that the report is made of; every string from outside goes through `text`."""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from checkpoints.inspect.readable import plain

CATEGORIES = (
    ("#0063a3", "#62b5f0"), ("#c04a00", "#ff9d5c"), ("#00795a", "#3fcf9f"), ("#a3437f", "#f09acb"),
    ("#7a6200", "#e6cf3a"), ("#4d4d4d", "#c9c9c9"), ("#5a4fb0", "#b0a6ff"), ("#7d4a2a", "#d8b08c"),
)  # fmt: skip
"""(on light, on dark): after Okabe and Ito's colours, which colour-blind people tell apart; all 3:1 or more on their ground."""
_LIGHT_RAMP = ("#3b2f7f", "#2a6f97", "#1a8a74", "#6d8a12", "#b86a00")
_DARK_RAMP = ("#a79bff", "#6fc3ef", "#4fd3b0", "#b9d44a", "#ffb84d")


def text(value: object) -> str:
    """Any string as text or attribute of a page: escaped, and control characters spelt out."""
    return html.escape(plain(value), quote=True)


def tag(name: str, inner: str, **attributes: object) -> str:
    """An element; `inner` is HTML, attributes are escaped (`class_` is class). None leaves one out, True is a bare one."""
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{text(value)}"')
    return f"<{' '.join(parts)}>{inner}</{name}>"


def script_json(value: Any) -> str:
    """JSON that no HTML parser sees an end tag or a comment in, for a script element."""
    words = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return words.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def colour(number: int) -> str:
    """Style of a series by its number: a pair of colours that the style sheet chooses from."""
    light, dark = CATEGORIES[number % len(CATEGORIES)]
    return f"--l:{light};--d:{dark}"


def ordered_colour(number: int, n: int) -> str:
    """Style of one of `n` ordered series, layers for example, along a ramp of colours."""
    place = number / (n - 1) if n > 1 else 0.0
    return f"--l:{_between(_LIGHT_RAMP, place)};--d:{_between(_DARK_RAMP, place)}"


def legend(names: Sequence[str], styles: Sequence[str], dashes: Sequence[str]) -> str:
    """What each line of a chart is."""
    items = []
    for name, style, dash in zip(names, styles, dashes):
        line = f'<svg viewBox="0 0 22 8" aria-hidden="true"><path class="line" d="M1 4H21" stroke-dasharray="{dash}"/></svg>'
        items.append(f'<li style="{style}">{line}<bdi>{text(name)}</bdi></li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, is_words: bool = False) -> str:
    """A table that scrolls in its own box; cells are HTML, the first of a row names it. `is_words`: sentences, not numbers."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    start = '<table class="words">' if is_words else "<table>"
    inner = f"{start}<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">{inner}</div>'


def details(summary: str, inner: str, is_open: bool = False) -> str:
    """Something to unfold; `summary` is text."""
    return f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>{inner}</details>"


def figure(title: str, inner: str, says: str, source: str = "") -> str:
    """A figure with its heading, and below it what it shows, how to read it, and where that is defined."""
    source = f' <span class="source">{text(source)}</span>' if source else ""
    return f"<figure><h3>{text(title)}</h3>{inner}<figcaption>{text(says)}{source}</figcaption></figure>"


def section(name: str, title: str, inner: str) -> str:
    """A section with a heading that the table of contents leads to."""
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{text(title)}</h2>{inner}</section>'


def left_out(why: str) -> str:
    """A sentence where there is nothing to show."""
    return f'<p class="left-out">{text(why)}</p>'


def _between(ramp: Sequence[str], place: float) -> str:
    at = place * (len(ramp) - 1)
    low = min(int(at), len(ramp) - 2)
    pairs = zip(_channels(ramp[low]), _channels(ramp[low + 1]))
    return "#" + "".join(f"{round(a + (at - low) * (b - a)):02x}" for a, b in pairs)


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
