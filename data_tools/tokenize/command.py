"""Documents to token shards.

olmo data tokenize documents=[corpus/documents] tokenizer=corpus/tokenizer.json output=shards/demo
"""

import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from omegaconf import MISSING

from data_tools.documents import Document, find_files, read_documents
from olmo_train.data.shards import ShardWriter, WriterOptions, dtype_for
from olmo_train.errors import ShardError, run_command
from olmo_train.schema import load_config
from olmo_train.tokenizer import Tokenizer

BATCH = 512
"""Documents handed to the tokenizer at once; it spreads them over the cores."""
SOURCE = re.compile(r"\w[^/\0]*(/\w[^/\0]*)*")
"""Sources name folders: none may lead out of the output (`../x`, `/x`), and no two may be the same folder (`a/b`, `a//b`)."""


@dataclass
class TokenizeConfig:
    """`configs/tokenize.yaml`."""

    documents: list[str] = field(default_factory=list)
    """Files, folders or globs of Dolma documents."""
    tokenizer: str = MISSING
    output: str = MISSING
    """Folder to write; must not exist."""
    heldout_frac: float = MISSING
    """Documents (by a hash of their id) that training never sees."""
    max_tokens_per_file: int = 2**29
    shuffle_buffer: int = 10_000
    """Documents shuffled together before they are written, as Dolma does; 0: keep their order."""
    seed: int = 0
    """Of that shuffle."""


def main(argv: list[str]) -> None:
    """Tokenize, write, and print a table of sources."""
    config = load_config("tokenize", TokenizeConfig, argv, _problems)
    tokenizer = Tokenizer(Path(config.tokenizer))
    files = find_files(config.documents)
    options = WriterOptions(
        dtype_for(tokenizer.vocab_size), tokenizer.vocab_size, tokenizer.eos_id, config.heldout_frac, config.max_tokens_per_file
    )
    began = time.monotonic()
    seen: set[tuple[str, str]] = set()
    with ShardWriter(Path(config.output), options) as writer:
        for batch in _batches(_shuffled(_all(files, seen), config.shuffle_buffer, config.seed)):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                size = len(document.text.encode("utf-8"))
                writer.add(
                    document.source,
                    (document.id, document.path, document.line),
                    np.array([*ids, tokenizer.eos_id], np.int64),
                    size,
                )
        if not seen:
            raise ShardError(f"documents: {', '.join(map(str, files))} hold no document")
        manifest = writer.close(tokenizer.path, tokenizer.token_bytes())
    _print_table(config.output, manifest.totals(), manifest.dtype, time.monotonic() - began)


def _problems(config: TokenizeConfig) -> list[str]:
    problems = [] if config.documents else ["documents is empty; give files, folders or globs of Dolma documents"]
    if not 0 <= config.heldout_frac < 1:
        problems.append(f"heldout_frac={config.heldout_frac} is not in [0, 1)")
    if config.max_tokens_per_file < 1:
        problems.append(f"max_tokens_per_file={config.max_tokens_per_file} must be positive")
    if config.shuffle_buffer < 0:
        problems.append(f"shuffle_buffer={config.shuffle_buffer} must not be negative; 0 keeps the order")
    if Path(config.output).exists():
        problems.append(f"output={config.output} exists already; shards are never overwritten: remove it or give another folder")
    return problems


def _all(files: list[Path], seen: set[tuple[str, str]]) -> Iterator[Document]:
    """Every document; the same id twice in a source is an error, because ids lead back to documents."""
    for path in files:
        for document in read_documents(path):
            if not SOURCE.fullmatch(document.source):
                raise ShardError(
                    f"{path}: line {document.line}: source={document.source!r} cannot name a folder of the output; it takes "
                    "words that start with a letter or digit, with slashes between"
                )
            key = (document.source, document.id)
            if key in seen:
                raise ShardError(
                    f"{path}: line {document.line}: id {document.id!r} stands twice in source "
                    f"{document.source!r}; ids must be unique"
                )
            seen.add(key)
            yield document


def _shuffled(documents: Iterator[Document], size: int, seed: int) -> Iterator[Document]:
    """Shuffle within consecutive buffers of `size`: reproducible, and in bounded memory."""
    if size == 0:
        yield from documents
        return
    rng = random.Random(seed)
    buffer: list[Document] = []
    for document in documents:
        buffer.append(document)
        if len(buffer) == size:
            rng.shuffle(buffer)
            yield from buffer
            buffer = []
    rng.shuffle(buffer)
    yield from buffer


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _print_table(output: str, totals: dict[str, dict[str, int]], dtype: str, seconds: float) -> None:
    tokens = sum(row["tokens"] for row in totals.values())
    print(f"{output}: {tokens:,} tokens of {dtype} in {seconds:.1f} s ({tokens / seconds / 1e6:.2f} M tokens/s)", file=sys.stdout)
    for source, row in totals.items():
        print(
            f"  {source}: {row['documents']:,} documents, {row['tokens']:,} tokens; "
            f"held out {row['heldout_documents']:,} documents, {row['heldout_tokens']:,} tokens"
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
