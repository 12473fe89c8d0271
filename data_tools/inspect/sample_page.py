"""The page of a sample: ONE file that loads nothing and runs nothing, safe whatever the texts in it are.

Texts are escaped, what would move or hide other text (control characters, marks of writing direction) is spelt out, and a policy
in the head forbids scripts and every request, so that a string that slipped past the escaping still could do nothing.
"""

import html
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d5dae0; --raised: #f6f7f9;
  --mark: #ffe08a; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --ink: #e8ebef; --soft: #a5aeb8; --rule: #3a414a; --raised: #1d2127; --mark: #6b5200; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
article { border: 1px solid var(--rule); border-radius: 4px; padding: .75rem 1rem; margin: 1rem 0; }
.soft { color: var(--soft); font-size: .875rem; margin: 0 0 .5rem; }
pre { white-space: pre-wrap; margin: .5rem 0; background: var(--raised); padding: .75rem; border-radius: 3px;
  font: .875rem/1.5 ui-monospace, Menlo, Consolas, monospace; unicode-bidi: plaintext; max-height: 32rem; overflow: auto; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem; font-size: .8125rem; margin: .5rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
mark { background: var(--mark); color: inherit; }
"""
MOST_SPANS = 200
"""Of one attribute that are highlighted in one text."""


@dataclass
class Shown:
    """One document of the page."""

    id: str
    source: str
    place: str
    text: str
    """Its beginning."""
    is_cut: bool
    values: Mapping[str, Any]
    """What else is known of it: metadata, or why it was taken out."""
    attributes: Mapping[str, Sequence[Sequence[Any]]]


def page_html(title: str, told: str, groups: Mapping[str, Sequence[Shown]]) -> str:
    """The page."""
    body = "".join(
        (f"<h2>{escape(name)} ({len(shown):,})</h2>" if name else "") + "".join(_article(each) for each in shown)
        for name, shown in groups.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f'<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p class="soft">{escape(told)}</p>'
        f"<main>{body}</main></body></html>\n"
    )


def escape(value: object) -> str:
    """Any string as text of a page; characters that are not seen are spelt out, tabs and ends of line stay."""
    return html.escape("".join(_plain(c) for c in str(value)), quote=True)


def _plain(character: str) -> str:
    if character in "\t\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return f"[U+{ord(character):04X}]"


def _article(shown: Shown) -> str:
    places, whole = _spans(shown)
    facts = {**shown.values, **whole}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_say(value))}</dd>" for name, value in facts.items())
    more = '<p class="soft">the text goes on</p>' if shown.is_cut else ""
    return (
        f'<article><h3><bdi>{escape(shown.id)}</bdi></h3><p class="soft">{escape(shown.source)} · {escape(shown.place)}</p>'
        f"<pre>{_highlighted(shown.text, places)}</pre>{more}{f'<dl>{rows}</dl>' if rows else ''}</article>"
    )


def _say(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _spans(shown: Shown) -> tuple[list[tuple[int, int, str]], dict[str, str]]:
    """Spans to highlight, and the scores of whole documents (and numbers of spans) by attribute."""
    places: list[tuple[int, int, str]] = []
    told: dict[str, str] = {}
    for name, spans in sorted(shown.attributes.items()):
        if len(spans) == 1 and spans[0][0] == 0 and (shown.is_cut or spans[0][1] >= len(shown.text)):
            told[name] = f"{float(spans[0][2]):.6g}"
        elif spans:
            told[name] = f"{len(spans):,} spans"
            places += [(int(start), int(end), f"{name} {float(score):.6g}") for start, end, score in spans[:MOST_SPANS]]
    return places, told


def _highlighted(text: str, places: list[tuple[int, int, str]]) -> str:
    """The text with its spans marked; where spans overlap, one mark names them all."""
    bounds = sorted({0, len(text), *(min(max(p, 0), len(text)) for start, end, _ in places for p in (start, end))})
    out = []
    for start, end in pairwise(bounds):
        names = [name for first, last, name in places if first <= start and end <= last]
        piece = escape(text[start:end])
        out.append(f'<mark title="{escape("; ".join(names))}">{piece}</mark>' if names else piece)
    return "".join(out)
