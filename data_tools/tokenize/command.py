"""Documents to token shards, shuffled by one seeded permutation of each source, whatever the number of processes and machines.

olmo data tokenize documents=[corpus/documents] tokenizer=corpus/tokenizer.json output=shards/demo

Three phases: each file of documents becomes a run of ids in scratch (read_part.py), each source is planned from its runs
(plan_part.py), each token file is gathered from all runs (write_part.py). The manifest is written last.
"""

import json
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from data_tools.datasets import DocumentFile, find_document_files, output_problems, part_names
from data_tools.tokenize.encoder import EncoderChoice
from data_tools.tokenize.plan_part import SourcePlan, plan_source
from data_tools.tokenize.read_part import ReadPlan, read_file
from data_tools.tokenize.srcs import src_names
from data_tools.tokenize.write_part import WritePlan, entry_path, write_file
from data_tools.work.config import DocumentsConfig, stage_problems
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part
from data_tools.work.stage import Plan, Stage, settings_of
from olmo_train.data.manifest import FileEntry, Manifest
from olmo_train.data.shards import dtype_for, finish_corpus
from olmo_train.errors import ConfigError, ShardError, run_command
from olmo_train.schema import load_config
from olmo_train.tokenizer import Tokenizer

SCRATCH = ("scratch",)
SMALL = 4 * 10**6
"""Bytes of documents that are done before a second process has started."""


class Order(StrEnum):
    """Of the documents of a source."""

    SHUFFLE = "shuffle"
    """By a hash of seed, source and id: one permutation of the whole source."""
    INPUT = "input"
    """Of the files as they are found, and of their lines."""


@dataclass
class TokenizeConfig(DocumentsConfig):
    """`configs/tokenize.yaml`."""

    tokenizer: str = MISSING
    output: str = MISSING
    """Folder to write. The same command goes on where it ended; a folder with anything else in it is refused."""
    heldout_frac: float = MISSING
    """Documents (by a hash of their id) that training never sees."""
    max_tokens_per_file: int = 2**29
    """Files of a source are about equal and have at most so many; a larger document has a file of its own."""
    order: Order = Order.SHUFFLE
    seed: int = 0
    """Of the shuffle."""
    bos_token: str | None = None
    """Put before every document, if the tokenizer has it; end-of-text is put after every one."""
    encoder: EncoderChoice = EncoderChoice.AUTO
    src_root: str | None = None
    """Folder that the shards' paths of documents are relative to; None: they begin with the name of the dataset's folder."""


def main(argv: list[str]) -> None:
    """Tokenize, write, and print a table of sources."""
    tokenize(load_config("tokenize", TokenizeConfig, argv, _problems))


def tokenize(config: TokenizeConfig) -> None:
    """The stage."""
    began = time.monotonic()
    tokenizer, files = _look_into(config), find_document_files(config.documents)
    srcs = src_names(files, config.src_root)
    if config.processes is None and sum(file.path.stat().st_size for file in files) < SMALL:
        config.processes = 1
    settings = settings_of(config, ("documents", "output", "tokenizer", "src_root"))
    settings |= {"tokenizer_sha256": tokenizer.sha256, "srcs": _first_last(srcs)}
    folder = Path(config.output) / "stages" / "tokenize"
    with Stage(folder, Plan("tokenize", settings, [file.path for file in files]), config) as stage:
        if stage.is_finished:
            print(f"{config.output}: finished before", file=sys.stderr)
            stage.clean(SCRATCH)
        else:
            try:
                _run(stage, config, tokenizer, (files, srcs))
            except FileNotFoundError:
                if not stage.is_finished:  # another task was quicker, and has removed the scratch
                    raise
        totals = stage.summary()["totals"]
    _print_table(config.output, totals["by_source"], tokenizer.dtype, time.monotonic() - began)


def _problems(config: TokenizeConfig) -> list[str]:
    problems = stage_problems(config)
    if not 0 <= config.heldout_frac < 1:
        problems.append(f"heldout_frac={config.heldout_frac} is not in [0, 1)")
    if config.max_tokens_per_file < 1:
        problems.append(f"max_tokens_per_file={config.max_tokens_per_file} must be positive")
    if not 0 <= config.seed < 2**64:
        problems.append(f"seed={config.seed} is not in 0 .. 2**64 - 1")
    output = Path(config.output)
    is_ours = output.is_dir() and (
        {path.name for path in output.iterdir()} <= {"stages"} or (output / "stages/tokenize").is_dir()
    )
    if output.exists() and not is_ours:
        problems.append(f"output={config.output} exists already; shards are never overwritten: remove it or give another folder")
    return problems or output_problems(config.output, config.documents)


