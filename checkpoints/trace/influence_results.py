"""What `olmo trace influence` is asked and what it says, as dataclasses; `asdict` of an Influence is its JSON."""

from dataclasses import dataclass, field

LIMITS = [
    (
        "First order: a straight line through the weights of one checkpoint. It says which way a document pulled, not what the "
        "model would believe without it: `olmo trace replay` trains again without the document and measures that."
    ),
    (
        "Only documents in which the span stands verbatim were compared. What taught the model the same in other words, and what "
        "it learned from everything else, is not here."
    ),
    (
        "A document was never alone in its step: momentum, weight decay, the other documents of the batch and the routers' own "
        "losses moved the weights too. Only the document's share of the cross entropy is compared."
    ),
    (
        "Gradients fade as a text is learned: late in training all of them can be near zero, and cosines of small vectors are "
        "noise. Read a cosine beside those of held-out text in the same rows."
    ),
    "Which experts read a token is taken as given: the choice of experts has no gradient.",
    "Computed in float32; training may have rounded to bfloat16.",
]
"""True of every answer."""


@dataclass
class InfluenceOptions:
    """What is compared, and where."""

    parameters: list[str] = field(default_factory=lambda: ["all"])
    """Kinds: all, blocks, attention, feed_forward, experts, router, embedding."""
    layers: list[int] | None = None
    """Only parameters of these layers; None: of all, and those of no layer too."""
    steps: list[int] | None = None
    """Checkpoints; None: of a run the newest before each step that saw the document, of one checkpoint that one."""
    precondition: str = "auto"
    """adam: by the root of AdamW's second moments, the direction that AdamW moves in; none; auto: adam where the newest
    checkpoint has them of the chosen parameters, else none (an Influence says which it was, and why)."""
    rank: str = "influence"
    """influence or cosine: which the documents are ordered by."""
    null: int = 32
    """Windows of held-out text for comparison; 0: none."""
    seed: int = 0
    """Of the choice of held-out text."""
    max_documents: int = 100
    """The first by BM25."""
    max_checkpoints: int = 16
    """More are refused: each is loaded, and every window read at each."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass(frozen=True)
class GroupPart:
    """The matrices of one kind in one layer, all experts together."""

    layer: int | None
    kind: str
    influence: float
    cosine: float | None
    """Within the group; None: one of the gradients is zero there."""


@dataclass(frozen=True)
class ExpertParts:
    """The routed experts of one layer: each one's gate, up and out together."""

    layer: int
    influence_E: list[float]
    """Exactly 0 for experts that not both visit."""
    cosine_E: list[float | None]


@dataclass(frozen=True)
class Strongest:
    """A group (its experts apart) with a large part in a document's influence."""

    part: str
    """`layer 3 attention.v`, `layer 1 expert 12`."""
    influence: float


@dataclass(frozen=True)
class Measured:
    """One document at one checkpoint."""

    checkpoint: int | None
    """Step; None: unknown."""
    step: int | None
    """That saw the document; None: measured as if the next step did."""
    row: int | None
    n_targets: int
    """Tokens of the document that the row predicts."""
    weight: float
    """What the inner product is multiplied by: learning rate of the step, times clipping, by tokens predicted in its batch."""
    dot: float
    """Inner product of the two gradients: of the summed log-loss of the span, and of the document in its row."""
    cosine: float | None
    groups: list[GroupPart]
    experts: list[ExpertParts]


@dataclass(frozen=True)
class DocumentInfluence:
    """One document of the shortlist."""

    number: int
    """In the answer."""
    id: str
    source: str
    n_tokens: int
    bm25_rank: int
    """1-based, among the span's documents."""
    influence: float
    """Sum over visits of weight times inner product: by how many nats the visits are estimated to have raised the
    log-probability of the span (see Influence.unit). 0 where training never learned from it."""
    cosine: float | None
    """Mean over visits."""
    percentile: float | None
    """Share of the held-out windows with a smaller cosine, at the same checkpoints, 0 to 100; None: no null."""
    z: float | None
    """(cosine - mean) / standard deviation of theirs."""
    steps: list[int]
    """That learned from the rows of the span."""
    strongest: list[Strongest]
    measured: list[Measured]


@dataclass(frozen=True)
class NullNoise:
    """The held-out windows at one checkpoint."""

    checkpoint: int | None
    n: int
    dot_mean: float
    dot_std: float
    cosine_mean: float | None
    cosine_std: float | None


@dataclass(frozen=True)
class Influence:
    """The shortlist of one span, ranked anew."""

    where: str
    span: str
    n_span_tokens: int
    unit: str
    """nats, or `nats per unit of step size` where the learning rate is not known."""
    options: InfluenceOptions
    n_parameters: int
    """Elements of the parameters compared."""
    checkpoints: list[int | None]
    documents: list[DocumentInfluence]
    """The most influential first; those that training never learned from last."""
    null: list[NullNoise]
    cautions: list[str]
    """Of this answer first, then LIMITS."""
