"""Sections of the report on the run itself: loss, checkpoints, evaluations, and how it was measured."""

from typing import Any

from checkpoints.inspect.captions import CAPTIONS
from checkpoints.inspect.curves_file import TRAINING_COLUMNS
from checkpoints.inspect.line_chart import Chart, Line, chart_html
from checkpoints.inspect.page_parts import details, figure, left_out, section, table, tag, text
from checkpoints.inspect.page_view import View, score, whole_heldout
from checkpoints.inspect.readable import NONE, amount, exact, number, size

MAX_TASKS = 24
"""Drawn; the table has all."""
MAX_SCORES = 3
"""In a row of the table of checkpoints."""
_TRAINING = {
    "grad_norm": "Gradient norm", "lr": "Learning rate", "load_balancing_loss": "Load-balancing loss",
    "router_z_loss": "Router z-loss",
}  # fmt: skip


def loss_section(view: View) -> str:
    """Training and held-out loss, and what went with them."""
    training, heldout = view.document["training"], view.heldout_lines()
    lines = [Line("training", training["step"], training["loss"])] if training else []
    title = "Training and held-out loss"
    chart = chart_html(Chart(title, "nats per token", lines + heldout))
    parts = [figure(title, chart, CAPTIONS["loss"], view.source("training.loss"))] if chart else []
    if not training:
        parts.append(left_out(view.why_not("loss")))
    if not heldout:
        parts.append(left_out(view.why_not("heldout")))
    if training:
        drawn = [_training_chart(training, number_, name) for number_, name in enumerate(_TRAINING, 2)]
        multiples = f'<div class="multiples">{"".join(drawn)}</div>'
        parts.append(figure("During training", multiples, CAPTIONS["training"], view.source("training.lr")))
    return section("loss", "Loss", "".join(parts))


def checkpoints_section(view: View) -> str:
    """A row per checkpoint."""
    rows = [_checkpoint_row(view, checkpoint, n) for checkpoint, n in zip(view.checkpoints, view.document["sizes"])]
    heads = ["Step", "Tokens", "Training loss", "Held-out loss", "Bits per byte", "Evaluations", "Size", "Weights (SHA-256)"]
    digests = [checkpoint["digest"] for checkpoint in view.checkpoints]
    says = "No two checkpoints hold the same weights: every digest is another."
    if len(set(digests)) < len(digests):
        says = "Some checkpoints hold the same weights: rows with one digest are one model under several names."
    heldout = whole_heldout(view.checkpoints[-1])
    if heldout:
        tokens = exact(heldout["tokens"])
        says = f"Held-out loss and bits per byte are measured here, on the same {tokens} tokens at every checkpoint. {says}"
    inner = table(heads, rows, f"{len(rows)} checkpoints, oldest first") + f'<p class="soft">{text(says)}</p>'
    return section("checkpoints", "Checkpoints", inner)


def evaluations_section(view: View) -> str:
    """Scores of tasks over the run."""
    entries, title = view.tasks, "Evaluations"
    if not entries:
        why = "No task was evaluated, during training or after it."
        return section("evaluations", title, left_out(why if view.asked("evaluations") else view.why_not("evaluations")))
    by_task: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        by_task.setdefault((entry["suite"], entry["label"]), []).append(entry)
    drawn = [_task_chart(suite, label, found) for (suite, label), found in list(by_task.items())[:MAX_TASKS]]
    rows = [
        [text(entry["label"]), text(entry["suite"]), exact(entry["step"]), text(name), number(value)]
        for entry in entries for name, value in entry["metrics"].items()
    ]  # fmt: skip
    whole = details("All results", table(["Task", "Suite", "Step", "Metric", "Value"], rows, "Results of evaluations"))
    multiples = f'<div class="multiples">{"".join(drawn)}</div>'
    shown = figure("Tasks over the run", multiples + whole, CAPTIONS["evaluations"], view.source("evaluations"))
    return section("evaluations", title, shown)


def method_section(view: View) -> str:
    """Settings, definitions, and the data to take away."""
    settings = [[text(name), text(_setting(value))] for name, value in view.document["series"]["settings"].items()]
    definitions = [
        [text(name), text(entry["unit"]), text(entry["is"]), text(entry["source"])]
        for name, entry in view.document["definitions"].items()
    ]
    meanings = table(["Measure", "Unit", "What it is", "Source"], definitions, "Definitions and units", is_words=True)
    n, n_full = len(view.checkpoints), len(view.full)
    carried = "every checkpoint" if n_full == n else f"{n_full} of {n} checkpoints, and the main ones of the others"
    inner = (
        f"<p>Checkpoints were read from <code>{text(view.document['where'])}</code>.</p>"
        + table(["Setting", "Value"], settings, "What the numbers depend on", is_words=True)
        + details("Definitions and units", meanings)
        + f"<p>This page carries the numbers of {carried}, to five digits; curves.json, written with it, has all of them.</p>"
        '<p><button id="download" type="button" hidden>Download the data (JSON)</button></p>'
    )
    return section("method", "How it was measured", inner)


def _training_chart(training: dict[str, list[Any]], colour: int, name: str) -> str:
    line = Line(_TRAINING[name], training["step"], training.get(name, []))
    chart = chart_html(Chart(_TRAINING[name], TRAINING_COLUMNS[name], [line], is_small=True, first_colour=colour))
    return f"<div><h4>{_TRAINING[name]}</h4>{chart}</div>" if chart else ""


def _task_chart(suite: str, label: str, found: list[dict[str, Any]]) -> str:
    name = score(found[-1]["metrics"])[0]
    line = Line(name, [entry["step"] for entry in found], [entry["metrics"].get(name) for entry in found])
    chart = chart_html(Chart(f"{label} ({suite})", name, [line], is_small=True))
    return f"<div><h4><bdi>{text(label)}</bdi></h4>{chart}</div>" if chart else ""


def _checkpoint_row(view: View, checkpoint: dict[str, Any], n_bytes: int | None) -> list[str]:
    heldout, tokens, digest = whole_heldout(checkpoint) or {}, checkpoint["tokens"], checkpoint["digest"]
    scores = [
        f"{entry['label']} {number(score(entry['metrics'])[1], 3)}"
        for entry in view.tasks if entry["step"] == checkpoint["step"]
    ]  # fmt: skip
    more = [f"{len(scores) - MAX_SCORES} more"] if len(scores) > MAX_SCORES else []
    return [
        text(checkpoint["where"] if checkpoint["step"] is None else exact(checkpoint["step"])),
        NONE if tokens is None else tag("span", amount(tokens), title=exact(tokens)),
        number(checkpoint["train_loss"]),
        number(heldout.get("loss")),
        number(heldout.get("bits_per_byte")),
        text(", ".join([*scores[:MAX_SCORES], *more]) or NONE),
        tag("span", size(n_bytes), title=f"{exact(n_bytes)} bytes"),
        tag("code", text(digest[:12]), title=digest),
    ]


def _setting(value: Any) -> str:
    """As words: `a, b`, or `name: value`."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_setting(entry)}" for key, entry in value.items())
    return ", ".join(_setting(entry) for entry in value) if isinstance(value, list) else str(value)
