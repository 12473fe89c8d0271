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


class Normalize(StrEnum):
    """What of a text does not count when it is compared."""

    NONE = "none"
    """Everything counts."""
    WHITESPACE = "whitespace"
    """Runs of white space are one space, and none stands at either end."""
    CASE = "case"
    """Nor do upper and lower case (Unicode's case folding)."""


@dataclass
class ParagraphConfig:
    """by=paragraph."""

    separator: str = "\n"
    min_words: int = 0
    """Shorter paragraphs are never duplicates; nor are those without any word, whatever this is."""
    exact: bool = True
    """Sorted hashes of this corpus only; False: also looked up in the Bloom filters `seen`, and written to one of their kind."""
    false_positive_rate: float = 1e-6
    """Of the Bloom filter that is written: of paragraphs that it does not hold, the share that is taken for held."""
    expected: int | None = None
    """Paragraphs (of different text) the Bloom filter is made for; None: as many as there are, counted first."""
    seen: list[str] = field(default_factory=list)
    """Bloom filters of earlier runs (<stage>/filter): what they hold is a duplicate. They are never written to."""


@dataclass
class MinhashConfig:
    """by=minhash."""

    shingle: int = 5
    """Words (or tokens) of one shingle. A document that has no more than these is compared as a whole."""
    tokenizer: str | None = None
    """Shingles are of its tokens; None: of words."""
    bands: int = 20
    rows: int = 8
    """Two documents are compared if all `rows` values of one of `bands` bands are equal."""
    min_similarity: float = 0.75
    """Candidates whose estimated Jaccard similarity is less are no duplicates; 0: every candidate is."""
    seed: int = 1


@dataclass
class DedupeConfig(DocumentsConfig):
    """What is looked for, and under which name it is kept."""

    name: str = MISSING
    """Of the attributes: <dataset>/attributes/<name>/."""
    by: By = By.DOCUMENT
    normalize: Normalize = Normalize.NONE
    """by=document."""
    priority: list[str] = field(default_factory=list)
    """Sources whose documents are kept before those of others, the first most; then the order of files and lines decides."""
    paragraph: ParagraphConfig = field(default_factory=ParagraphConfig)
    minhash: MinhashConfig = field(default_factory=MinhashConfig)
