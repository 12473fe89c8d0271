"""`configs/ingest.yaml`: which files become documents of which source, and by which rules."""

import codecs
import importlib.util
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from data_tools.documents import SOURCE
from data_tools.files import Compression
from data_tools.work.config import StageConfig, stage_problems

MEMORY_PER_MB = 60
"""MB of memory that an extractor may take for a MB of page: resiliparse took 5 to 60 on 10 MB of text, links, `<b a=1 b=2>`."""


class Kind(StrEnum):
    """What the files of a source are."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    TEXT = "text"
    TREE = "tree"
    """Folders of source code."""
    WARC = "warc"
    HTML = "html"
    HUGGINGFACE = "huggingface"


class Per(StrEnum):
    """What of a text file is one document."""

    FILE = "file"
    LINE = "line"
    SEPARATOR = "separator"


class Extractor(StrEnum):
    """What takes the text out of a page."""

    RESILIPARSE = "resiliparse"
    TRAFILATURA = "trafilatura"


class OnBadBytes(StrEnum):
    """What becomes of bytes that are text in no encoding of the rule, and of NUL."""

    REJECT = "reject"
    REPLACE = "replace"
    """By U+FFFD, as UTF-8; counted."""


class Unicode(StrEnum):
    """Normalisation of the text."""

    NONE = "none"
    NFC = "nfc"


class Newlines(StrEnum):
    """Normalisation of the ends of lines."""

    KEEP = "keep"
    LF = "lf"


@dataclass
class FieldsConfig:
    """Of records (jsonl, parquet, huggingface): names, dotted for what is within (doc.body). All others become metadata."""

    id: str | None = "id"
    """Numbers become strings. None: made from the source, the name of the file and the place in it."""
    text: str = "text"
    source: str | None = None
    """None: the name of the source."""
    added: str | None = None
    created: str | None = None
    leave_out: list[str] = field(default_factory=list)
    """Are not kept in the metadata."""


@dataclass
class SourceConfig:
    """One entry of `sources`."""

    kind: Kind = MISSING
    paths: list[str] = field(default_factory=list)
    """Files, folders or globs. Ids are made from names below the folder, or below the fixed front of the glob."""
    include: list[str] = field(default_factory=list)
    """Globs of files below folders: of the last name (`*.py`), or with slashes of the relative. Empty: endings of the kind."""
    exclude: list[str] = field(default_factory=list)
    """Globs of relative names that are left out."""
    license: str | None = None
    """Kept in the metadata of each document that does not say its own."""
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    per: Per = Per.FILE
    """kind=text: what is one document."""
    separator: str | None = None
    """kind=text per=separator: the text between two documents; \\n and \\t may be written so."""
    skip_vendored: bool = True
    """kind=tree: leave out hidden folders, those that hold other people's or generated code, minified and generated files."""
    extractor: Extractor = Extractor.RESILIPARSE
    """kind=warc, kind=html."""
    main_content: bool = True
    """kind=warc, kind=html: without menus, headers and footers."""
    max_page_mb: int = 4
    """kind=warc, kind=html: larger pages are dropped; a parsed page takes up to MEMORY_PER_MB times its size."""
    extract_cpu_s: int = 5
    """kind=warc, kind=html: CPU seconds after which an extractor has failed on a page; most take milliseconds."""
    dataset: str | None = None
    """kind=huggingface: a folder that `save_to_disk` wrote, or the name of a dataset of the hub."""
    subset: str | None = None
    """kind=huggingface: of a dataset of the hub that has several."""
    split: str | None = None
    """kind=huggingface: train, test, ...; None: of a saved folder without splits."""
    revision: str | None = None
    """kind=huggingface: of the hub; None: the newest."""
    encodings: list[str] = field(default_factory=list)
    """Tried in order on what is neither UTF-8 nor in the encoding it declares; empty: such bytes are no text."""
    on_bad_bytes: OnBadBytes = OnBadBytes.REJECT


