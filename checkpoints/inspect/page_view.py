"""What sections of the report ask of a document of curves_file.py, in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from checkpoints.inspect.heat_map import Picker
from checkpoints.inspect.line_chart import Line
from checkpoints.inspect.readable import exact, one_line

MAX_FULL = 24
"""Checkpoints whose every number is in the page, evenly spread over the run; curves.json has all of all."""
MAX_FULL_NUMBERS = 80_000
"""Of the shares of experts in them: large models have fewer such checkpoints, so that the page stays small."""
MAX_SLIM = 40
"""Checkpoints of which it has at least one number per layer; of the others none of the routers."""

MAX_NAME = 48
"""Characters of a text in a title."""
SCORES = ("acc_norm", "acc", "exact_match", "pass@1", "f1", "bits_per_byte", "bpb", "loss", "soft_loss", "word_perplexity")
"""Metrics that stand for a task, the first it has; any other if it has none of them."""


def score(metrics: dict[str, float | None]) -> tuple[str, float | None]:
    """(name, value) of the metric that stands for a task."""
    name = next((name for name in [*SCORES, *sorted(metrics)] if name in metrics), "")
    return name, metrics.get(name)


def whole_heldout(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Held-out loss over all sources."""
    found: dict[str, Any] = checkpoint["heldout"] or {}
    return found.get("all") or (next(iter(found.values())) if len(found) == 1 else None)


