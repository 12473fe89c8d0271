"""Results of the measures, as plain values with their units; every one is JSON by `to_json`.

What calls what (signatures are fixed here, so that commands and figures can rely on them):

    series.measure_series(where, options) -> SeriesResult                         every checkpoint of a run, cached beside it
    norms.weight_norms(weights, model, previous=None) -> Norms                    one checkpoint; streams the weights
    observe.observe(model, heldout) -> Observation                                one forward pass over held-out tokens
    routing.layer_routing(observation, final=None, options) -> Routing            pure functions of observations
    text_probability.text_probability(model, tokenizer, text, seq_len, context="") -> TextProbability
"""

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class What(StrEnum):
    """What a series measures."""

    HELDOUT = "heldout"
    """Held-out loss by source."""
    ROUTING = "routing"
    """What the routers of a mixture of experts do with held-out tokens."""
    NORMS = "norms"
    """Norms of weights, and of what changed since the checkpoint before."""
    TEXTS = "texts"
    """Probability of given texts."""


# ---- held-out loss -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceLoss:
    """Of the held-out tokens of one source, or of all."""

    loss: float
    """Nats per token."""
    bits_per_byte: float | None
    """None: the shards do not say how many bytes an id stands for."""
    tokens: int
    """Predicted."""


# ---- routing ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Balance:
    """How one layer spreads tokens over its E experts, and how sure its router is."""

    load: list[float]
    """(E,): share of the assignments (token, expert) that each expert gets; sums to 1, 1 / E each if even."""
    max_load: float
    """Of the busiest expert, in units of 1 / E: 1 is even, E / top_k the most there can be."""
    min_load: float
    """Of the idlest expert, in units of 1 / E."""
    n_unused: int
    """Experts that no token chose."""
    load_entropy_frac: float
    """Entropy of `load` over ln E: 1 is even."""
    router_entropy: float
    """Of the router's probabilities over experts, nats, meaned over tokens; ln E is undecided."""
    confidence: float
    """Largest router probability, meaned over tokens."""
    top_k_mass: float
    """Router probability of the chosen experts together, meaned over tokens."""


@dataclass(frozen=True)
class Saturation:
    """Share of the experts chosen at this checkpoint that the final one chooses for the same token. OLMoE, equation 5."""

    top_k: float
    """0..1; random routing gives top_k / E."""
    top_1: float
    """0..1, of the most probable expert alone; random routing gives 1 / E."""


@dataclass(frozen=True)
class Pair:
    """Expert `other` is active in this share of the tokens in which `expert` is."""

    expert: int
    other: int
    share: float


@dataclass(frozen=True)
class CoActivation:
    """P(expert j active | expert i active) in one layer. OLMoE, equation 6."""

    strongest: list[Pair]
    """The pairs with the largest share, largest first."""
    strongest_mean: float
    """Mean share of those pairs."""
    mean: float
    """Over all ordered pairs of experts in use; (top_k - 1) / (E - 1) where all experts are."""
    matrix: list[list[float]] | None
    """(E, E), row i given that i is active; the diagonal is 0, and so is the row of an unused expert. None: not asked for."""


@dataclass(frozen=True)
class Domain:
    """Where one layer sends the tokens of one source. OLMoE, equation 7."""

    share: list[float]
    """(E,): share of the source's tokens for which the expert is among the top_k; uniform is top_k / E; sums to top_k."""
    share_top_1: list[float]
    """(E,): the same of the most probable expert alone; uniform is 1 / E; sums to 1."""
    specialization: float
    """Mean |share - uniform| over experts, in units of uniform (top_k / E): 0 is generic, 2 * (1 - top_k / E) the most."""
    shuffled: float
    """The same where sources are dealt to tokens by chance: what so many tokens show of a layer that does not know sources."""


@dataclass(frozen=True)
class TokenShare:
    """One id of the vocabulary and the expert that sees most of it."""

    id: int
    count: int
    """Occurrences."""
    share: float
    """0..1: of them routed to this expert."""


