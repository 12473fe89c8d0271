"""The curves as tables for the terminal: as many columns beside each other as it is wide, the others below."""

from collections.abc import Callable, Sequence
from typing import Any

from checkpoints.inspect.page_view import View, score, whole_heldout
from checkpoints.inspect.readable import amount, exact, number, one_line
from checkpoints.inspect.tables import columns

MAX_NAME = 24
"""Characters of a column's head."""


def terminal_tables(view: View, width: int) -> list[str]:
    """Lines of all tables; what is missing is a sentence."""
    parts = [_checkpoints(view, width), _heldout(view, width), _norms(view, width), *_routing(view, width)]
    parts += [_texts(view, width), _evaluations(view, width)]
    parts += [[f"{name}: {one_line(why)}"] for name, why in view.document["left_out"].items() if view.asked(name)]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def wrap_columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A table in blocks that fit into `width`, each with the first column again."""
    sizes = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    blocks, used = [[0]], sizes[0]
    for at in range(1, len(heads)):
        if used + 2 + sizes[at] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = sizes[0]
        blocks[-1].append(at)
        used += 2 + sizes[at]
    out: list[str] = []
    for block in blocks:
        out += ([""] if out else []) + columns([[row[at] for at in block] for row in [heads, *rows]])
    return out


def _checkpoints(view: View, width: int) -> list[str]:
    rows = []
    for i, checkpoint in enumerate(view.checkpoints):
        tokens, heldout = checkpoint["tokens"], whole_heldout(checkpoint) or {}
        rows.append([
            _label(view, i), amount(tokens) if tokens is not None else exact(None), number(checkpoint["train_loss"]),
            number(heldout.get("loss")), number(heldout.get("bits_per_byte")), checkpoint["digest"][:12],
        ])  # fmt: skip
    heads = [view.x_name, "tokens", "train loss", "held-out", "bits/byte", "weights"]
    return ["Checkpoints (losses in nats per token):", *wrap_columns(heads, rows, width)]


def _heldout(view: View, width: int) -> list[str]:
    lines = view.heldout_lines()
    if len(lines) < 2:
        return []
    steps = sorted({x for line in lines for x in line.x})
    values = [dict(zip(line.x, line.y)) for line in lines]
    rows = [[exact(int(step)), *(number(by_step.get(step)) for by_step in values)] for step in steps]
    heads = [view.x_name, *(_short(line.name.removeprefix("held out: ")) for line in lines)]
    return ["Held-out loss by source, nats per token:", *wrap_columns(heads, rows, width)]


def _norms(view: View, width: int) -> list[str]:
    if not view.has("norms"):
        return []
    kinds = list(view.checkpoints[-1]["norms"]["by_kind"])
    return [
        "L2 norm of the weights by kind:",
        *_by_checkpoint(view, kinds, width, lambda c: [c["norms"]["by_kind"][kind]["norm"] for kind in kinds]),
    ]


def _routing(view: View, width: int) -> list[list[str]]:
    if not view.has("routing"):
        return []
    names = [f"layer {layer['layer']}" for layer in view.layers]

    def by_layer(title: str, value: Callable[[dict[str, Any]], float | None]) -> list[str]:
        return [title, *_by_checkpoint(view, names, width, lambda c: [value(layer) for layer in c["routing"]["layers"]])]

    parts = [by_layer("Busiest expert, times the even share:", lambda layer: layer["balance"]["max_load"])]
    top_k, n_experts = view.routing["top_k"], view.routing["n_experts"]
    if view.asked("saturation") and view.layers[0]["saturation"] and len(view.checkpoints) > 1:
        chance = number(top_k / n_experts, 3)
        title = f"Router saturation: share of the {top_k} experts that the last checkpoint also chooses ({chance} by chance):"
        parts.append(by_layer(title, lambda layer: layer["saturation"]["top_k"]))
    if view.asked("coactivation"):
        parts.append(
            by_layer(
                "Co-activation of the strongest pairs (share of an expert's tokens):",
                lambda layer: layer["co_activation"]["strongest_mean"],
            )
        )
    if view.asked("source_specialisation"):
        parts.append(_sources(view, names, width))
    if view.asked("token_specialisation"):
        parts.append(
            by_layer(
                "Specialisation by token (share of a token's occurrences at its expert):",
                lambda layer: layer["vocabulary"]["input"]["mean"],
            )
        )
    return parts


def _sources(view: View, names: Sequence[str], width: int) -> list[str]:
    sources = list(view.layers[0]["domains"])
    rows = [
        [
            name,
            *(number(layer["domains"][source]["specialization"], 3) for source in sources),
            number(layer["domains"][sources[0]]["shuffled"], 3),
        ]
        for name, layer in zip(names, view.layers)
    ]
    title = f"Specialisation by source at {view.name(len(view.checkpoints) - 1)} (0 is generic):"
    return [title, *wrap_columns(["", *map(_short, sources), "by chance"], rows, width)]


def _texts(view: View, width: int) -> list[str]:
    if not view.has("texts"):
        return []
    texts = view.checkpoints[-1]["texts"]
    names = [f"text {i}" for i in range(1, len(texts) + 1)]
    said = [f"  text {i}: {one_line(entry['text'])[: max(10, width - 12)]}" for i, entry in enumerate(texts, 1)]
    return [
        "Surprise at the texts, nats per token:",
        *said,
        *_by_checkpoint(view, names, width, lambda c: [entry["loss"] for entry in c["texts"]]),
    ]


def _evaluations(view: View, width: int) -> list[str]:
    rows = [
        [
            exact(entry["step"]),
            _short(entry["label"]),
            entry["suite"],
            score(entry["metrics"])[0],
            number(score(entry["metrics"])[1]),
        ]
        for entry in view.tasks
    ]
    return ["Evaluations:", *wrap_columns(["step", "task", "suite", "metric", "value"], rows, width)] if rows else []


def _by_checkpoint(
    view: View, names: Sequence[str], width: int, values: Callable[[dict[str, Any]], Sequence[float | None]]
) -> list[str]:
    rows = [[_label(view, i), *map(number, values(checkpoint))] for i, checkpoint in enumerate(view.checkpoints)]
    return wrap_columns([view.x_name, *map(_short, names)], rows, width)


def _label(view: View, place: int) -> str:
    checkpoint = view.checkpoints[place]
    return exact(checkpoint["step"]) if checkpoint["step"] is not None else _short(checkpoint["where"])


def _short(name: str) -> str:
    words = one_line(name)
    return words if len(words) <= MAX_NAME else words[: MAX_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
