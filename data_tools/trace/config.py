"""What `olmo trace` is told: `configs/trace_index.yaml` and `configs/trace.yaml`."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


@dataclass
class IndexConfig:
    """`configs/trace_index.yaml`: how an index is built."""

    shards: str = MISSING
    """Folder of a manifest."""
    output: str | None = None
    """Folder of the index; None: `trace` in the folder of the manifest."""
    documents: list[str] = field(default_factory=list)
    """The Dolma documents that the shards were made from (files, folders, globs): their URL, dates and metadata are kept beside
    the index. Empty: answers have what the sidecars know (id, source, file and line)."""
    max_tokens_per_part: int = 2**26
    """Tokens under one suffix array; fewer where `memory_gib` asks for it. Fewer parts are searched faster."""
    memory_gib: float = 4.0
    """Of all processes of this task together: each takes 0.22 GiB and at most 16 bytes per token of its part."""
    processes: int | None = None
    """Parts that are built at once, with equal shares of the memory; None: one per core, while all of them fit into it."""
    task: int | None = None
    """Of a job array: this task's number, from 0; None: all parts here. Slurm: task=$SLURM_ARRAY_TASK_ID."""
    n_tasks: int = 1
    """Of a job array."""


class Rank(StrEnum):
    """Which spans come first."""

    UNIGRAM = "unigram"
    """The most improbable: least sum of unigram log-probabilities (OLMoTrace)."""
    LENGTH = "length"
    """The longest, in tokens."""
    COUNT = "count"
    """Those that stand least often in the data."""


@dataclass
class SpansConfig:
    """Which spans of a text are told."""

    words: bool = True
    """Spans begin and end where words do; False: any tokens."""
    min_tokens: int = 4
    rank: Rank = Rank.UNIGRAM
    max_spans: int | None = 10
    """The first in `rank`; None: all."""
    max_count: int | None = None
    """Leave out spans that stand more often; None: none is too frequent."""
    delimiters: list[str] = field(default_factory=list)
    """No span goes on after one of these texts (OLMoTrace: newline and full stop)."""


@dataclass
class DocumentsConfig:
    """Which documents of a span are told."""

    per_span: int = 10
    """Different texts; which of many is drawn by `seed`."""
    context: int = 250
    """Tokens shown before and after the span."""
    max_documents: int | None = 30
    """The first by BM25 against prompt and answer; None: all."""
    seed: int = 42


@dataclass
class PrivacyConfig:
    """What is not shown."""

    blocked: list[str] = field(default_factory=list)
    """Files with the id of a document per line (# begins a comment): these documents do not exist for any answer."""
    redact: list[str] = field(default_factory=lambda: ["email", "phone", "ip"])
    """Kinds of personal data that are replaced in what is shown."""
    patterns: dict[str, str] = field(default_factory=dict)
    """More of them: name to regular expression."""


@dataclass
class TraceConfig:
    """`configs/trace.yaml`: how questions are answered."""

    indexes: list[str] = field(default_factory=list)
    """Folders of indexes; empty: those of the sources of the run."""
    spans: SpansConfig = MISSING
    documents: DocumentsConfig = MISSING
    privacy: PrivacyConfig = MISSING
    verify: str = "spot"
    """Of index and shards when they are opened: size, spot (a few blocks) or full."""
    releases: str | None = None
    """Folder of releases of the run (docs/release.md): the first published checkpoint after each step is named; None: only the
    step folders of the run are."""
    cold: bool = False
    """Ask the system for all pages of a round of reads at once: for indexes larger than memory, on disks."""