@dataclass(frozen=True)
class _Facts:
    """What is needed of a tokenizer here; each process that encodes loads its own."""

    sha256: str
    vocab_size: int
    dtype: str
    frame: tuple[list[int], list[int]]
    """Ids before and after every document; the last is end-of-text."""
    token_bytes: np.ndarray | None


def _look_into(config: TokenizeConfig) -> _Facts:
    tokenizer = Tokenizer(Path(config.tokenizer))
    before = []
    if config.bos_token is not None:
        found = tokenizer.token_id(config.bos_token)
        if found is None:
            raise ConfigError(f"bos_token={config.bos_token!r} is no token of {tokenizer.path}; give one of its tokens, or null")
        before = [found]
    size = tokenizer.vocab_size
    return _Facts(tokenizer.sha256, size, dtype_for(size), (before, [tokenizer.eos_id]), tokenizer.token_bytes())


def _first_last(srcs: list[str]) -> list[str]:
    """Enough of the names to know how they were made: all follow from the inputs."""
    return srcs if len(srcs) < 2 else [srcs[0], srcs[-1]]


Inputs = tuple[list[DocumentFile], list[str]]
"""Files, and their names in the shards."""


def _run(stage: Stage, config: TokenizeConfig, tokenizer: _Facts, inputs: Inputs) -> None:
    files, srcs = inputs
    is_shuffled = config.order == Order.SHUFFLE
    dtype, names = tokenizer.dtype, part_names(files)
    read_plan = ReadPlan(config.tokenizer, config.encoder, dtype, tokenizer.frame, config.seed, is_shuffled)
    parts = [Part(names[i], (i, str(file.path)), file.path.stat().st_size) for i, file in enumerate(files)]
    read: Counts = {}
    for record in stage.run("read", parts, read_file, read_plan):
        add_counts(read, record.counts)
    sources = read.get("by_source", {})
    if not sources:
        raise ShardError(f"documents: {', '.join(config.documents)} hold no document")
    source_plan = SourcePlan(names, [str(file.path) for file in files], config.max_tokens_per_file, is_shuffled)
    bytes_of = {source: row["tokens"] * (2 if dtype == "uint16" else 4) for source, row in sources.items()}
    ordered = sorted(sources)
    planned = stage.run(
        "plan", [Part(f"{n:05d}", (n, s), sources[s]["documents"] * 16) for n, s in enumerate(ordered)], plan_source, source_plan
    )
    writes = [
        Part(f"{n:05d}-{k:05d}", (n, source, k), bytes_of[source] // record.counts["files"])
        for n, (source, record) in enumerate(zip(ordered, planned, strict=True))
        for k in range(record.counts["files"])
    ]
    write_plan = WritePlan(config.output, srcs, 2 if dtype == "uint16" else 4, config.heldout_frac)
    totals: Counts = {name: read[name] for name in ("documents_in", "text_bytes_in", "dropped_empty", "encoders") if name in read}
    for record in stage.run("write", writes, write_file, write_plan):
        add_counts(totals, record.counts)
    entries = [json.loads(entry_path(stage.folder, part.name).read_text()) for part in writes]
    _finish(stage, config, tokenizer, entries)
    stage.finish(totals, remove=SCRATCH)


def _finish(stage: Stage, config: TokenizeConfig, tokenizer: _Facts, entries: list[dict[str, Any]]) -> None:
    manifest = Manifest(
        tokenizer.dtype, tokenizer.vocab_size, tokenizer.frame[1][0], config.heldout_frac,
        files=sorted((FileEntry(**entry) for entry in entries), key=lambda entry: entry.path),
    )  # fmt: skip
    finish_corpus(Path(config.output), manifest, Path(config.tokenizer), tokenizer.token_bytes)


def _print_table(output: str, totals: dict[str, dict[str, int]], dtype: str, seconds: float) -> None:
    tokens = sum(row["tokens"] for row in totals.values())
    print(f"{output}: {tokens:,} tokens of {dtype} in {seconds:.1f} s ({tokens / seconds / 1e6:.2f} M tokens/s)", file=sys.stdout)
    for source, row in sorted(totals.items()):
        print(
            f"  {source}: {row['documents']:,} documents, {row['tokens']:,} tokens; "
            f"held out {row['heldout_documents']:,} documents, {row['heldout_tokens']:,} tokens"
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
