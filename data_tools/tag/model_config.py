"""Settings of the taggers that use patterns, lists and models; all of them off by default."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


class Unit(StrEnum):
    """What gets a score of its own, as a span."""

    DOCUMENT = "document"
    PARAGRAPH = "paragraph"
    """A line that is not blank."""
    SENTENCE = "sentence"
    """Of a line: up to a `.`, `!` or `?` before white space."""


@dataclass
class PiiConfig:
    """`pii`: e-mail addresses, telephone numbers, IP addresses."""

    window: int = 0
    """Characters before and after a telephone number or IP address in which `isbn`, `doi` or `#` mean that it is none, as in
    Dolma's pii_regex_v2 (100); 0: not looked at, as in pii_regex_with_counts_fast_v2, which the mixes used."""
    wide_spans: bool = False
    """Spans take in the white space and punctuation around an address, as Dolma's do; False: the address alone."""


@dataclass
class LanguageConfig:
    """`language`."""

    languages: list[str] = field(default_factory=lambda: ["en"])
    """Codes (ISO 639-1) to give scores for; `other` is what is left to 1."""
    model: str | None = None
    """A fastText model of languages (lid.176.bin or .ftz); None: the one that comes with py3langid."""
    paragraphs: bool = False
    """A span for each paragraph beside the one of the document."""
    max_chars: int = 10_000
    """Of a document (or paragraph), from its beginning, that are looked at; 0: all."""


@dataclass
class FastTextModelConfig:
    """One model of `fasttext`."""

    name: str = MISSING
    """Types are <name>_<label without __label__>."""
    path: str = MISSING
    labels: list[str] = field(default_factory=list)
    """To give scores for, without __label__; empty: all that the model has."""
    unit: Unit = Unit.DOCUMENT
    lowercase: bool = False
    """Before the model sees it."""
    min_score: float | None = None
    """Spans of paragraphs and sentences that score less are left out; None: none are. A document always gets its score."""
    sha256: str | None = None
    """Of the file; None: not checked."""


@dataclass
class LinearModelConfig:
    """One model of `linear`: weights of words or n-grams (docs/tag_models.md has the format, and how to export it)."""

    name: str = MISSING
    """The type."""
    path: str = MISSING
    unit: Unit = Unit.DOCUMENT
    min_score: float | None = None
    """As for fasttext."""
    sha256: str | None = None


class Activation(StrEnum):
    """What is done to the outputs of a model."""

    NONE = "none"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


@dataclass
class OnnxModelConfig:
    """One model of `onnx`: a classifier or regressor over tokens, as FineWeb-Edu's."""

    name: str = MISSING
    path: str = MISSING
    """model.onnx, with what it refers to beside it."""
    tokenizer: str = MISSING
    """tokenizer.json."""
    labels: list[str] = field(default_factory=list)
    """Names of the outputs, in order: types are <name>_<label>; empty: one output, and the type is <name>."""
    activation: Activation = Activation.NONE
    max_tokens: int = 512
    """Of a document, from its beginning."""
    batch_size: int = 1
    """Texts at once; more is faster on a GPU only."""
    provider: str = "CPUExecutionProvider"
    """Of ONNX Runtime: CUDAExecutionProvider needs onnxruntime-gpu."""
    sha256: str | None = None


@dataclass
class ListConfig:
    """One list of `urls` or `words`."""

    name: str = MISSING
    path: str = MISSING
    """One entry a line; `#` begins a comment. Plain, .gz or .zst."""
    sha256: str | None = None


@dataclass
class ModelTaggersConfig:
    """Settings of the taggers pii, language, urls, words, fasttext, linear and onnx; secrets has none."""

    pii: PiiConfig = field(default_factory=PiiConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    urls: list[ListConfig] = field(default_factory=list)
    """Lists of blocked domains and addresses: plain, hosts files, Adblock's `||domain^`."""
    words: list[ListConfig] = field(default_factory=list)
    """Lists of words and phrases."""
    fasttext: list[FastTextModelConfig] = field(default_factory=list)
    linear: list[LinearModelConfig] = field(default_factory=list)
    onnx: list[OnnxModelConfig] = field(default_factory=list)
