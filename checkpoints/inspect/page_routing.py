"""Sections of the report on routers: load, saturation, co-activation, specialisation by source and by token."""

from collections.abc import Callable, Mapping
from typing import Any

from checkpoints.inspect.captions import CAPTIONS
from checkpoints.inspect.heat_map import SHARE, Heat, heat_html
from checkpoints.inspect.line_chart import Chart, Line, chart_html
from checkpoints.inspect.page_parts import details, figure, left_out, section, tag, text
from checkpoints.inspect.page_view import View
from checkpoints.inspect.readable import number, percent, visible_token

Layer = dict[str, Any]
"""A LayerRouting, as JSON."""
MAX_EXPERTS = 12
"""Of a layer in the list of tokens."""
MAX_TOKENS = 10
"""Of an expert in that list."""
EVEN = "times the even share"
FRACTION = "fraction, 0 to 1"


def routing_sections(view: View) -> str:
    """All of them; where the routers were not measured, one sentence."""
    if not view.has("routing"):
        return section("experts", "Experts", left_out(view.why_not("routing")))
    parts = (load_section, saturation_section, co_activation_section, source_section, token_section)
    return "".join(part(view) for part in parts)


def load_section(view: View) -> str:
    """How evenly experts are used."""
    n_experts, layers = view.routing["n_experts"], view.layers
    heat = Heat(
        about="Load of each expert",
        values=[[share * n_experts for share in layer["balance"]["load"]] for layer in layers],
        rows=[str(layer["layer"]) for layer in layers],
        columns=_numbers(n_experts),
        row_name="layer",
        column_name="expert",
        path="series.checkpoints.*.routing.layers.@.balance.load",
        pickers=[view.checkpoint_picker()],
        unit=n_experts,
        phrase=EVEN,
    )
    n_unused = sum(layer["balance"]["n_unused"] for layer in layers)
    unused = f"{n_unused} experts get no token" if n_unused else "Every expert gets tokens"
    says = CAPTIONS["load"].format(
        tokens=f"{view.routing['n_tokens']:,}", experts=n_experts, unused=f"{unused} at the last checkpoint."
    )
    undecided = {"undecided": view.routing["top_k"] / n_experts}
    curves = [
        _over_steps(view, "Busiest expert", EVEN, lambda layer: layer["balance"]["max_load"], "busiest", {"even": 1.0}),
        _over_steps(
            view,
            "Router probability of the chosen experts",
            FRACTION,
            lambda layer: layer["balance"]["top_k_mass"],
            "mass",
            undecided,
        ),
    ]
    return section(
        "experts",
        "Load of the experts",
        figure("Load of each expert", heat_html(heat), says, view.source("load")) + _pair(curves),
    )


def saturation_section(view: View) -> str:
    """When the routers settled."""
    title, top_k, n_experts = "Router saturation", view.routing["top_k"], view.routing["n_experts"]
    if not view.asked("saturation"):
        return section("saturation", title, left_out(view.why_not("saturation")))
    if len(view.checkpoints) < 2 or not view.layers[0]["saturation"]:
        why = "Saturation compares checkpoints with the last one, and there is only one."
        return section("saturation", title, left_out(why))
    curves = [
        _over_steps(
            view, f"All {top_k} chosen experts", FRACTION, lambda layer: layer["saturation"]["top_k"], "saturation",
            {"by chance": top_k / n_experts},
        ),
        _over_steps(
            view, "Most probable expert alone", FRACTION, lambda layer: layer["saturation"]["top_1"], "saturation_top_1",
            {"by chance": 1 / n_experts},
        ),
    ]  # fmt: skip
    return section("saturation", title, _pair(curves))


def co_activation_section(view: View) -> str:
    """Which experts are chosen together."""
    title, n_experts = "Expert co-activation", view.routing["n_experts"]
    if not view.asked("coactivation"):
        return section("coactivation", title, left_out(view.why_not("coactivation")))
    chance = (view.routing["top_k"] - 1) / (n_experts - 1) if n_experts > 1 else 0.0
    over = _over_steps(
        view, "Strongest pairs", FRACTION, lambda layer: layer["co_activation"]["strongest_mean"], "pairs",
        {"all pairs, by chance": chance},
    )  # fmt: skip
    return section("coactivation", title, _matrix_figure(view, chance) + over)


def _matrix_figure(view: View, chance: float) -> str:
    last, matrices = len(view.checkpoints) - 1, [layer["co_activation"]["matrix"] for layer in view.layers]
    if not all(matrices):
        return ""
    names = _numbers(view.routing["n_experts"])
    heat = Heat(
        about="Expert co-activation",
        values=matrices[0],
        rows=names,
        columns=names,
        row_name="expert",
        column_name="other expert",
        path=f"series.checkpoints.{last}.routing.layers.*.co_activation.matrix",
        pickers=[view.layer_picker()],
        scale=SHARE,
        largest=max(value for matrix in matrices for row in matrix for value in row),
        is_square=True,
        phrase="of its tokens also go to the other",
        skip_diagonal=True,
    )
    says = CAPTIONS["coactivation"].format(checkpoint=view.name(last), chance=number(chance, 2))
    return figure("Experts chosen together", heat_html(heat), says, view.source("coactivation"))