@dataclass
class IngestConfig(StageConfig):
    """`olmo data ingest`."""

    output: str = MISSING
    """Folder of the dataset to write: <output>/documents/<source>/."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; the name is the documents' source, and their folder."""
    added: str | None = None
    """Of every document that does not say its own; fixed, so that the same input gives the same bytes."""
    unicode: Unicode = Unicode.NONE
    newlines: Newlines = Newlines.KEEP
    max_document_mb: int = 100
    """Of UTF-8 text; longer ones are dropped."""
    max_file_mb: int = 512
    """Of JSON before compression; the next document goes to the next file."""
    part_mb: int = 64
    """Of input that is done at once: larger files are cut where they can be, smaller ones put together."""
    compression: Compression = Compression.GZ


def ingest_problems(config: IngestConfig) -> list[str]:
    """What is wrong with the values, without a look at the files."""
    problems = stage_problems(config)
    for name in ("max_document_mb", "max_file_mb", "part_mb"):
        if getattr(config, name) < 1:
            problems.append(f"{name}={getattr(config, name)} must be positive")
    if 2 * config.max_document_mb > config.memory_mb:
        problems.append(
            f"max_document_mb={config.max_document_mb} is more than half of memory_mb={config.memory_mb}; raise it or lower this"
        )
    if not config.sources:
        problems.append("sources is empty; give sources={web: {kind: warc, paths: [a/*.warc.gz]}}")
    labels = [name.replace("/", "__") for name in config.sources]
    if len(set(labels)) < len(labels):
        problems.append(f"sources: {', '.join(config.sources)}: two differ by / and __ alone; rename one")
    for name, source in config.sources.items():
        problems += [f"sources.{name}{problem}" for problem in _source_problems(name, source)]
        if source.kind in (Kind.WARC, Kind.HTML) and MEMORY_PER_MB * source.max_page_mb > config.memory_mb:
            problems.append(
                f"sources.{name}.max_page_mb={source.max_page_mb}: a page takes up to {MEMORY_PER_MB} times its size, more than "
                f"memory_mb={config.memory_mb}; give at most {config.memory_mb // MEMORY_PER_MB}, or raise memory_mb"
            )
    return problems


def _source_problems(name: str, source: SourceConfig) -> list[str]:
    problems = []
    if not SOURCE.fullmatch(name):
        problems.append(": cannot name a folder; it takes words that start with a letter or digit, with slashes between")
    is_hub = source.kind == Kind.HUGGINGFACE
    if is_hub and (not source.dataset or source.paths):
        problems.append(".kind=huggingface takes dataset (and split), no paths")
    if not is_hub and (source.dataset or not source.paths):
        problems.append(f".kind={source.kind} takes paths: files, folders or globs{', no dataset' if source.dataset else ''}")
    problems += _text_problems(source)
    for value in ("max_page_mb", "extract_cpu_s"):
        if getattr(source, value) < 1:
            problems.append(f".{value}={getattr(source, value)} must be positive")
    packages = {
        Kind.PARQUET: "pyarrow",
        Kind.HUGGINGFACE: "datasets",
        Kind.WARC: source.extractor.value,
        Kind.HTML: source.extractor.value,
    }
    package = packages.get(source.kind)
    if package and importlib.util.find_spec(package) is None:
        what = f".extractor={package}" if package == source.extractor else f".kind={source.kind}"
        extra = package if package in ("trafilatura", "datasets") else "'olmo-train[data]'"
        problems.append(f"{what} needs {package}, which is not installed; pip install {extra}")
    return problems


def _text_problems(source: SourceConfig) -> list[str]:
    problems = []
    if (source.per == Per.SEPARATOR) != bool(source.separator):
        problems.append(f".per={source.per} with separator={source.separator!r}: only per=separator takes one")
    if source.kind != Kind.TEXT and source.per != Per.FILE:
        problems.append(f".per={source.per} is of kind=text only; this is kind={source.kind}")
    for encoding in source.encodings:
        try:
            is_text = codecs.lookup(encoding)._is_text_encoding
        except LookupError:
            is_text = False
        if not is_text:
            problems.append(f".encodings: {encoding} is no encoding that Python knows; give names as latin-1 or cp1252")
    names = [name for name in (source.fields.id, source.fields.text, source.fields.created, source.fields.added) if name]
    for twice in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f".fields: {twice} is given twice; each of id, text, added, created takes a field of its own")
    return problems
