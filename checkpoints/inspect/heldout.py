"""The held-out tokens that checkpoints are measured on: the first ones of each source, the same for every checkpoint."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.opening import Checkpoint
from olmo_train.data.loader import Rows, open_sources, read_rows, source_corpus
from olmo_train.data.order import HeldoutStream
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ConfigError, ShardError
from olmo_train.model.shapes import vocab_rows
from olmo_train.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldoutOptions:
    """Which tokens."""

    tokens_per_source: int = 8192
    """From the front of each source's held-out documents, in whole instances; fewer if there are fewer."""
    shards: tuple[Path, ...] = ()
    """Folders with a manifest; none: the sources of the checkpoint's run."""
    seq_len: int | None = None
    """Tokens of an instance; None: as trained."""


@dataclass(frozen=True)
class SourceTokens:
    """Of one source: R rows of T tokens."""

    name: str
    rows: Rows
    lengths_R: np.ndarray
    """Tokens of each row; what stands after them is padding."""
    token_bytes: np.ndarray | None
    """UTF-8 bytes of each id."""


@dataclass(frozen=True)
class Heldout:
    """What every checkpoint of a series is measured on."""

    seq_len: int
    sources: list[SourceTokens]

    @property
    def digest(self) -> str:
        """SHA-256 over names, ids and document boundaries."""
        out = hashlib.sha256()
        for source in self.sources:
            rows = source.rows
            out.update(f"{source.name}\0{rows.ids.shape}\0".encode() + source.lengths_R.tobytes())
            out.update(rows.ids.astype("<i8").tobytes())
            out.update(b"" if rows.documents is None else rows.documents.astype("<i4").tobytes())
        return out.hexdigest()

    @property
    def n_tokens(self) -> dict[str, int]:
        """By source."""
        return {source.name: int(source.lengths_R.sum()) for source in self.sources}


def read_heldout(checkpoint: Checkpoint, options: HeldoutOptions) -> Heldout:
    """Read the held-out tokens for a checkpoint and all others of its run. Sources are named as in metrics.jsonl.

    Raises:
        ConfigError: no shards are known or there, nothing is held out, or they are of another tokenizer; lists every problem.
        ShardError: a shard is damaged.
    """
    seq_len = options.seq_len or checkpoint.seq_len
    if options.tokens_per_source < seq_len:
        raise ConfigError(f"--tokens-per-source={options.tokens_per_source} must be at least one instance of {seq_len} tokens")
    files = _given_files(checkpoint, options.shards) if options.shards else _run_files(checkpoint)
    with_documents = checkpoint.run is not None and checkpoint.run.data.document_masking
    sources = []
    for name, (shard_files, table) in files.items():
        stream = HeldoutStream(shard_files, seq_len)
        pieces = [stream.pieces(n) for n in range(min(stream.n, options.tokens_per_source // seq_len))]
        if pieces:
            lengths = np.array([sum(piece.end - piece.start for piece in row) for row in pieces], np.int64)
            sources.append(SourceTokens(name, read_rows(pieces, seq_len, with_documents, None), lengths, table))
    if not sources:
        raise ConfigError(f"{checkpoint.where}: no source holds documents out; give --shards FOLDER made with heldout_frac")
    return Heldout(seq_len, sources)


Files = dict[str, tuple[list[ShardFile], np.ndarray | None]]


def _run_files(checkpoint: Checkpoint) -> Files:
    """Of the run's own sources."""
    run, folder = checkpoint.run, checkpoint.folder.parent.parent / "data"
    if run is None:
        raise ConfigError(f"{checkpoint.where} does not say what it was trained on; give --shards FOLDER")
    try:
        tables = {name: source_corpus(run.data, name, folder).token_bytes() for name in run.data.sources}
        opened = open_sources(run.data, folder)
    except ShardError as error:
        raise ConfigError(
            f"{checkpoint.where}: the shards of its run cannot be read here: {error}; give --shards FOLDER"
        ) from error
    files: Files = {}
    for source in opened:
        by_name: dict[str, list[ShardFile]] = {}
        for file in source.files:
            by_name.setdefault(file.entry.source, []).append(file)
        for name, group in by_name.items():
            files[name if name not in files else f"{source.name}/{name}"] = group, tables[source.name]
    return files


def _given_files(checkpoint: Checkpoint, folders: tuple[Path, ...]) -> Files:
    """Of folders that the user named."""
    files: Files = {}
    problems = []
    own = Tokenizer(checkpoint.tokenizer).sha256 if checkpoint.tokenizer is not None else None
    for folder in folders:
        try:
            corpus = Corpus(folder)
        except ShardError as error:
            problems.append(f"--shards={folder}: {error}")
            continue
        manifest = corpus.manifest
        if manifest.vocab_size > vocab_rows(checkpoint.model):
            problems.append(
                f"--shards={folder}: ids go up to {manifest.vocab_size - 1}, the model has {vocab_rows(checkpoint.model)} rows; "
                "give shards of its tokenizer"
            )
        elif own is not None and manifest.tokenizer_sha256 not in (None, own):
            problems.append(f"--shards={folder} was made with another tokenizer than {checkpoint.where}; give shards of its own")
        for name in manifest.sources:
            group = [file for file in corpus.files if file.entry.source == name]
            files[name if name not in files else f"{folder.name}/{name}"] = group, corpus.token_bytes()
    if problems:
        raise ConfigError(problems)
    return files
