"""Curves of a run as PNG, the same bytes each time: loss, held-out loss, learning rate, balance of the experts."""

import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.run_files import Evaluation
from olmo_train.errors import ConfigError

Axes = Any
"""matplotlib.axes.Axes; the package is optional."""
MAX_POINTS = 2000
"""Of a curve; longer ones are drawn as means over equally many steps."""
MAX_LABELS = 12


@dataclass
class History:
    """What the lines of metrics.jsonl say, kept small: a run may have millions."""

    tokens: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    """Nats per token; nan where it was not finite."""
    lr: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    """Tokens per second, of intervals."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Steps that changed nothing, by the reason."""
    layers: list[tuple[int, dict[str, list[float]]]] = field(default_factory=list)
    """(tokens, `layers` of metrics.jsonl)."""

    def add(self, line: dict[str, Any]) -> None:
        """Take in one line. Those of step 0 hold an evaluation only."""
        if line["step"] == 0:
            return
        self.tokens.append(line["tokens"])
        self.loss.append(math.nan if line["loss"] is None else line["loss"])
        self.lr.append(line["lr"])
        if "tokens_per_s" in line:
            self.speed.append(line["tokens_per_s"])
        if line.get("skipped"):
            self.skipped[line["skipped"]] = self.skipped.get(line["skipped"], 0) + 1
        if line.get("layers"):
            self.layers.append((line["tokens"], line["layers"]))


@dataclass(frozen=True)
class Plot:
    """A picture under plots/ and what it shows."""

    file: str
    caption: str


def require_matplotlib() -> None:
    """Raises:
    ConfigError: it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("plots need the package matplotlib; pip install 'olmo-train[publish]'") from None


def draw_plots(history: History, evaluations: Iterable[Evaluation], tokens_per_step: int, folder: Path) -> list[Plot]:
    """Draw what there is to draw (two points make a curve) into `folder`; the pictures made."""
    heldout = _heldout_curves(evaluations, tokens_per_step)
    jobs: list[tuple[Plot, bool, Callable[[Axes], None]]] = [
        (Plot("loss.png", "Training loss"), len(history.tokens) > 1, lambda axes: _loss(axes, history)),
        (Plot("heldout.png", "Held-out loss by source"), any(len(x) > 1 for x, _ in heldout.values()),
         lambda axes: _heldout(axes, heldout)),
        (Plot("lr.png", "Learning rate"), len(history.tokens) > 1, lambda axes: _rate(axes, history)),
        (Plot("experts.png", "Balance of the experts"), len(history.layers) > 1, lambda axes: _experts(axes, history)),
    ]  # fmt: skip
    made = [(plot, draw) for plot, has_data, draw in jobs if has_data]
    for plot, draw in made:
        folder.mkdir(exist_ok=True)
        _write(folder / plot.file, plot.caption, draw)
    return [plot for plot, _ in made]


# ---- the curves ------------------------------------------------------------------------------------------------------


def _loss(axes: Axes, history: History) -> None:
    tokens, loss, per_point = thin(np.array(history.tokens, float), np.array(history.loss))
    axes.plot(tokens, loss, linewidth=1.2)
    axes.set_ylabel("cross entropy (nats per token)" + (f", mean of {per_point} steps" if per_point > 1 else ""))


def _rate(axes: Axes, history: History) -> None:
    tokens, rate, _ = thin(np.array(history.tokens, float), np.array(history.lr))
    axes.plot(tokens, rate, linewidth=1.6)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _heldout(axes: Axes, curves: dict[str, tuple[list[int], list[float]]]) -> None:
    for label, (tokens, loss) in curves.items():
        is_all = label == "all"
        style = {"color": "black", "linewidth": 2.0} if is_all else {"linewidth": 1.2}
        axes.plot(tokens, loss, marker="o", markersize=3, label=_label(label), **style)
    axes.set_ylabel("held-out cross entropy (nats per token)")
    axes.legend(fontsize=8)


def _experts(axes: Axes, history: History) -> None:
    tokens = np.array([tokens for tokens, _ in history.layers], float)
    values = np.array([layers["load_max_over_mean"] for _, layers in history.layers])  # (times, MoE layers)
    n_layers = values.shape[1]
    for layer in range(n_layers):
        x, y, _ = thin(tokens, values[:, layer])
        label = f"MoE layer {layer}" if n_layers <= MAX_LABELS or layer in (0, n_layers - 1) else None
        axes.plot(x, y, color=_shade(layer, n_layers), linewidth=1.2, label=label)
    axes.axhline(1, color="grey", linewidth=1, linestyle=":")
    axes.set_ylabel("tokens of the busiest expert / mean (1 is balance)")
    axes.legend(fontsize=8)


def _shade(number: int, n: int) -> tuple[float, float, float]:
    """From blue, the first layer, to orange, the last."""
    at = number / max(n - 1, 1)
    return (0.10 + 0.85 * at, 0.30 + 0.20 * at, 0.80 - 0.70 * at)


def _heldout_curves(evaluations: Iterable[Evaluation], tokens_per_step: int) -> dict[str, tuple[list[int], list[float]]]:
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for evaluation in evaluations:
        loss = evaluation.metrics.get("loss")
        if evaluation.suite == "heldout" and loss is not None and math.isfinite(loss):
            tokens, losses = curves.setdefault(evaluation.label, ([], []))
            tokens.append(evaluation.step * tokens_per_step)
            losses.append(loss)
    return dict(sorted(curves.items(), key=lambda item: (item[0] != "all", item[0]))[:MAX_LABELS])


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """At most MAX_POINTS points: means over the same number of neighbours, and that number; the last mean may be over fewer."""
    per_point = -(-len(x) // MAX_POINTS)
    if per_point == 1:
        return x, y, 1
    starts = np.arange(0, len(x), per_point)
    is_finite = np.isfinite(y)
    counts = np.add.reduceat(is_finite.astype(float), starts)
    sums = np.add.reduceat(np.where(is_finite, y, 0.0), starts)
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return x[np.minimum(starts + per_point, len(x)) - 1], means, per_point


# ---- the picture -----------------------------------------------------------------------------------------------------


def _write(file: Path, title: str, draw: Callable[[Axes], None]) -> None:
    """By matplotlib's own defaults, whatever the user's are, and without the date and version that a PNG would carry."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have characters that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a dollar
        figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
        axes.set_xlabel("tokens seen in training")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.grid(alpha=0.3)
        figure.savefig(file, format="png", metadata={"Software": None})


def short_count(value: float) -> str:
    """`2.5M` for 2,500,000; B is 1e9, T is 1e12."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _label(text: str) -> str:
    """A name as a legend shows it: one line, not too long, and never hidden (matplotlib leaves out what begins with _)."""
    line = re.sub(r"\s+", " ", text).strip() or "(no name)"
    line = f"{line[:39]}…" if len(line) > 40 else line
    return f" {line}" if line.startswith("_") else line
