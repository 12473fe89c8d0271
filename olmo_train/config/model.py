"""Architecture of a transformer: `ModelConfig`. What a value means is said below its field."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING


class Norm(StrEnum):
    """The kind of normalisation."""

    RMS = "rms"
    """RMSNorm with a learned weight (OLMoE, OLMo-2, OLMo-3)."""
    LAYER_NORM_PLAIN = "layer_norm_plain"
    """LayerNorm without weight or bias (OLMo-1)."""


class NormOrder(StrEnum):
    """Where the norm of a sublayer stands."""

    PRE = "pre"
    """x + f(norm(x)): OLMo-1, OLMoE."""
    POST = "post"
    """x + norm(f(x)): OLMo-2, OLMo-3."""


class QKNorm(StrEnum):
    """Normalisation of queries and keys."""

    NONE = "none"
    FULL = "full"
    """One norm over all heads together (OLMoE, OLMo-2, OLMo-3)."""
    HEAD = "head"
    """One norm per head, weights shared by the heads."""


class Init(StrEnum):
    """How weights are drawn."""

    TRUNCATED_NORMAL = "truncated_normal"
    """std `init_std`, cut at `init_cutoff_factor` standard deviations; every weight alike (OLMoE, OLMo-2, OLMo-3)."""
    MITCHELL = "mitchell"
    """std 1/sqrt(d_model), output projections 1/sqrt(2 * d_in * (layer + 1)), cut at 3 std (OLMo-1)."""


class Gate(StrEnum):
    """How router logits become gates."""

    SOFTMAX = "softmax"
    """Softmax over all experts, then top k (OLMoE)."""
    SIGMOID = "sigmoid"
    """Independent sigmoids, then top k (DeepSeek-V3)."""


class BalanceScope(StrEnum):
    """Over which tokens expert loads are counted for the load-balancing loss."""

    LOCAL = "local"
    """Expert loads counted over one micro-batch of one rank (OLMoE as trained)."""
    RUNNING = "running"
    """Counted over all ranks and the micro-steps of this step so far (Megatron-LM's global loss). Depends on the layout when
    gradients are accumulated."""
    GLOBAL = "global"
    """Counted over the whole global batch, exactly. With gradient accumulation this costs one extra forward pass per micro-step,
    because the loads of the last micro-batch weigh in the gradient of the first."""


@dataclass
class MoEConfig:
    """The mixture-of-experts layers of a model."""

    n_experts: int = MISSING
    top_k: int = MISSING
    d_expert: int = MISSING
    """Hidden width of one expert's SwiGLU."""
    n_shared_experts: int = 0
    """Experts of width d_expert that every token passes through, added to the routed sum."""
    n_dense_layers: int = 0
    """The first layers that stay dense, with `model.d_ff`."""
    gate: Gate = Gate.SOFTMAX
    normalize_top_k: bool = False
    """Divide the k gate values by their sum. OLMoE does not."""
    gate_scale: float = 1.0
    """Factor on the routed sum (DeepSeek's routed_scaling_factor)."""
    load_balancing_loss_weight: float = MISSING
    """Weight of E * sum_e load_e * mean_prob_e, meaned over MoE layers; the loss is 1 at perfect balance."""
    load_balancing_scope: BalanceScope = BalanceScope.GLOBAL
    router_z_loss_weight: float = MISSING
    """Weight of logsumexp(router logits)^2, meaned over tokens and MoE layers."""
    bias_update_rate: float = 0.0
    """Aux-loss-free balancing (arXiv 2408.15664): step of the sign update of the selection bias, once per optimizer step on
    global loads. 0 turns it off."""


@dataclass
class YarnConfig:
    """Context extension by YaRN (arXiv 2309.00071) on the full-attention layers, as OLMo-3 does after stage 3."""

    factor: float = MISSING
    """Extended length over original length."""
    original_seq_len: int = MISSING
    """Tokens the model was first trained on."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """Factor on cos and sin; None: 0.1 * ln(factor) + 1."""


@dataclass
class ModelConfig:
    """A decoder-only transformer with rotary positions and SwiGLU."""

    d_model: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    n_kv_heads: int | None = None
    """None: n_heads (multi-head attention); fewer is grouped-query attention."""
    d_head: int | None = None
    """None: d_model / n_heads."""
    d_ff: int | None = None
    """Hidden width of the dense SwiGLU; None only where every layer is MoE."""
    vocab_size: int = MISSING
    """Ids the tokenizer can produce."""
    padded_vocab_size: int | None = None
    """Rows of the embedding and of the output projection; None: vocab_size."""
    tie_embeddings: bool = False
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    norm_order: NormOrder = NormOrder.PRE
    qk_norm: QKNorm = QKNorm.NONE
    clip_qkv: float | None = None
    """Clamp q, k and v to +-this value; None: no clamp."""
    rope_theta: float = 10_000.0
    rope_yarn: YarnConfig | None = None
    sliding_window: int | None = None
    """Tokens (itself included) a position attends to on windowed layers; None: every layer attends to all before it."""
    full_attention_every: int = 4
    """With a sliding window: layers 4, 8, ... (1-based multiples of this) attend to everything."""
    init: Init = Init.TRUNCATED_NORMAL
    init_std: float = 0.02
    init_cutoff_factor: float = 3.0
    z_loss_weight: float = 0.0
    """Weight of logsumexp(logits)^2 on the output softmax (OLMo-2: 1e-5; OLMoE: none)."""
    moe: MoEConfig | None = None
    """None: a dense model."""
