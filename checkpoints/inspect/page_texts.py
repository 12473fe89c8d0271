"""Section of the report on given texts: what each checkpoint believed of every token."""

import math
from typing import Any

from checkpoints.inspect.captions import CAPTIONS
from checkpoints.inspect.line_chart import Chart, chart_html
from checkpoints.inspect.page_parts import details, figure, left_out, section, table, tag, text
from checkpoints.inspect.page_view import View
from checkpoints.inspect.readable import exact, number, one_line, visible_token

CLASSES = ((0.5, "1/2 or more"), (0.1, "1/10"), (0.01, "1/100"), (0.001, "1/1,000"), (0.0, "less"))
"""Least probability of each colour, and its name."""


def texts_section(view: View) -> str:
    """The curve of all texts, and a figure for each."""
    title = "Probability of texts"
    if not view.has("texts"):
        return section("texts", title, left_out(view.why_not("text")))
    chart = chart_html(Chart("Surprise at the texts", "nats per token", view.text_lines(), x_name=view.x_name))
    parts = [figure("Surprise over the run", chart, CAPTIONS["texts"], view.source("text"))]
    parts += [_text_figure(view, place) for place in range(len(view.checkpoints[-1]["texts"]))]
    return section("texts", title, "".join(parts))


def token_class(log_prob: float | None) -> int:
    """Colour 0 (expected) to 4 (a surprise, or not finite)."""
    return len(CLASSES) - 1 if log_prob is None else next(i for i, (p, _) in enumerate(CLASSES) if math.exp(log_prob) >= p)


def _text_figure(view: View, place: int) -> str:
    entry, last = view.checkpoints[-1]["texts"][place], len(view.checkpoints) - 1
    slider = (
        f'<div class="pickers" hidden><label>Checkpoint <input type="range" min="0" max="{last}" value="{last}" '
        'aria-label="Checkpoint, from the first to the last"></label><output></output></div>'
    )
    ramp = "".join(f'<i class="t{i}"></i><span>{name}</span>' for i, (_, name) in enumerate(CLASSES))
    context = f'<p class="soft">After: <code>{text(one_line(entry["context"]))}</code></p>' if entry["context"] else ""
    shown = f'<div class="pickable">{slider}{context}{_tokens(view, place, entry)}<p class="ramp">{ramp}</p></div>'
    says = CAPTIONS["text"].format(checkpoint=view.name(last))
    return figure(view.text_name(place), shown + _numbers(view, place, entry), says, view.source("text"))


def _tokens(view: View, place: int, entry: dict[str, Any]) -> str:
    spans = []
    for token, log_prob in zip(entry["tokens"], entry["log_probs"]):
        end = "<br>" if "\n" in token else ""
        spans.append(f'<span class="t{token_class(log_prob)}">{text(visible_token(token))}</span>{end}')
    at = view.name(len(view.checkpoints) - 1)
    spoken = f"{len(spans)} tokens, {number(entry['loss'])} nats per token at {at}. Left and right arrow keys read the tokens."
    return tag(
        "div",
        "".join(spans),
        class_="tokens",
        tabindex=0,
        role="group",
        aria_roledescription="text with probabilities",
        aria_label=spoken,
        data_path=f"series.checkpoints.*.texts.{place}",
    )


def _numbers(view: View, place: int, entry: dict[str, Any]) -> str:
    by_token = [
        [text(visible_token(token)), exact(i), _probability(log_prob), _nats(log_prob), exact(rank)]
        for token, i, log_prob, rank in zip(entry["tokens"], entry["ids"], entry["log_probs"], entry["ranks"])
    ]
    over = []
    for i, checkpoint in enumerate(view.checkpoints):
        if checkpoint["texts"]:
            found = checkpoint["texts"][place]
            over.append([text(view.name(i)), _nats(found["log_prob"]), number(found["loss"]), number(found["bits_per_byte"])])
    at = f"Tokens at {view.name(len(view.checkpoints) - 1)}"
    heads = ["Checkpoint", "Nats, whole text", "Nats per token", "Bits per byte"]
    return details("Numbers by token", table(["Token", "Id", "Probability", "Nats", "Rank"], by_token, at)) + details(
        "Numbers by checkpoint", table(heads, over, "The text over the run")
    )


def _probability(log_prob: float | None) -> str:
    return number(None if log_prob is None else math.exp(log_prob))


def _nats(log_prob: float | None) -> str:
    return number(None if log_prob is None else -log_prob)
