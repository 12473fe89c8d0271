"""`configs/dedupe.yaml`."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from data_tools.work.config import DocumentsConfig


class By(StrEnum):
    """What makes two documents the same."""

    DOCUMENT = "document"
    """Equal text."""
    ID = "id"
    """Equal source and id."""
    URL = "url"
    """Equal URL in the metadata."""
    PARAGRAPH = "paragraph"
    """Nothing: equal paragraphs are found, in whatever documents."""
    MINHASH = "minhash"
    """Much the same shingles: near-duplicates, in clusters."""


@dataclass
class ParagraphConfig:
    """by=paragraph."""

    separator: str = "\n"
    min_words: int = 0
    """Shorter paragraphs are never duplicates."""
    exact: bool = True
    """Sorted hashes, by as many passes as memory asks for; False: a Bloom filter."""
    false_positive_rate: float = 1e-6
    """Of the Bloom filter: of paragraphs that stand once, the share that is taken for duplicates."""
    expected: int | None = None
    """Paragraphs the Bloom filter is made for; None: counted first."""


@dataclass
class MinhashConfig:
    """by=minhash."""

    shingle: int = 5
    """Words (or tokens) of one shingle."""
    bands: int = 14
    rows: int = 8
    """Two documents are compared if all `rows` values of one of `bands` bands are equal."""
    min_similarity: float = 0.0
    """Candidates whose estimated Jaccard similarity is less are no duplicates; 0: every candidate is."""
    seed: int = 1


@dataclass
class DedupeConfig(DocumentsConfig):
    """What is looked for, and under which name it is kept."""

    name: str = MISSING
    """Of the attributes: <dataset>/attributes/<name>/."""
    by: By = By.DOCUMENT
    priority: list[str] = field(default_factory=list)
    """Sources whose documents are kept before those of others, the first most; then the order of files and lines decides."""
    paragraph: ParagraphConfig = field(default_factory=ParagraphConfig)
    minhash: MinhashConfig = field(default_factory=MinhashConfig)