@dataclass(frozen=True)
class RoleVocabulary:
    """How far the routing of a layer follows one kind of id. OLMoE, equation 8."""

    mean: float | None
    """Share of an id's occurrences routed to its most frequent expert, meaned over ids. None: no id is frequent enough."""
    shuffled: float | None
    """The same after the routing is dealt out to tokens by chance: few occurrences alone give this much."""
    n_ids: int
    """Ids seen at least `min_count` times."""
    by_expert: list[float | None]
    """(E,): the mean over the ids whose most frequent expert this is; None: there is none."""
    tokens: list[list[TokenShare]]
    """(E, up to `n_tokens`): those ids, largest share first."""


@dataclass(frozen=True)
class Vocabulary:
    """Vocabulary specialisation of one layer."""

    k: int
    """Experts of each token considered, the most probable first."""
    min_count: int
    """Occurrences from which an id counts."""
    input: RoleVocabulary
    """By the id at the position."""
    predicted: RoleVocabulary
    """By the id the model holds most probable next."""
    target: RoleVocabulary
    """By the id that does come next."""


@dataclass(frozen=True)
class LayerRouting:
    """Of one MoE layer."""

    layer: int
    """Number of the block, from 0."""
    balance: Balance
    saturation: Saturation | None
    """None: there is no final checkpoint to compare with."""
    co_activation: CoActivation
    domains: dict[str, Domain]
    """By source."""
    vocabulary: Vocabulary
    """k=1."""
    vocabulary_top_k: Vocabulary
    """k=top_k."""


@dataclass(frozen=True)
class Routing:
    """What the routers of one checkpoint do with held-out tokens."""

    n_experts: int
    top_k: int
    n_tokens: int
    """Routed."""
    layers: list[LayerRouting]


# ---- weights ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """Of some weights together."""

    n: int
    """Elements."""
    norm: float
    """Square root of the sum of squares."""
    rms: float
    """Square root of the mean square."""
    update_norm: float | None
    """The norm of the difference to the checkpoint before; None: there is none."""
    update_frac: float | None
    """update_norm over the norm before; None also if that is 0."""
    cosine: float | None
    """Between before and now; None also if either is 0."""


@dataclass(frozen=True)
class Norms:
    """Of one checkpoint."""

    all: Norm
    by_kind: dict[str, Norm]
    """embedding, attention.q, attention.k, attention.v, attention.out, experts.gate, experts.up, experts.out, router, ..."""
    by_layer: dict[int, Norm]
    """By block, from 0; embedding, final norm and lm_head are in none."""
    by_kind_and_layer: dict[str, dict[int, Norm]]


# ---- texts -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextProbability:
    """What a model believed of a text that follows an end of text (and a context)."""

    text: str
    context: str
    """Given before the text; not counted."""
    ids: list[int]
    tokens: list[str]
    """The text of each id, alone."""
    log_probs: list[float]
    """Nats, of each id given all before it; <= 0."""
    ranks: list[int]
    """Of each id among all ids by probability; 1 is the most probable, and of equals all have the best rank."""
    log_prob: float
    """Nats: the sum."""
    loss: float
    """-log_prob / ids: nats per token."""
    bits_per_byte: float
    """-log_prob / ln 2 / UTF-8 bytes of the text."""
    n_bytes: int


# ---- together --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointMeasures:
    """Everything measured of one checkpoint; None: not asked for, or (routing) a dense model."""

    where: str
    step: int | None
    tokens: int | None
    """Seen in training."""
    train_loss: float | None
    """Of this step, nats per token."""
    digest: str
    """SHA-256 that identifies the weights."""
    heldout: dict[str, SourceLoss] | None
    """By source, and `all`."""
    routing: Routing | None
    norms: Norms | None
    texts: list[TextProbability] | None
    """In the order they were given."""


@dataclass(frozen=True)
class SeriesResult:
    """Measures over the checkpoints of a run, oldest first."""

    where: str
    final: str | None
    """The checkpoint that saturation compares with; None: no routing was measured."""
    settings: dict[str, Any]
    """What the numbers depend on: tokens per source, sources, seq_len, device, number format, min_count, ..."""
    checkpoints: list[CheckpointMeasures] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Nested dicts, lists, strings and numbers; keys of dicts are strings."""
        return to_json(self)


def to_json(result: Any) -> Any:
    """A result (a dataclass) as nested dicts with string keys, lists, strings and numbers; what is not finite becomes null."""
    return _plain(asdict(result))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
