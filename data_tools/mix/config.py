"""`configs/mix.yaml`."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from data_tools.files import Compression
from data_tools.work.config import StageConfig, stage_problems

NAME = re.compile(r"\w[\w.-]*")
"""Of a source: it names a folder."""


class WhenSmall(StrEnum):
    """What happens to a source that has less than its weight asks for."""

    ERROR = "error"
    UPSAMPLE = "upsample"
    """Its documents are taken again, `max_repeat` times at most."""


@dataclass
class RedactConfig:
    """Spans of a text that are replaced."""

    spans: str = ""
    """Attribute that has them; empty: this rule is off."""
    replacement: str = ""
    """What stands in their place."""
    min_score: float = 0.5
    """Spans of less stay."""
    max_score: float | None = None
    """Spans of more stay; None: no such limit."""


@dataclass
class FilterConfig:
    """Rules by name. A later rule of the same name takes the place of an earlier one; an empty expression turns it off."""

    drop: dict[str, str] = field(default_factory=dict)
    """A document for which one holds does not go on."""
    keep: dict[str, str] = field(default_factory=dict)
    """Nor does one for which one of these does not hold. Asked after `drop`."""
    redact: dict[str, RedactConfig] = field(default_factory=dict)


@dataclass
class SourceConfig(FilterConfig):
    """One source of the mixture. Its name is that of its folder in the output."""

    documents: list[str] = field(default_factory=list)
    """Dolma documents: folders of datasets (with `documents/` in them), other folders, files, globs."""
    attributes: list[str] = field(default_factory=list)
    """Folders below `attributes/` of the same datasets."""
    filters: list[str] = field(default_factory=list)
    """Presets of `configs/filter/`, for this source alone; its own rules come after them."""
    rename: str | None = None
    """The documents' new `source`; None: as they are."""
    min_text_length: int = 0
    """Characters, after redaction; shorter documents do not go on."""
    repeat: float = 1.0
    """Copies of each document: 0.3: a seeded share of 30 %; 2.5: all twice, and a seeded half a third time."""
    weight: float | None = None
    """Share of the mixture's `total_*`, relative to the other sources' weights."""
    max_documents: int | None = None
    """A seeded sample of this many at most."""
    max_mb: float | None = None
    """Of 10^6 bytes of UTF-8 text, redacted."""
    max_tokens: int | None = None
    tokens: str | None = None
    """Attribute whose score is a document's number of tokens; None: `tokenizer` counts, or nobody."""


@dataclass
class MixConfig(StageConfig):
    """What goes into a mixture, and what becomes of it."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Rules for every source, before its own: `filter=dolma17_web` takes those of `configs/filter/`."""
    output: str = MISSING
    """Folder of the new dataset."""
    total_documents: int | None = None
    """Of the whole mixture, shared out by the sources' weights; one of the three `total_*` at most."""
    total_mb: float | None = None
    total_tokens: int | None = None
    when_small: WhenSmall = WhenSmall.ERROR
    max_repeat: float = 4.0
    """Of a source that is upsampled to its share."""
    tokenizer: str | None = None
    """Counts tokens as the shards will have them, with one end-of-text for each document."""
    compression: Compression = Compression.GZ
    max_file_mb: int = 1000
    """Of JSON, before it is compressed."""
    seed: int = 0
    """Of every choice of documents."""


UNITS = ("documents", "mb", "tokens")


def total_of(config: MixConfig) -> tuple[str, float] | None:
    """Unit and size of the whole mixture, if it has one."""
    for unit in UNITS:
        if (size := getattr(config, f"total_{unit}")) is not None:
            return unit, size
    return None


def mix_problems(config: MixConfig) -> list[str]:
    """What is wrong with these fields, but for expressions and files."""
    problems = stage_problems(config)
    if not config.sources:
        problems.append("sources is empty; give sources.<name>.documents=[...]")
    if config.max_file_mb < 1:
        problems.append(f"max_file_mb={config.max_file_mb} must be positive")
    if config.max_repeat < 1:
        problems.append(f"max_repeat={config.max_repeat} must be at least 1")
    totals = [f"total_{unit}" for unit in UNITS if getattr(config, f"total_{unit}") is not None]
    if len(totals) > 1:
        problems.append(f"{' and '.join(totals)} are given; a mixture has one total")
    problems += [f"{name}={getattr(config, name)} must be positive" for name in totals if getattr(config, name) <= 0]
    for name, source in config.sources.items():
        if not NAME.fullmatch(name):
            problems.append(f"sources: {name!r} cannot name a folder; take letters, digits, . _ and -, a letter or digit first")
        problems += _source_problems(config, f"sources.{name}", source)
    return problems


def _source_problems(config: MixConfig, here: str, source: SourceConfig) -> list[str]:
    problems = []
    if not source.documents:
        problems.append(f"{here}.documents is empty; give files, folders or globs of Dolma documents")
    if source.min_text_length < 0:
        problems.append(f"{here}.min_text_length={source.min_text_length} must not be negative")
    if not 0 < source.repeat <= 1000:
        problems.append(f"{here}.repeat={source.repeat} is not in (0, 1000]; leave a source out instead of repeating it 0 times")
    for unit in UNITS:
        size = getattr(source, f"max_{unit}")
        if size is not None and size <= 0:
            problems.append(f"{here}.max_{unit}={size} must be positive; null sets no limit")
    asked = [f"{here}.max_tokens"] if source.max_tokens is not None else []
    asked += ["total_tokens"] if config.total_tokens is not None else []
    if asked and source.tokens is None and config.tokenizer is None:
        problems.append(f"{asked[0]} needs {here}.tokens, an attribute that has their number, or tokenizer, which counts them")
    problems += _weight_problems(config, here, source)
    for name, rule in source.redact.items():
        if rule.max_score is not None and rule.max_score < rule.min_score:
            problems.append(f"{here}.redact.{name}: max_score={rule.max_score} is less than min_score={rule.min_score}")
    return problems


def _weight_problems(config: MixConfig, here: str, source: SourceConfig) -> list[str]:
    total = total_of(config)
    if source.weight is None:
        return [f"{here}.weight is missing; total_{total[0]} is shared out by the sources' weights"] if total else []
    if source.weight <= 0:
        return [f"{here}.weight={source.weight} must be positive; leave the source out"]
    if total is None:
        return [f"{here}.weight={source.weight} needs a total: give total_tokens, total_mb or total_documents"]
    if source.repeat != 1.0:
        return [f"{here}: repeat={source.repeat} and weight={source.weight} both say how often a document is taken; give one"]
    return []
