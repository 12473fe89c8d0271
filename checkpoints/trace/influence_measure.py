"""Gradients of a span, of documents and of held-out text at one checkpoint after the other, and what their products say."""

from dataclasses import dataclass, field

import torch

from checkpoints.load import load_model
from checkpoints.opening import Checkpoint
from checkpoints.trace.gradients import (
    Cell,
    adam_scale,
    by_expert,
    by_group,
    cosine,
    example_gradient,
    inner,
    rescale,
    total,
)
from checkpoints.trace.influence_examples import Example
from checkpoints.trace.influence_results import ExpertParts, GroupPart, Measured
from checkpoints.trace.influence_visits import Plan, StepSizes, Visit
from olmo_train.model.transformer import Transformer

Cells = dict[Cell, float]


@dataclass(frozen=True)
class Products:
    """Of the gradients of a span and of one example."""

    span: Cells
    """<g_span, g_span>."""
    example: Cells
    dot: Cells
    """<g_span, g_example>."""

    @property
    def cosine(self) -> float | None:
        """Of the whole gradients."""
        return cosine(total(self.dot), total(self.span), total(self.example))

    def groups(self, weight: float) -> list[GroupPart]:
        """By layer and kind."""
        span, example = by_group(self.span), by_group(self.example)
        return [
            GroupPart(*group, weight * dot, cosine(dot, span[group], example[group])) for group, dot in by_group(self.dot).items()
        ]

    def experts(self, weight: float) -> list[ExpertParts]:
        """By layer; the experts of a layer in order."""
        span, example = by_expert(self.span), by_expert(self.example)
        found: dict[int, ExpertParts] = {}
        for (layer, expert), dot in sorted(by_expert(self.dot).items()):
            parts = found.setdefault(layer, ExpertParts(layer, [], []))
            parts.influence_E.append(weight * dot)
            parts.cosine_E.append(cosine(dot, span[layer, expert], example[layer, expert]))
        return list(found.values())


@dataclass
class Job:
    """What is compared, and what was found so far."""

    span: Example
    plan: Plan
    null: list[Example]
    names: list[str]
    """Of the chosen parameters."""
    sizes: StepSizes
    measured: dict[tuple[int, int], Measured] = field(default_factory=dict)
    """By number of the candidate and of its visit."""
    noise: dict[int, list[tuple[float, float | None]]] = field(default_factory=dict)
    """(dot, cosine) of each held-out window, by checkpoint."""
    steps: dict[int, int | None] = field(default_factory=dict)
    """Of the checkpoints; None: unknown."""
    knows_step_sizes: bool = True
    n_parameters: int = 0
    distance: int = 0
    """Most steps between a checkpoint and the step before the visit it stands for."""
    n_unscaled: int = 0
    """Most elements without a second moment."""

    def measure(self, key: int, checkpoint: Checkpoint, device: torch.device, is_adam: bool) -> None:
        """Everything at one checkpoint, with one gradient of an example at a time."""
        scales = adam_scale(checkpoint, self.names, device) if is_adam else None
        model = load_model(checkpoint, device, with_documents=self.has_documents)
        span = rescale(example_gradient(model, self.names, self.span.rows), scales)
        self.n_parameters = sum(gradient.numel() for gradient in span.values())
        if scales is not None:
            self.n_unscaled = max(self.n_unscaled, sum(int((scale == 0).sum()) for scale in scales.values()))
        squares = inner(span, span, checkpoint.model)

        def compare(example: Example) -> Products:
            gradient = rescale(self._gradient(model, example), scales)
            return Products(squares, inner(gradient, gradient, checkpoint.model), inner(span, gradient, checkpoint.model))

        null = [compare(example) for example in self.null]
        self.steps[key] = checkpoint.step
        self.noise[key] = [(total(products.dot), products.cosine) for products in null]
        known: dict[tuple[int, bytes], Products] = {}  # another epoch sees the same row
        for c, candidate in enumerate(self.plan.candidates):
            for v, visit in enumerate(candidate.visits):
                if visit.checkpoint != key:
                    continue
                row = visit.example.start, visit.example.rows.ids.tobytes()
                if row not in known:
                    known[row] = compare(visit.example)
                self.measured[c, v] = self._result(checkpoint, visit, known[row])

    @property
    def has_documents(self) -> bool:
        """Whether rows come with documents that attention must not cross."""
        examples = [visit.example for candidate in self.plan.candidates for visit in candidate.visits]
        return any(example.rows.documents is not None for example in examples)

    def _gradient(self, model: Transformer, example: Example) -> dict[str, torch.Tensor]:
        """Of what training minimised of a document: cross entropy and the z-loss of the output, if the run has one."""
        return example_gradient(model, self.names, example.rows, model.config.z_loss_weight)

    def _result(self, checkpoint: Checkpoint, visit: Visit, products: Products) -> Measured:
        weight = self.sizes.weight(checkpoint, visit.step)
        if weight is None:
            self.knows_step_sizes, weight = False, 1.0
        if visit.step is not None and checkpoint.step is not None:
            self.distance = max(self.distance, visit.step - 1 - checkpoint.step)
        return Measured(
            checkpoint.step, visit.step, visit.row, visit.example.n_targets, weight, total(products.dot), products.cosine,
            products.groups(weight), products.experts(weight),
        )  # fmt: skip