def source_section(view: View) -> str:
    """Which experts serve which source."""
    title, sources = "Specialisation by source", list(view.layers[0]["domains"])
    if not view.asked("source_specialisation"):
        return section("sources", title, left_out(view.why_not("source_specialisation")))
    unit = view.routing["n_experts"] / view.routing["top_k"]
    heat = Heat(
        about=title,
        values=[[share * unit for share in view.layers[0]["domains"][name]["share"]] for name in sources],
        rows=sources,
        columns=_numbers(view.routing["n_experts"]),
        row_name="source",
        column_name="expert",
        path="series.checkpoints.*.routing.layers.*.domains.@.share",
        pickers=[view.checkpoint_picker(), view.layer_picker()],
        unit=unit,
        phrase=EVEN,
        gutter=f"{min(9.0, max(3.0, 0.62 * max(map(len, sources)) + 0.8)):.1f}em",
    )
    says = CAPTIONS["sources"].format(single=CAPTIONS["sources_single"] if len(sources) == 1 else "")
    lines = [_mean_over_layers(view, [name], lambda domain: domain["specialization"]) for name in sources]
    lines.append(_mean_over_layers(view, sources, lambda domain: domain["shuffled"], "dealt by chance"))
    over = chart_html(Chart(f"{title} over the run", "mean |share \N{MINUS SIGN} even| / even", lines, x_name=view.x_name))
    source = view.source("source_specialisation")
    shown = figure("Experts by source", heat_html(heat), says, source)
    return section("sources", title, shown + figure("Specialisation over the run", over, CAPTIONS["sources_over"], source))


def token_section(view: View) -> str:
    """Which experts serve which tokens."""
    title = "Specialisation by token"
    if not view.asked("token_specialisation"):
        return section("tokens", title, left_out(view.why_not("token_specialisation")))
    curves = [
        _over_steps(view, name, FRACTION, _vocabulary_mean(role), f"tokens_{role}")
        for role, name in (("input", "By the token at the position"), ("predicted", "By the token predicted next"))
    ]
    lists = [_expert_list(view, layer, place == 0) for place, layer in enumerate(view.layers)]
    min_count = view.layers[0]["vocabulary"]["min_count"]
    if not any(lists):
        lists = [left_out(f"No id occurs {min_count} times among the tokens measured; --tokens-per-source takes more.")]
    says = CAPTIONS["tokens"].format(checkpoint=view.name(len(view.checkpoints) - 1), min_count=min_count)
    shown = figure("Tokens of the most specialised experts", "".join(lists), says, view.source("token_specialisation"))
    return section("tokens", title, _pair(curves) + shown)


def _vocabulary_mean(role: str) -> Callable[[Layer], float | None]:
    return lambda layer: layer["vocabulary"][role]["mean"]


def _expert_list(view: View, layer: Layer, is_open: bool) -> str:
    role = layer["vocabulary"]["input"]
    known = [(mean, expert) for expert, mean in enumerate(role["by_expert"]) if mean is not None]
    known.sort(key=lambda entry: (-entry[0], entry[1]))
    rows = []
    for mean, expert in known[:MAX_EXPERTS]:
        chips = "".join(_chip(view, token) for token in role["tokens"][expert][:MAX_TOKENS])
        rows.append(f"<dt>expert {expert}<small>{percent(mean)}</small></dt><dd>{chips}</dd>")
    if not rows:
        return ""
    chance = f", {percent(role['shuffled'])} by chance" if role["shuffled"] is not None else ""
    title = f"Layer {layer['layer']}: {percent(role['mean'])} on average{chance}"
    return details(title, f'<dl class="experts">{"".join(rows)}</dl>', is_open)


def _chip(view: View, token: dict[str, Any]) -> str:
    shown = visible_token(view.document["tokens"].get(str(token["id"]), f"id {token['id']}"))
    title = f"id {token['id']}, {token['count']:,} occurrences"
    return tag("span", f"<bdi>{text(shown)}</bdi><small>{percent(token['share'])}</small>", class_="token", title=title)


_MEASURE = {
    "busiest": "load", "mass": "load", "saturation_top_1": "saturation", "pairs": "coactivation",
    "tokens_input": "token_specialisation", "tokens_predicted": "token_specialisation",
}  # fmt: skip
"""By caption, the measure whose definition it goes with, where it has another name."""


def _over_steps(
    view: View,
    title: str,
    unit: str,
    value: Callable[[Layer], float | None],
    caption: str,
    references: Mapping[str, float] | None = None,
) -> str:
    """A figure with a line per layer over the checkpoints."""
    chart = chart_html(
        Chart(title, unit, view.layer_lines(value), is_ordered=True, references=dict(references or {}), x_name=view.x_name)
    )
    says = CAPTIONS[caption].format(top_k=view.routing["top_k"], pairs=len(view.layers[0]["co_activation"]["strongest"]))
    return figure(title, chart, says, view.source(_MEASURE.get(caption, caption))) if chart else ""


def _pair(figures: list[str]) -> str:
    return f'<div class="pair">{"".join(figures)}</div>'


def _mean_over_layers(view: View, sources: list[str], value: Callable[[dict[str, Any]], float], name: str = "") -> Line:
    def mean(checkpoint: dict[str, Any]) -> float | None:
        if not checkpoint["routing"]:
            return None
        layers = checkpoint["routing"]["layers"]
        values = [value(layer["domains"][source]) for layer in layers for source in sources if source in layer["domains"]]
        return sum(values) / len(values) if values else None

    return view.line(name or sources[0], mean)


def _numbers(n: int) -> list[str]:
    return [str(i) for i in range(n)]
