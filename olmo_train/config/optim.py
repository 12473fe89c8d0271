"""AdamW, its schedule, and what happens to bad steps: `OptimConfig`."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from olmo_train.config.dtypes import FloatType, MomentType


class ParamKind(StrEnum):
    """What a parameter is, as far as weight decay and initialisation care."""

    EMBEDDING = "embedding"
    """Token embedding, and the output projection where it is tied."""
    LM_HEAD = "lm_head"
    NORM = "norm"
    ROUTER = "router"
    MATRIX = "matrix"
    """Every other weight."""


class ScheduleKind(StrEnum):
    """Shape of the learning rate over the run."""

    COSINE = "cosine"
    """Warm-up, then half a cosine to `final_frac` at `decay_tokens`, constant after."""
    LINEAR = "linear"
    """Warm-up, then a line to `final_frac` at `decay_tokens`, constant after. With `final_frac=0` and `optim.lr=null` after
    loading a checkpoint: an anneal to zero."""
    WSD = "wsd"
    """Warm-up, constant, then a line to `final_frac` over the last `decay_tokens` of the run."""
    CONSTANT = "constant"
    """Warm-up, then constant."""


class OnNonFinite(StrEnum):
    """What happens to a step whose loss or gradient is not finite."""

    SKIP = "skip"
    """Leave weights and moments untouched, count the step, go on; see `max_skips_in_a_row`."""
    STOP = "stop"
    """End the run with an error that names the step."""


@dataclass
class ScheduleConfig:
    """Learning rate as a function of tokens seen, the current batch included. Multiplies `optim.lr`."""

    kind: ScheduleKind = MISSING
    warmup_tokens: int = 0
    warmup_start_frac: float = 0.0
    """Fraction of the peak at which warm-up begins (OLMoE: 0.1)."""
    decay_tokens: int | None = None
    """COSINE, LINEAR: tokens from the start of the run at which the floor is reached; None: max_tokens.
    WSD: length of the final decay."""
    final_frac: float = 0.0
    """Fraction of the peak at the end."""


@dataclass
class SkipConfig:
    """Skip a step whose loss or gradient norm lies far above its recent mean (OLMo-core's SkipStep)."""

    sigma: float = 6.0
    """Standard deviations above the mean of the window."""
    window: int = 128
    """Steps the mean and deviation are taken over; non-finite ones never enter it."""
    min_history: int = 64
    """Steps that must be in the window before anything is skipped."""


@dataclass
class MuonConfig:
    """Muon (Jordan 2024; arXiv 2502.16982) for the matrices of the blocks; embedding, output, norms, router: AdamW."""

    lr: float | None = None
    """Peak learning rate of the matrices, on the same schedule; None: optim.lr (updates have the RMS of AdamW's)."""
    momentum: float = 0.95
    nesterov: bool = True
    n_iterations: int = 5
    """Of the orthogonalisation (Polar Express, arXiv 2505.16932)."""


@dataclass
class OptimConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): decoupled weight decay; its number formats: docs/optim.md."""

    lr: float | None = MISSING
    """Peak learning rate; None: the rate at which the loaded checkpoint stopped."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    no_decay: list[ParamKind] = field(default_factory=list)
    """Kinds of parameters without weight decay. OLMoE decays everything."""
    max_grad_norm: float | None = 1.0
    """L2 norm over all parameters above which gradients are scaled down; None: no clipping."""
    weight_dtype: FloatType = FloatType.FLOAT32
    """Of the weights that are updated and saved. bfloat16: no fp32 master copy; updates are rounded stochastically."""
    moment_dtype: MomentType = MomentType.FLOAT32
    """Of the moments (of the momentum, with Muon)."""
    grad_dtype: FloatType = FloatType.FLOAT32
    """In which gradients are added up over micro-steps (a single one adds nothing up and has the weights' format). bfloat16 only
    with weight_dtype=bfloat16: it saves 2 bytes per parameter, and small addends are lost once there are many micro-steps."""
    muon: MuonConfig | None = None
    """None: AdamW for every parameter."""
    schedule: ScheduleConfig = MISSING
    skip: SkipConfig | None = None
    on_nonfinite: OnNonFinite = OnNonFinite.SKIP
    max_skips_in_a_row: int = 16
    """Consecutive skipped steps, for whatever reason, after which the run ends with an error."""

    def decay_of(self, kind: ParamKind) -> float:
        """Weight decay of a kind of parameters."""
        return 0.0 if kind in self.no_decay else self.weight_decay
