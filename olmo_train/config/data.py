"""What is trained on, in which order, in which batches: `DataConfig`."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


class VerifyLevel(StrEnum):
    """How much of the shards is checked before training."""

    SIZE = "size"
    """File sizes against the manifest."""
    SPOT = "spot"
    """Sizes, and the checksums of a few blocks spread over the files."""
    FULL = "full"
    """Every byte against the manifest."""


@dataclass
class SourceConfig:
    """One source of documents: a folder with a manifest, or published shards as they are."""

    path: str | None = None
    """Folder that holds `manifest.json` (or that file)."""
    select: str | None = None
    """Use only this source of the manifest; None: all of them."""
    files: list[str] | None = None
    """Instead of `path`: globs of published shards (Dolma, OLMo, OLMo-core), read unchanged; each needs its `.csv.gz` beside it.
    A manifest for them is kept in the run folder. For large corpora write one once with `olmo data manifest`."""
    dtype: str | None = None
    """Of `files`: uint8, uint16, uint32 or uint64; the files themselves do not say."""
    weight: float | None = None
    """Share of the batch (any positive scale); None for every source: each document once per epoch."""


@dataclass
class RepetitionMaskConfig:
    """Leave an instance out of the loss if some n-gram stands in it many times in a row (OLMoE's instance filter)."""

    min_period: int = 1
    max_period: int = 13
    """Tokens in the repeated n-gram."""
    max_count: int = 32
    """Repeats from which the instance is masked."""


@dataclass
class WithoutConfig:
    """Train as if some documents were not there: the places of their tokens hold end-of-text, and nothing predicts them."""

    documents: list[str] = field(default_factory=list)
    """Ids; every document with one of them is left out, in every source."""
    after_step: int = 0
    """Steps up to this one saw them, later ones do not; 0: no step does. `olmo trace replay` sets it to where it begins."""


@dataclass
class DataConfig:
    """Sources, mixture and batch geometry. Batch sizes are tokens."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    seq_len: int = MISSING
    """Tokens per instance; the last position has no target."""
    global_batch_size: int = MISSING
    """Tokens per optimizer step over all ranks; decides the order, with `seq_len` and the seed."""
    micro_batch_size: int = MISSING
    """Tokens per forward pass on one rank; changes memory and speed, never the batch."""
    document_masking: bool = False
    """Attention never crosses a document boundary."""
    repetition_mask: RepetitionMaskConfig | None = None
    without: WithoutConfig | None = None
    """Documents left out; everything else stays in its place, in its order and with its weight in the loss."""
    verify: VerifyLevel = VerifyLevel.SPOT
    """What is checked of the shards before training starts."""
    prefetch: int = 2
    """Steps read ahead in a background thread."""
