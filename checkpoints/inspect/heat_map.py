"""Heat maps of the report: one rectangle per cell, its colour a class of the style sheet, so that both grounds have their own.

The first map is drawn here; page.js draws the others, which a reader picks, from the data in the page, by the same two scales.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from checkpoints.inspect.page_parts import tag, text
from checkpoints.inspect.readable import number

CLASSES = 9
SHARE, RATIO = "share", "ratio"
"""Scales: from 0 to a largest value; and times the even share, from 1/4 to 4 by factors of the square root of 2."""


@dataclass(frozen=True)
class Picker:
    """A choice of which map is shown."""

    name: str
    options: dict[int, str]
    """By place in the list of the data: what the reader sees."""
    chosen: int


@dataclass(frozen=True)
class Heat:
    """A map of numbers."""

    about: str
    values: Sequence[Sequence[float]]
    """Of the map shown first, times `unit`."""
    rows: Sequence[str]
    columns: Sequence[str]
    row_name: str
    column_name: str
    path: str
    """Where the data has the maps: names joined by dots; `*` is a picker's choice, `@` goes over the rows."""
    pickers: Sequence[Picker]
    scale: str = RATIO
    unit: float = 1.0
    """What a value of the data is multiplied by."""
    largest: float = 1.0
    """With SHARE: the value from which the last colour is used."""
    is_square: bool = False
    phrase: str = ""
    """What the number is, in a tooltip: `times the even share`."""
    skip_diagonal: bool = False
    gutter: str = field(default="2.6em")
    """Space for the names of the rows."""


def share_class(value: float, largest: float) -> int:
    """Colour 0..8 of a share."""
    return min(CLASSES - 1, max(0, math.floor(value / largest * (CLASSES - 1) + 0.5))) if largest > 0 else 0


def ratio_class(value: float) -> int:
    """Colour 0..8 of a ratio to the even share; 4 is even."""
    return 0 if value <= 0 else min(CLASSES - 1, max(0, math.floor(2 * math.log2(value) + 4.5)))


def heat_html(heat: Heat) -> str:
    """Pickers, map and legend."""
    svg = f'<svg viewBox="0 0 {len(heat.columns)} {len(heat.rows)}" preserveAspectRatio="none" aria-hidden="true">'
    labels = _names(heat.rows, "y-tick", 24) + _names(heat.columns, "x-tick", 17 if heat.is_square else 22)
    plot = f'{svg}{_cells(heat)}</svg><div class="labels" aria-hidden="true">{labels}</div>'
    box = tag(
        "div",
        f'<p class="unit">{text(heat.row_name)}</p><div class="plot">{plot}</div><p class="x-name">{text(heat.column_name)}</p>',
        class_="heat square" if heat.is_square else "heat",
        style=f"--gutter:{heat.gutter};--rows:{len(heat.rows)};--columns:{len(heat.columns)}",
        tabindex=0,
        role="group",
        aria_roledescription="heat map",
        aria_label=_spoken(heat),
        data_path=heat.path,
        data_scale=heat.scale,
        data_unit=heat.unit,
        data_largest=heat.largest,
        data_names="\n".join((heat.row_name, heat.column_name, heat.phrase)),
        data_rows="\n".join(name.replace("\n", " ") for name in heat.rows),
        data_diagonal="skip" if heat.skip_diagonal else "show",
    )
    return f'<div class="pickable">{pickers_html(heat.pickers)}{box}{_legend(heat)}</div>'


def pickers_html(pickers: Sequence[Picker]) -> str:
    """Lists to choose from; hidden until the script is there that answers."""
    labels = []
    for picker in pickers:
        options = "".join(
            tag("option", text(label), value=place, selected=place == picker.chosen) for place, label in picker.options.items()
        )
        labels.append(f"<label>{text(picker.name)} <select>{options}</select></label>")
    return f'<div class="pickers" hidden>{"".join(labels)}</div>' if labels else ""


def _cells(heat: Heat) -> str:
    letter = "q" if heat.scale == SHARE else "d"
    cells = []
    for y, row in enumerate(heat.values):
        for x, value in enumerate(row):
            if heat.skip_diagonal and x == y:
                name = "own"
            else:
                name = f"{letter}{share_class(value, heat.largest) if heat.scale == SHARE else ratio_class(value)}"
            cells.append(f'<rect class="{name}" x="{x}" y="{y}" width="1" height="1"/>')
    return "".join(cells)


def _names(names: Sequence[str], kind: str, most: int) -> str:
    """At most `most` of the names of an axis; every second one can be hidden where there is less room."""
    every = math.ceil(len(names) / most)
    side = "left" if kind == "x-tick" else "top"
    spans = []
    for i, name in list(enumerate(names))[::every]:
        place = f"{side}:{100 * (i + 0.5) / len(names):.2f}%"
        spans.append(tag("span", text(name), class_=f"{kind} second" if i // every % 2 else kind, style=place, title=name))
    return "".join(spans)


def _legend(heat: Heat) -> str:
    if heat.scale == SHARE:
        letter, low, high = "q", "0", f"{number(heat.largest, 2)} or more"
    else:
        letter, low, high = "d", "\N{LESS-THAN OR EQUAL TO} 1/4", "\N{GREATER-THAN OR EQUAL TO} 4, the middle is 1"
    swatches = "".join(f'<i class="{letter}{i}"></i>' for i in range(CLASSES))
    return f'<p class="ramp"><span>{low}</span>{swatches}<span>{high}</span></p>'


def _spoken(heat: Heat) -> str:
    cells = [
        (value, row, column)
        for row, values in zip(heat.rows, heat.values)
        for column, value in zip(heat.columns, values)
        if not (heat.skip_diagonal and row == column)
    ]
    if not cells:
        return heat.about
    value, row, column = max(cells)
    most = f"largest: {number(value, 3)} {heat.phrase} at {heat.row_name} {row}, {heat.column_name} {column}"
    return f"{heat.about}. {len(heat.rows)} rows, {len(heat.columns)} columns; {most}. Arrow keys read the cells."
