"""A belief as one SVG: the span's log-probability over the steps, the band of its controls, and a mark at each step that saw it.

The file stands alone (no script, no font, light or dark as the viewer asks), and may be put into a page: all its styles begin
with `.belief`.
"""

from collections.abc import Sequence

from checkpoints.inspect.page_parts import CATEGORIES, text
from checkpoints.inspect.readable import one_line
from checkpoints.inspect.scales import Scale, linear_scale, step_scale
from checkpoints.trace.cautions import UNTAUGHT
from checkpoints.trace.results import Belief
from data_tools.trace.answer import Mark, Sight

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 64, 72
"""Margins around the plot."""
MARK_HEIGHT = 10
BAND = (0.1, 0.5, 0.9)
"""Quantiles of the controls: lower edge, median, upper edge."""
TITLE_LENGTH = 80

_SPAN, _CONTROL = CATEGORIES[0], CATEGORIES[5]
_STYLE = f"""
.belief {{ --ink:#1a1a1a; --soft:#5c5c5c; --rule:#dcdcdc; --ground:#ffffff; --span:{_SPAN[0]}; --control:{_CONTROL[0]};
  --seen:{CATEGORIES[1][0]}; font:12px system-ui,sans-serif; background:var(--ground); }}
@media (prefers-color-scheme: dark) {{ .belief {{ --ink:#ededed; --soft:#b0b0b0; --rule:#3a3a3a; --ground:#161616;
  --span:{_SPAN[1]}; --control:{_CONTROL[1]}; --seen:{CATEGORIES[1][1]}; }} }}
.belief .ground {{ fill:var(--ground); }} .belief text {{ fill:var(--soft); }}
.belief .title {{ fill:var(--ink); font-size:14px; }}
.belief .grid {{ stroke:var(--rule); fill:none; }} .belief .band {{ fill:var(--control); opacity:.22; }}
.belief .median {{ stroke:var(--control); fill:none; stroke-width:1.5; stroke-dasharray:5 4; }}
.belief .span {{ stroke:var(--span); fill:none; stroke-width:2.2; stroke-linejoin:round; }} .belief .dot {{ fill:var(--span); }}
.belief .seen {{ stroke:var(--seen); stroke-width:1.6; }} .belief .elsewhere {{ stroke:var(--seen); opacity:.5; }}
.belief .untaught {{ stroke:var(--soft); stroke-width:1.6; stroke-dasharray:2 2; }}
.belief .to {{ stroke:var(--seen); opacity:.35; }}
"""


