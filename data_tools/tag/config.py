"""`configs/tag.yaml`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from data_tools.tag.model_config import ModelTaggersConfig
from data_tools.work.config import DocumentsConfig


@dataclass
class C4Config:
    """`c4`."""

    naughty_words: str | None = None
    """A file of words and phrases, one a line; None: has_naughty_word is not given."""


@dataclass
class RepetitionConfig:
    """`repetition`."""

    max_period: int = 13
    """Tokens of the longest n-gram."""
    span_repeats: int = 32
    """Stretches of at least so many repeats become spans; Dolma's from 3."""


@dataclass
class CodeWordsConfig:
    """`code_words`."""

    stars: str = "max_stars_count"
    """Field of the metadata that holds a repository's stars."""


@dataclass
class TagConfig(DocumentsConfig):
    """Which taggers, under which name."""

    name: str = MISSING
    """Of the attributes: <dataset>/attributes/<name>/, and the first part of each attribute's name."""
    taggers: list[str] = field(default_factory=list)
    """gopher, c4, fineweb, length, code_words, repetition; and those that use patterns, lists and models (docs/tag_models.md)."""
    tokenizer: str | None = None
    """A tokenizer file: what repetition needs, and what adds tokens to length."""
    c4: C4Config = field(default_factory=C4Config)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    code_words: CodeWordsConfig = field(default_factory=CodeWordsConfig)
    models: ModelTaggersConfig = field(default_factory=ModelTaggersConfig)
