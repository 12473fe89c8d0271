"""What is measured of a span over the checkpoints of a run; `asdict` of these is the JSON of commands and explorer."""

from dataclasses import dataclass, field

from data_tools.trace.answer import Place, Sight


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
    lr: float | None = None
    """Learning rate of the checkpoint's last step; None: unknown, or of a control."""


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
    place: Place | None = None
    """Of the span in indexed shards; None: in the text that was given."""
    context_kind: str = "text"
    """Where the context is from: row, document or text."""
    n_context: int = 0
    """Tokens of the context."""


@dataclass(frozen=True)
class Estimate:
    """Difference in differences: change of the span between two checkpoints, less the mean change of the controls."""

    step_before: int
    step_after: int
    span_change: float
    """Nats, of the whole span."""
    control_change: float
    """Mean over controls, which have as many tokens as the span."""
    effect: float
    """span_change - control_change: what having seen the span is estimated to have added."""
    standard_error: float
    low: float
    high: float
    """Of the 95 % interval."""
    p_value: float
    """By permutation: share of the controls (and the span) whose change is at least as large."""
    n_controls: int
    steps: list[int] = field(default_factory=list)
    """Steps after `step_before` up to `step_after` that learned from (part of) the span."""
    p_holm: float | None = None
    """Of the estimates by interval together (Holm); None where it stands alone."""


@dataclass(frozen=True)
class Matching:
    """How the controls were chosen."""

    wanted: int
    found: int
    n_documents: int
    """Held-out documents that the controls stand in."""
    n_candidates: int
    """Places of held-out documents that were looked at."""
    caliper: float
    """Largest difference of unigram log-probability allowed, nats per token."""
    largest_difference: float
    """Of those chosen, nats per token."""
    max_shared: int
    """Most tokens in a row that a control has in common with training documents."""
    seed: int
    same_source: bool
    """All are from the span's own source."""


@dataclass(frozen=True)
class Belief:
    """The span, its controls, and the estimates around each step that saw it."""

    run: str
    span: BeliefCurve
    controls: list[BeliefCurve]
    estimates: list[Estimate]
    """By interval between checkpoints that holds a step that saw the span."""
    all_sights: list[Sight]
    """Of all occurrences of the span in training documents, by step (capped; see n_sights)."""
    n_sights: int
    """Those among the occurrences that were looked at (`n_looked_at` of `count`)."""
    cautions: list[str]
    """What these numbers cannot say, for the reader."""
    count: int = 0
    """Occurrences of the span in training documents."""
    n_looked_at: int = 0
    total: Estimate | None = None
    """From the last checkpoint before the first sight to the last one; None: no sight between two checkpoints."""
    profile: list[Estimate] = field(default_factory=list)
    """From the last checkpoint before the first sight to each one after it."""
    placebo: Estimate | None = None
    """From the first checkpoint to the last one before the first sight, when there was nothing to remember."""
    matching: Matching | None = None
    """None: no controls were asked for."""