@dataclass(frozen=True)
class View:
    """A document, read."""

    document: dict[str, Any]

    @cached_property
    def checkpoints(self) -> list[dict[str, Any]]:
        """Measures of each, oldest first."""
        return list(self.document["series"]["checkpoints"])

    @cached_property
    def has_steps(self) -> bool:
        """Whether every checkpoint says at which step it is."""
        return all(checkpoint["step"] is not None for checkpoint in self.checkpoints)

    @property
    def x_name(self) -> str:
        """What the checkpoints are drawn against."""
        return "step" if self.has_steps else "checkpoint"

    @cached_property
    def xs(self) -> list[float]:
        """Of the checkpoints."""
        return [checkpoint["step"] if self.has_steps else number for number, checkpoint in enumerate(self.checkpoints)]

    def name(self, number: int) -> str:
        """Of a checkpoint, for a reader."""
        checkpoint = self.checkpoints[number]
        return f"step {exact(checkpoint['step'])}" if checkpoint["step"] is not None else one_line(checkpoint["where"])

    @cached_property
    def full(self) -> list[int]:
        """Which checkpoints are in the page with every number; the last one is."""
        most = MAX_FULL
        if self.has("routing"):
            numbers = len(self.layers) * self.routing["n_experts"] * (1 + len(self.layers[0]["domains"]))
            most = min(MAX_FULL, max(3, MAX_FULL_NUMBERS // numbers))
        return spread(len(self.checkpoints), most)

    def has(self, measure: str) -> bool:
        """Whether the last checkpoint has it."""
        return bool(self.checkpoints and self.checkpoints[-1][measure])

    def asked(self, measure: str) -> bool:
        """Whether it was asked for."""
        return measure in self.document["asked"]

    def why_not(self, measure: str) -> str:
        """The sentence that stands where a measure is missing."""
        given = self.document["left_out"].get(measure)
        return given or f"Not measured: --measures did not ask for {measure}."

    def source(self, measure: str) -> str:
        """Where a measure is defined, for below a figure."""
        return f"Source: {self.document['definitions'][measure]['source']}."

    def line(self, name: str, value: Callable[[dict[str, Any]], float | None]) -> Line:
        """One value per checkpoint."""
        return Line(name, self.xs, [value(checkpoint) for checkpoint in self.checkpoints])

    def layer_lines(self, value: Callable[[dict[str, Any]], float | None]) -> list[Line]:
        """One line per MoE layer of one value per checkpoint."""

        def of(place: int) -> Callable[[dict[str, Any]], float | None]:
            return lambda checkpoint: value(checkpoint["routing"]["layers"][place]) if checkpoint["routing"] else None

        return [self.line(f"layer {layer['layer']}", of(place)) for place, layer in enumerate(self.layers)]

    @cached_property
    def routing(self) -> dict[str, Any]:
        """Of the last checkpoint."""
        return dict(self.checkpoints[-1]["routing"])

    @cached_property
    def layers(self) -> list[dict[str, Any]]:
        """MoE layers of the last checkpoint."""
        return list(self.routing["layers"])

    def layer_picker(self) -> Picker:
        """A choice of MoE layer."""
        return Picker("Layer", {place: f"layer {layer['layer']}" for place, layer in enumerate(self.layers)}, 0)

    def checkpoint_picker(self) -> Picker:
        """A choice of checkpoint."""
        return Picker("Checkpoint", {number: self.name(number) for number in self.full}, self.full[-1])

    @cached_property
    def tasks(self) -> list[dict[str, Any]]:
        """Evaluations on tasks, by step."""
        return [entry for entry in self.document["evaluations"] if entry["suite"] != "heldout"]

    def heldout_lines(self) -> list[Line]:
        """Held-out loss by source: of evaluations during training, else as measured at the checkpoints."""
        found: dict[str, dict[float, float | None]] = {}
        for entry in self.document["evaluations"]:
            if entry["suite"] == "heldout":
                found.setdefault(entry["label"], {})[entry["step"]] = entry["metrics"].get("loss")
        if not found:
            for x, checkpoint in zip(self.xs, self.checkpoints):
                for name, loss in (checkpoint["heldout"] or {}).items():
                    found.setdefault(name, {})[x] = loss["loss"]
        if len(found) == 2:
            found.pop("all", None)  # one source is all
        order = sorted(found, key=lambda name: (name == "all", name))
        return [Line(f"held out: {name}", list(found[name]), list(found[name].values())) for name in order]

    def norm_line(self, kind: str, field: str) -> Line:
        """One field of the norms of a kind."""
        return self.line(kind, lambda checkpoint: checkpoint["norms"]["by_kind"][kind][field] if checkpoint["norms"] else None)

    def text_lines(self) -> list[Line]:
        """Nats per token of each text."""

        def of(place: int) -> Callable[[dict[str, Any]], float | None]:
            return lambda checkpoint: checkpoint["texts"][place]["loss"] if checkpoint["texts"] else None

        return [self.line(self.text_name(place), of(place)) for place in range(len(self.checkpoints[-1]["texts"]))]

    def text_name(self, place: int) -> str:
        """The beginning of a text, numbered where there are several."""
        texts = self.checkpoints[-1]["texts"]
        words = one_line(texts[place]["text"])
        short = words if len(words) <= MAX_NAME else words[: MAX_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
        return short if len(texts) == 1 else f"{place + 1}. {short}"


def spread(n: int, most: int) -> list[int]:
    """At most `most` of 0..n-1, evenly spread, the first and the last among them."""
    return list(range(n)) if n <= most else sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def page_data(view: View) -> dict[str, Any]:
    """The document as the page carries it: numbers of five digits, and every number of `view.full` only."""
    last, full, slim = len(view.checkpoints) - 1, set(view.full), {*view.full, *spread(len(view.checkpoints), MAX_SLIM)}
    checkpoints = [
        _slim(c, number in full, number == last) if number in slim else {**_slim(c, False, False), "routing": None}
        for number, c in enumerate(view.checkpoints)
    ]
    layers = view.layers if view.has("routing") else []
    shown = {str(token["id"]) for layer in layers for tokens in layer["vocabulary"]["input"]["tokens"] for token in tokens}
    tokens = {key: value for key, value in view.document["tokens"].items() if key in shown}
    series = {**view.document["series"], "checkpoints": checkpoints}
    rounded: dict[str, Any] = round_numbers({**view.document, "tokens": tokens, "series": series})
    return rounded


def round_numbers(value: Any) -> Any:
    """Floats with five significant digits, whatever holds them; what is not finite is None."""
    if isinstance(value, dict):
        return {key: round_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [round_numbers(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else None
    return value


def _slim(checkpoint: dict[str, Any], is_full: bool, is_last: bool) -> dict[str, Any]:
    out = dict(checkpoint)
    if out["norms"] and not is_full:
        out["norms"] = {key: out["norms"][key] for key in ("all", "by_kind")}
    if out["routing"]:
        layers = [_slim_layer(layer, is_full, is_last) for layer in out["routing"]["layers"]]
        out["routing"] = {**out["routing"], "layers": layers}
    return out


def _slim_layer(layer: dict[str, Any], is_full: bool, is_last: bool) -> dict[str, Any]:
    out = {key: value for key, value in layer.items() if key != "vocabulary_top_k"}
    out["domains"] = {name: _without(domain, "share_top_1") for name, domain in layer["domains"].items()}
    roles = {role: _without(layer["vocabulary"][role], "tokens", "by_expert") for role in ("input", "predicted")}
    if is_last:
        roles["input"] = layer["vocabulary"]["input"]
    out["vocabulary"] = {**_without(layer["vocabulary"], "target"), **roles}
    if not is_full:
        out["balance"] = _without(layer["balance"], "load")
        out["co_activation"] = _without(layer["co_activation"], "strongest")
        out["domains"] = {name: _without(domain, "share") for name, domain in out["domains"].items()}
    return out


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}
