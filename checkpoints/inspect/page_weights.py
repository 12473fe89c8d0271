"""Section of the report on the norms of the weights."""

from checkpoints.inspect.captions import CAPTIONS
from checkpoints.inspect.line_chart import Chart, chart_html
from checkpoints.inspect.page_parts import figure, left_out, section, table, text
from checkpoints.inspect.page_view import View
from checkpoints.inspect.readable import exact, number


def weights_section(view: View) -> str:
    """Norms by kind over the run, and the last ones in full."""
    if not view.has("norms"):
        return section("weights", "Weights", left_out(view.why_not("norms")))
    source = view.source("norms")
    parts = [figure("Norm of the weights by kind", _multiples(view, "norm", "L2 norm"), CAPTIONS["norms"], source)]
    changes = _multiples(view, "update_frac", "change / norm before")
    if changes:
        parts.append(figure("Change since the checkpoint before", changes, CAPTIONS["change"], source))
    else:
        parts.append(left_out("How the weights changed from checkpoint to checkpoint is left out: there is only one checkpoint."))
    return section("weights", "Weights", "".join(parts) + _last(view))


def _multiples(view: View, field: str, unit: str) -> str:
    drawn = []
    for kind in view.checkpoints[-1]["norms"]["by_kind"]:
        chart = chart_html(Chart(f"{kind}, {unit}", unit, [view.norm_line(kind, field)], x_name=view.x_name, is_small=True))
        drawn.append(f"<div><h4>{text(kind)}</h4>{chart}</div>" if chart else "")
    return f'<div class="multiples">{"".join(drawn)}</div>' if any(drawn) else ""


def _last(view: View) -> str:
    norms = view.checkpoints[-1]["norms"]
    rows = [
        [
            text(kind),
            exact(norm["n"]),
            *(number(norm[name]) for name in ("norm", "rms", "update_frac")),
            number(norm["cosine"], 6),
        ]
        for kind, norm in [*norms["by_kind"].items(), ("all", norms["all"])]
    ]
    heads = ["Kind", "Weights", "Norm", "Root mean square", "Change / norm before", "Cosine with before"]
    return table(heads, rows, f"Weights at {view.name(len(view.checkpoints) - 1)}")
