"""The curves as PNG files, one per measure, for papers and slides; the same numbers as the report."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from checkpoints.inspect.line_chart import Line
from checkpoints.inspect.page_parts import CATEGORIES
from checkpoints.inspect.page_view import View, score
from checkpoints.inspect.readable import one_line
from checkpoints.inspect.scales import step_scale

Axes = Any
"""matplotlib.axes.Axes; the package is optional."""
Figure = Any
"""matplotlib.figure.Figure."""
MAX_LEGEND = 12
MAX_PANELS = 16
SIZE_INCHES = (8.0, 4.8)
DPI = 150


def draw_figures(view: View) -> dict[str, bytes]:
    """PNG by file name; only of what the document has."""
    import matplotlib
    from matplotlib.rcsetup import cycler

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have characters that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a dollar
        matplotlib.rcParams["axes.prop_cycle"] = cycler(color=[light for light, _ in CATEGORIES])
        return {name: _png(draw) for name, draw in _jobs(view)}


def _jobs(view: View) -> Iterator[tuple[str, Callable[[Figure], None]]]:
    training, heldout = view.document["training"], view.heldout_lines()
    if training or heldout:
        lines = ([Line("training", training["step"], training["loss"])] if training else []) + heldout
        yield "loss.png", lambda figure: _curves(figure.add_subplot(), lines, "Training and held-out loss", "nats per token")
    if training:
        units = {"loss": "nats per token", "grad_norm": "L2 norm", "lr": "learning rate"}
        panels = {name: [Line(name, training["step"], training[name])] for name in units if name in training}
        yield "training.png", lambda figure: _panels(figure, panels, "Training", units)
    if view.has("norms"):
        kinds = {kind: [view.norm_line(kind, "norm")] for kind in list(view.checkpoints[-1]["norms"]["by_kind"])[:MAX_PANELS]}
        yield "norms.png", lambda figure: _panels(figure, kinds, f"Norm of the weights by kind, over the {view.x_name}", {})
    if view.has("routing"):
        yield from _routing_jobs(view)
    if view.has("texts"):
        texts = view.text_lines()
        yield (
            "texts.png",
            lambda figure: _curves(figure.add_subplot(), texts, "Surprise at given texts", "nats per token", view.x_name),
        )
    tasks = _tasks(view)
    if tasks:
        yield "evaluations.png", lambda figure: _panels(figure, tasks, "Evaluations", {})


def _routing_jobs(view: View) -> Iterator[tuple[str, Callable[[Figure], None]]]:
    n_experts, top_k = view.routing["n_experts"], view.routing["top_k"]
    load = [[share * n_experts for share in layer["balance"]["load"]] for layer in view.layers]
    layers = [str(layer["layer"]) for layer in view.layers]
    at = view.name(len(view.checkpoints) - 1)
    yield (
        "load.png",
        lambda figure: _heat(figure, load, ("layer", "expert"), layers, f"Load of the experts at {at}, times the even share"),
    )
    if view.asked("saturation") and view.layers[0]["saturation"] and len(view.checkpoints) > 1:
        lines = view.layer_lines(lambda layer: layer["saturation"]["top_k"])
        yield (
            "saturation.png",
            lambda figure: _curves(
                figure.add_subplot(),
                lines,
                "Router saturation",
                "share of the final experts",
                view.x_name,
                {"by chance": top_k / n_experts},
            ),
        )
    if view.asked("coactivation") and all(layer["co_activation"]["matrix"] for layer in view.layers):
        yield "coactivation.png", lambda figure: _matrices(figure, view, f"Expert co-activation at {at}")
    if view.asked("source_specialisation"):
        yield "sources.png", lambda figure: _sources(figure, view, n_experts / top_k, at)
    if view.asked("token_specialisation"):
        by_token = view.layer_lines(lambda layer: layer["vocabulary"]["input"]["mean"])
        yield (
            "tokens.png",
            lambda figure: _curves(
                figure.add_subplot(), by_token, "Specialisation by token", "share at the most frequent expert", view.x_name
            ),
        )


def _tasks(view: View) -> dict[str, list[Line]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in view.tasks:
        found.setdefault(f"{entry['label']} ({entry['suite']}, {score(entry['metrics'])[0]})", []).append(entry)
    return {
        name: [Line(name, [entry["step"] for entry in entries], [score(entry["metrics"])[1] for entry in entries])]
        for name, entries in list(found.items())[:MAX_PANELS]
    }


def _png(draw: Callable[[Figure], None]) -> bytes:
    """The same bytes each time: without date and version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _curves(
    axes: Axes, lines: Sequence[Line], title: str, unit: str, x_name: str = "step", references: Mapping[str, float] | None = None
) -> None:  # fmt: skip
    import matplotlib

    ordered = len(lines) > 1 and lines[0].name.startswith("layer ")
    ramp = matplotlib.colormaps["viridis"]
    for i, line in enumerate(lines):
        y = [float("nan") if value is None else value for value in line.y]
        colour = ramp(0.9 * i / (len(lines) - 1)) if ordered else None
        marker = "o" if len(line.x) <= 60 else None
        axes.plot(line.x, y, label=one_line(line.name)[:40], color=colour, marker=marker, markersize=3.5, linewidth=1.4)
    for name, value in (references or {}).items():
        axes.axhline(value, color="0.4", linestyle=":", linewidth=1.2, label=name)
    _step_axis(axes, lines, x_name)
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    if len(lines) + len(references or {}) > 1:
        axes.legend(fontsize="small", ncols=1 if len(lines) <= MAX_LEGEND else 2, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _step_axis(axes: Axes, lines: Sequence[Line], x_name: str) -> None:
    scale = step_scale(x for line in lines for x in line.x) if x_name == "step" else None
    if scale is not None and scale.is_log:
        if scale.has_zero:
            axes.set_xscale("symlog", linthresh=scale.low, linscale=0.4)
            axes.set_xlim(-0.4 * scale.low, 1.25 * scale.high)
        else:
            axes.set_xscale("log")
        axes.set_xlabel(f"{x_name} (logarithmic)")
    else:
        axes.set_xlabel(x_name)
    ticks = [] if scale is None else scale.ticks(6)
    if scale is not None and ticks:
        axes.set_xticks(ticks, scale.labels(ticks))
        axes.minorticks_off()


def _panels(figure: Figure, panels: Mapping[str, list[Line]], title: str, units: Mapping[str, str]) -> None:
    """A small plot each, with its own scale."""
    across = min(4, len(panels)) if len(panels) > 3 else len(panels)
    down = -(-len(panels) // across)
    figure.set_size_inches(max(SIZE_INCHES[0], 3.0 * across), 1.0 + 2.2 * down)
    for number, (name, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, number)
        _curves(axes, lines, "", units.get(name, ""))
        axes.set_title(one_line(name), fontsize="medium")
        axes.tick_params(labelsize="small")
    figure.suptitle(title)


def _heat(figure: Figure, values: Sequence[Sequence[float]], names: tuple[str, str], rows: Sequence[str], title: str) -> None:
    """Times the even share, blue below and orange above it."""
    axes = figure.add_subplot()
    image = _ratio_image(axes, values)
    axes.set_title(title)
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
    axes.set_yticks(range(len(rows)), [one_line(row)[:24] for row in rows], fontsize="small")
    _ratio_bar(figure, image, axes)


def _ratio_image(axes: Axes, values: Sequence[Sequence[float]]) -> Any:
    from matplotlib.colors import LogNorm

    shown = [[max(value, 1e-6) for value in row] for row in values]
    return axes.imshow(shown, cmap="PuOr_r", norm=LogNorm(0.25, 4.0), aspect="auto", interpolation="nearest")


def _ratio_bar(figure: Figure, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, extend="both", label="times the even share")
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.minorticks_off()


def _matrices(figure: Figure, view: View, title: str) -> None:
    """A map per layer, all by one scale."""
    from matplotlib.ticker import MaxNLocator

    layers = view.layers[:MAX_PANELS]
    largest = max(value for layer in layers for row in layer["co_activation"]["matrix"] for value in row) or 1.0
    across = min(4, len(layers))
    down = -(-len(layers) // across)
    figure.set_size_inches(max(SIZE_INCHES[0], 2.6 * across), 0.9 + 2.5 * down)
    all_axes = []
    for number, layer in enumerate(layers, 1):
        axes = figure.add_subplot(down, across, number)
        image = axes.imshow(layer["co_activation"]["matrix"], cmap="Blues", vmin=0, vmax=largest, interpolation="nearest")
        axes.set_title(f"layer {layer['layer']}", fontsize="medium")
        axes.set_xlabel("other expert", fontsize="small")
        axes.tick_params(labelsize="small", labelleft=number % across == 1 or across == 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        all_axes.append(axes)
    figure.colorbar(image, ax=all_axes, label="share of the expert's tokens")
    figure.supylabel("expert", fontsize="medium")
    figure.suptitle(title)


def _sources(figure: Figure, view: View, unit: float, at: str) -> None:
    """A map of sources and experts per layer."""
    layers, names = view.layers[:MAX_PANELS], list(view.layers[0]["domains"])
    figure.set_size_inches(SIZE_INCHES[0] + 1, 1.2 + (0.45 + 0.22 * len(names)) * len(layers))
    all_axes = []
    for number, layer in enumerate(layers, 1):
        axes = figure.add_subplot(len(layers), 1, number)
        image = _ratio_image(axes, [[share * unit for share in layer["domains"][name]["share"]] for name in names])
        axes.set_yticks(range(len(names)), [one_line(name)[:24] for name in names], fontsize="small")
        axes.set_ylabel(f"layer {layer['layer']}", fontsize="small")
        axes.tick_params(axis="x", labelsize="small", labelbottom=number == len(layers))
        all_axes.append(axes)
    axes.set_xlabel("expert")
    _ratio_bar(figure, image, all_axes)
    figure.suptitle(f"Sources by expert at {at}, times the even share")
