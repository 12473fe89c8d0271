"""Line charts of the report: SVG that stretches with its box, with labels in HTML, so that letters never shrink.

Drawn here and complete without a script; page.js adds the values under the pointer or at the arrow keys' place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from checkpoints.inspect.page_parts import colour, details, legend, ordered_colour, table, tag, text
from checkpoints.inspect.readable import exact, number
from checkpoints.inspect.scales import Scale, linear_scale, step_scale, value_scale

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4", "6 2 2 2")
SIDE = 1000
"""Units of a plot's width and height in its SVG."""
MANY_POINTS = 80
"""More get no dots, and no table of their own."""


@dataclass(frozen=True)
class Line:
    """One series: y at x, gaps where y is None."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """What is drawn against the training step (or `x_name`)."""

    about: str
    """A few words for those who hear the page, and the caption of its table."""
    unit: str
    """Of y."""
    lines: list[Line]
    is_ordered: bool = False
    """The lines are layers: colours along a ramp."""
    references: dict[str, float] = field(default_factory=dict)
    """Horizontal lines by name."""
    x_name: str = "step"
    is_small: bool = False
    first_colour: int = 0


def chart_html(chart: Chart) -> str:
    """The chart, its legend, and its numbers to unfold. '' if no line has a value."""
    lines = [line for line in chart.lines if any(y is not None for y in line.y)]
    if not lines:
        return ""
    x_scale = (
        step_scale(x for line in lines for x in line.x)
        if chart.x_name == "step"
        else linear_scale([x for line in lines for x in line.x], pad=0.03)
    )
    y_scale = value_scale((y for line in lines for y in line.y), list(chart.references.values()))
    styles = [ordered_colour(i, len(lines)) if chart.is_ordered else colour(chart.first_colour + i) for i in range(len(lines))]
    dashes = [DASHES[i % len(DASHES)] if not chart.is_ordered else DASHES[i % 2] for i in range(len(lines))]
    drawn = [_draw(line, x_scale, y_scale, style, dash) for line, style, dash in zip(lines, styles, dashes)]
    x_name = f"{chart.x_name} (logarithmic)" if x_scale.is_log else chart.x_name
    unit = f"{chart.unit} (logarithmic)" if y_scale.is_log else chart.unit
    svg = f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" aria-hidden="true">'
    plot = svg + _grid(x_scale, y_scale, chart.references) + "".join(drawn) + "</svg>" + _labels(x_scale, y_scale, chart)
    box = tag(
        "div",
        f'<p class="unit">{text(unit)}</p><div class="plot">{plot}</div><p class="x-name">{text(x_name)}</p>',
        class_="chart small" if chart.is_small else "chart",
        tabindex=0,
        role="group",
        aria_roledescription="chart",
        aria_label=_spoken(chart, lines),
        data_chart=_points(chart, lines, x_scale, y_scale),
    )
    names = [line.name for line in lines]
    return box + (legend(names, styles, dashes) if len(names) > 1 else "") + ("" if chart.is_small else _numbers(chart, lines))


def _draw(line: Line, x_scale: Scale, y_scale: Scale, style: str, dash: str) -> str:
    """The path, and a dot per point: a stroke of no length with round ends stays round however the box is stretched."""
    path, dots, pen = [], [], "M"
    for x, y in zip(line.x, line.y):
        if y is None:
            pen = "M"
            continue
        at = f"{SIDE * x_scale.place(x):.1f} {SIDE * (1 - y_scale.place(y)):.1f}"
        path.append(f"{pen}{at}")
        dots.append(f"M{at}h0")
        pen = "L"
    shown = f'<path class="line" d="{"".join(path)}" stroke-dasharray="{dash}"/>'
    if len(line.x) <= MANY_POINTS:
        shown += f'<path class="dots" d="{"".join(dots)}"/>'
    return f'<g style="{style}">{shown}</g>'


def _grid(x_scale: Scale, y_scale: Scale, references: dict[str, float]) -> str:
    across = "".join(f"M0 {SIDE * (1 - y_scale.place(tick)):.1f}H{SIDE}" for tick in y_scale.ticks(5))
    down = "".join(f"M{SIDE * x_scale.place(tick):.1f} 0V{SIDE}" for tick in x_scale.ticks(5))
    marked = "".join(f"M0 {SIDE * (1 - y_scale.place(value)):.1f}H{SIDE}" for value in references.values())
    return f'<path class="grid" d="{across}{down}"/>' + (f'<path class="reference" d="{marked}"/>' if marked else "")


def _labels(x_scale: Scale, y_scale: Scale, chart: Chart) -> str:
    x_ticks, y_ticks = x_scale.ticks(5), y_scale.ticks(5)
    if chart.is_small and x_scale.has_zero:
        x_ticks = x_ticks[:1] + x_ticks[2:]  # there is no room for the first value beside 0
    spans = [
        f'<span class="x-tick" style="left:{100 * x_scale.place(tick):.2f}%">{label}</span>'
        for tick, label in zip(x_ticks, x_scale.labels(x_ticks))
    ]
    spans += [
        f'<span class="y-tick" style="bottom:{100 * y_scale.place(tick):.2f}%">{label}</span>'
        for tick, label in zip(y_ticks, y_scale.labels(y_ticks))
    ]
    spans += [
        f'<span class="mark" style="bottom:{100 * y_scale.place(value):.2f}%">{text(name)}</span>'
        for name, value in chart.references.items()
    ]
    return f'<div class="labels" aria-hidden="true">{"".join(spans)}</div>'


def _points(chart: Chart, lines: list[Line], x_scale: Scale, y_scale: Scale) -> str:
    """For page.js: of each line the values and their places in thousandths of the plot."""
    series = []
    for line in lines:
        known = [(x, y) for x, y in zip(line.x, line.y) if y is not None]
        series.append({
            "name": line.name,
            "x": [x for x, _ in known],
            "y": [float(f"{y:.6g}") for _, y in known],
            "left": [round(SIDE * x_scale.place(x)) for x, _ in known],
            "top": [round(SIDE * (1 - y_scale.place(y))) for _, y in known],
        })  # fmt: skip
    return json.dumps({"x": chart.x_name, "unit": chart.unit, "lines": series}, separators=(",", ":"))


def _spoken(chart: Chart, lines: list[Line]) -> str:
    ends = []
    for line in lines[:8]:
        known = [(x, y) for x, y in zip(line.x, line.y) if y is not None]
        (x0, y0), (x1, y1) = known[0], known[-1]
        ends.append(f"{line.name}: {number(y0)} at {chart.x_name} {x0:g}, {number(y1)} at {x1:g}")
    more = f"; and {len(lines) - 8} more lines" if len(lines) > 8 else ""
    return f"{chart.about}, {chart.unit}. {'; '.join(ends)}{more}. Left and right arrow keys read the points."


def _numbers(chart: Chart, lines: list[Line]) -> str:
    """The same as a table, for those who cannot see the chart or want to copy it."""
    lines = [line for line in lines if len(line.x) <= MANY_POINTS]
    if not lines:
        return ""
    xs = sorted({x for line in lines for x in line.x})
    values = [dict(zip(line.x, line.y)) for line in lines]
    rows = [[exact(int(x)) if x == int(x) else number(x), *(number(by_x.get(x)) for by_x in values)] for x in xs]
    heads = [text(chart.x_name), *(text(line.name) for line in lines)]
    return details("Numbers", table(heads, rows, f"{chart.about}, {chart.unit}"))
