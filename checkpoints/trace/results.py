"""What is measured of a span over the checkpoints of a run, as dataclasses; `asdict` of them is the JSON of commands and explorer."""

from dataclasses import dataclass, field

from data_tools.trace.answer import Sight


@dataclass(frozen=True)
class ExpertReading:
    """Which experts read the span at one MoE layer of one checkpoint."""

    layer: int
    share_E: list[float]
    """Of the span's (token, choice) pairs, by expert; they sum to 1."""
    top_T: list[int]
    """The most probable expert of each token."""
    agreement: float | None
    """Share of choices that the last checkpoint makes too; None for one checkpoint alone."""


@dataclass(frozen=True)
class BeliefPoint:
    """One checkpoint."""

    step: int
    tokens: int
    log_prob: float
    """Of the whole span given its context, nats."""
    log_probs_T: list[float]
    """By token, nats."""
    experts: list[ExpertReading] = field(default_factory=list)
    """By MoE layer; of controls none."""


@dataclass(frozen=True)
class BeliefCurve:
    """A span over the checkpoints."""

    text: str
    context: str
    """What the model saw before it."""
    tokens: list[str]
    document: str | None
    """Id of the document that context and span were taken from; None: from the text itself."""
    unigram_log_prob: float
    """Sum over the span, nats."""
    sights: list[Sight]
    """When this occurrence was seen; of controls: when their (held-out) documents were, that is never."""
    points: list[BeliefPoint]
    """By step."""


@dataclass(frozen=True)
class Estimate:
    """Difference in differences: change of the span between two checkpoints, less the mean change of the controls."""

    step_before: int
    step_after: int
    span_change: float
    """Nats, of the whole span."""
    control_change: float
    """Mean over controls, scaled to the span's tokens."""
    effect: float
    """span_change - control_change: what having seen the span is estimated to have added."""
    standard_error: float
    low: float
    high: float
    """Of the 95 % interval."""
    p_value: float
    """By permutation: share of the controls (and the span) whose change is at least as large."""
    n_controls: int


@dataclass(frozen=True)
class Belief:
    """The span, its controls, and the estimates around each step that saw it."""

    run: str
    span: BeliefCurve
    controls: list[BeliefCurve]
    estimates: list[Estimate]
    all_sights: list[Sight]
    """Of all occurrences of the span in training documents, by step (capped; see n_sights)."""
    n_sights: int
    cautions: list[str]
    """What these numbers cannot say, for the reader."""