def belief_svg(belief: Belief) -> str:
    """The figure. Steps that saw the span have whole ticks where they learned from it (fainter ones: at another occurrence),
    broken ticks where they could not (masked, skipped, left out). Steps after the last checkpoint are left out."""
    points = belief.span.points
    steps = [point.step for point in points]
    x_scale = step_scale(steps) if len(steps) > 1 else linear_scale([steps[0]])
    band = _band(belief)
    values = [point.log_prob for point in points] + [value for row in band for value in row]
    y_scale = linear_scale(values)
    title = f"Log-probability of \N{LEFT DOUBLE QUOTATION MARK}{_cut(belief.span.text)}\N{RIGHT DOUBLE QUOTATION MARK}"
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(_spoken(belief))}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="belief" {box}>',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="22">{text(title)}</text>',
        _axes(x_scale, y_scale),
        _controls(steps, band, x_scale, y_scale),
        _marks(belief, x_scale),
        _line(steps, [point.log_prob for point in points], x_scale, y_scale, "span"),
        *(_dot(point.step, point.log_prob, x_scale, y_scale) for point in points),
        _legend(belief, bool(band)),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _band(belief: Belief) -> list[list[float]]:
    """By checkpoint the quantiles BAND of the controls; none without controls."""
    if not belief.controls:
        return []
    rows = zip(*([point.log_prob for point in curve.points] for curve in belief.controls), strict=True)
    return [[_quantile(sorted(row), share) for share in BAND] for row in rows]


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _x(scale: Scale, step: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * scale.place(step)


def _y(scale: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * scale.place(value)


def _axes(x_scale: Scale, y_scale: Scale) -> str:
    bottom, out = HEIGHT - BOTTOM, []
    y_ticks, x_ticks = y_scale.ticks(5), x_scale.ticks(6)
    for tick, label in zip(y_ticks, y_scale.labels(y_ticks)):
        at = _y(y_scale, tick)
        out.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text(label)}</text>')
    for tick, label in zip(x_ticks, x_scale.labels(x_ticks)):
        at = _x(x_scale, tick)
        out.append(f'<path class="grid" d="M{at:.1f} {bottom}V{bottom + 5}"/>')
        out.append(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{text(label)}</text>')
    name = "step (logarithmic)" if x_scale.is_log else "step"
    out.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 36}" text-anchor="end">{name}</text>')
    out.append(f'<text x="{LEFT}" y="{TOP - 20}">nats, whole span</text>')
    return "".join(out)


def _controls(steps: list[int], band: list[list[float]], x_scale: Scale, y_scale: Scale) -> str:
    if not band:
        return ""
    upper = [f"{_x(x_scale, step):.1f} {_y(y_scale, row[2]):.1f}" for step, row in zip(steps, band)]
    lower = [f"{_x(x_scale, step):.1f} {_y(y_scale, row[0]):.1f}" for step, row in zip(steps, band)]
    area = f'<path class="band" d="M{"L".join([*upper, *reversed(lower)])}Z"/>'
    return area + _line(steps, [row[1] for row in band], x_scale, y_scale, "median")


def _line(steps: list[int], values: Sequence[float], x_scale: Scale, y_scale: Scale, name: str) -> str:
    path = "L".join(f"{_x(x_scale, step):.1f} {_y(y_scale, value):.1f}" for step, value in zip(steps, values))
    return f'<path class="{name}" d="M{path}"/>'


def _dot(step: int, value: float, x_scale: Scale, y_scale: Scale) -> str:
    about = f"<title>step {step}: {value:.3f} nats</title>"
    return f'<circle class="dot" cx="{_x(x_scale, step):.1f}" cy="{_y(y_scale, value):.1f}" r="3">{about}</circle>'


def _marks(belief: Belief, x_scale: Scale) -> str:
    """Below the plot's upper edge; a line through the plot where this occurrence was learned."""
    own = {(sight.step, sight.row) for sight in belief.span.sights}
    last, out = belief.span.points[-1].step, []
    for sight in sorted(belief.all_sights, key=lambda s: (s.step, s.row) in own):
        if sight.step > last or sight.mark == Mark.FUTURE or sight.step < belief.span.points[0].step:
            continue
        kind = _mark_class(sight, not own or (sight.step, sight.row) in own)
        at = _x(x_scale, sight.step)
        about = f"<title>step {sight.step}, row {sight.row}: {sight.mark.value}</title>"
        if kind == "seen":
            out.append(f'<path class="to" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        out.append(f'<path class="{kind}" d="M{at:.1f} {TOP - MARK_HEIGHT}v{MARK_HEIGHT}">{about}</path>')
    return "".join(out)


def _mark_class(sight: Sight, is_own: bool) -> str:
    if sight.mark in UNTAUGHT:
        return "untaught"
    return "seen" if is_own else "elsewhere"


def _legend(belief: Belief, has_controls: bool) -> str:
    marks = {sight.mark for sight in belief.all_sights}
    items = [("span", "the span")]
    if has_controls:
        n = len(belief.controls)
        items += [("median", f"median of {n} controls"), ("band", "10 to 90 % of them")]
    if Mark.LEARNED in marks:
        items.append(("seen", "a step that saw it"))
    if marks & set(UNTAUGHT):
        items.append(("untaught", "masked, skipped or left out"))
    out, at = [], LEFT
    for name, label in items:
        shape = f"M{at} {HEIGHT - 22}h22v8h-22z" if name == "band" else f"M{at} {HEIGHT - 18}h22"
        out.append(f'<path class="{name}" d="{shape}"/><text x="{at + 28}" y="{HEIGHT - 14}">{text(label)}</text>')
        at += 46 + 7 * len(label)
    return "".join(out)


def _spoken(belief: Belief) -> str:
    first, last = belief.span.points[0], belief.span.points[-1]
    words = (
        f"Log-probability of the span: {first.log_prob:.2f} nats at step {first.step}, {last.log_prob:.2f} at step {last.step}."
    )
    if belief.total is not None:
        total = belief.total
        words += f" Effect against {total.n_controls} controls: {total.effect:+.2f}"
        words += f", 95 % interval {total.low:+.2f} to {total.high:+.2f}."
    return words


def _cut(words: str) -> str:
    line = one_line(words)
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
