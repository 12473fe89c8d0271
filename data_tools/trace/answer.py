"""What a trace says, as dataclasses; `asdict` of an Answer is the JSON of `olmo trace text --json` and of the explorer."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Mark(StrEnum):
    """What training did with tokens that the order gives to a step."""

    LEARNED = "learned"
    """The step updated the weights with a loss on them."""
    MASKED = "masked"
    """The row was left out of the loss (repetition)."""
    SKIPPED = "skipped"
    """The guard threw the step away."""
    LEFT_OUT = "left out"
    """The run was told to leave the document out (`data.without`): other tokens stood in its place."""
    FUTURE = "future"
    """The run has not come to this step yet."""


@dataclass(frozen=True)
class Sight:
    """One row of one step that saw (part of) a span."""

    step: int
    """Of the optimizer; the first is 1."""
    row: int
    """Of the global batch."""
    epoch: int
    """0 for the first pass over the source."""
    column_start: int
    column_end: int
    """Columns of the row that hold the part."""
    token_start: int
    token_end: int
    """The part, in tokens from the beginning of the span."""
    predicted_start: int
    """First token of the part that the row predicts: the first column of a row has nothing before it."""
    mark: Mark
    checkpoint_before: int | None
    """Newest saved step before this one."""
    checkpoint_after: int | None
    """First saved step that includes this one."""
    release_after: str | None = None
    """First published revision that includes this step, where releases are known."""


@dataclass(frozen=True)
class Place:
    """One occurrence of a span."""

    corpus: int
    """Number of the index among those opened."""
    file: int
    """Number of the token file in its manifest."""
    offset: int
    """Token offset in that file."""


@dataclass(frozen=True)
class Sighted:
    """When a place was seen."""

    place: Place
    in_run: bool
    """Whether the run trains on this token file at all."""
    is_heldout: bool
    sights: list[Sight]
    """By step and row; empty: never (the dropped tail of a file, or after the run's end)."""
    releases: dict[int, str] = field(default_factory=dict)
    """Of the steps named in the sights: published revisions."""


@dataclass(frozen=True)
class Snippet:
    """A span in a document."""

    span: int
    """Number of the span in the answer."""
    document_offset: int
    """Token offset of the span in the document."""
    before: str
    match: str
    after: str
    is_cut_before: bool
    is_cut_after: bool
    """Whether the document goes on beyond what is shown."""
    sighted: Sighted | None
    """None: no run was given."""
    copies_sighted: list[Sighted] = field(default_factory=list)
    """The same span in the copies of the document, in their order."""


@dataclass(frozen=True)
class FoundDocument:
    """A document that holds a span; documents of equal tokens are one."""

    number: int
    id: str
    source: str
    src: str
    """File of documents it was read from, as the sidecar names it."""
    line: int
    """1-based, in `src`."""
    url: str | None
    metadata: dict[str, Any]
    """As the documents had it; empty where the index was built without documents."""
    n_tokens: int
    score: float
    """BM25 against prompt and answer; compares documents of one answer."""
    copies: list[str]
    """Ids of documents with the same tokens, among those retrieved."""
    snippets: list[Snippet]


@dataclass(frozen=True)
class FoundSpan:
    """A maximal span of the text that stands in training documents."""

    number: int
    start: int
    end: int
    """Tokens of the text."""
    char_start: int
    char_end: int
    """Characters of the text."""
    text: str
    count: int
    """Occurrences in training documents; blocked ones do not count."""
    heldout_count: int
    """Occurrences in held-out documents, which no step saw."""
    log_prob: float
    """Sum of the unigram log-probabilities of its tokens, nats."""
    documents: list[int]
    """Numbers of documents in the answer, by BM25."""


@dataclass(frozen=True)
class Answer:
    """Everything about one text."""

    text: str
    tokens: list[str]
    """Text of each token."""
    n_trained_tokens: int
    """Tokens of training documents in the indexes."""
    spans: list[FoundSpan]
    """By place in the text; they may overlap."""
    documents: list[FoundDocument]
    """By BM25, the highest first."""
    run: str | None
    redacted: dict[str, int]
    """How often each kind of personal data was replaced."""
    seconds: dict[str, float]
    """Taken by search, documents, when."""
    notes: list[str] = field(default_factory=list)
    """What the reader must know of the run and the indexes, in sentences."""
