"""`olmo trace index shards=shards/demo`: suffix arrays over token shards, in independent parts.

Each part is written whole or not at all; parts that are there are not built again, so an interrupted build goes on, and the tasks
of a job array each build their share. Whoever finds every part there writes `index.json`.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_tools.trace.build_part import build_part, documents_sha256, finished_part, part_unigrams
from data_tools.trace.codes import choose_ranks, sample_counts
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import (
    NAME,
    IndexManifest,
    PartRange,
    PartRecord,
    agree_on_plan,
    read_index_manifest,
    remove_leftovers,
    write_file,
    write_index_manifest,
)
from data_tools.trace.metadata import Metadata, build_metadata
from data_tools.trace.plan_index import folder_of, index_folder_of, n_processes, plan_of, plan_parts, problems_of
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError, run_command
from olmo_train.files import sync_folder
from olmo_train.schema import load_config

__all__ = ["build", "index_folder_of", "main"]
STALE_S = 3600
"""Nobody writes a file for so long: what is older under a temporary name was left by a builder that died."""


def main(argv: list[str]) -> None:
    """Build an index and say what it holds."""
    config = load_config("trace_index", IndexConfig, argv, problems_of)
    began = time.monotonic()
    folder = build(config)
    print(_summary(config, folder, time.monotonic() - began))


def build(config: IndexConfig) -> Path:
    """Build what is not there yet of this task's share; the last of all tasks finishes the index. Returns its folder.

    Raises:
        ConfigError: everything that speaks against it, before anything is written. ShardError: shards or documents are not what
            they should be, the disk is full, or a builder was killed; what is finished stays.
    """
    problems = problems_of(config)
    if problems:
        raise ConfigError(problems)
    corpus, folder = Corpus(config.shards), folder_of(config)
    if not _is_finished(folder, bool(config.documents)):
        try:
            _build_share(config, corpus, folder)
        except FileNotFoundError:  # another task found everything there and cleaned up while this one wrote the same once more
            if not _is_finished(folder, bool(config.documents)):
                raise
    return folder


def _build_share(config: IndexConfig, corpus: Corpus, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, STALE_S)
    parts = plan_parts(corpus, agree_on_plan(folder, plan_of(config, corpus)))
    if not (folder / "ranks.idx").exists():
        write_file(folder / "ranks.idx", [choose_ranks(sample_counts(corpus)).astype("<u4")])
    share = (config.task or 0, config.n_tasks)
    todo = [part for part in parts if part.number % share[1] == share[0] and finished_part(folder, part) is None]
    todo.sort(key=lambda part: part.start - part.end)  # the longest first, so that all processes end about together
    _build_parts(config, corpus, folder, todo)
    whole = not config.documents or build_metadata(corpus, folder, config.documents, share)
    records = [record for part in parts if (record := finished_part(folder, part)) is not None]
    if len(records) == len(parts) and whole:
        _finish(corpus, folder, records)


def _is_finished(folder: Path, with_metadata: bool) -> bool:
    """Whether index.json is there, and every part that it names."""
    if not (folder / NAME).exists() or (with_metadata and Metadata.of(folder) is None):
        return False
    parts = read_index_manifest(folder).parts
    return all(finished_part(folder, PartRange(p.number, p.file, p.start, p.end)) is not None for p in parts)


def _build_parts(config: IndexConfig, corpus: Corpus, folder: Path, todo: list[PartRange]) -> None:
    n, tokens = n_processes(config, corpus, todo), sum(part.end - part.start for part in todo)
    every = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(total=tokens, unit="tok", unit_scale=True, mininterval=every, desc=f"{len(todo)} parts", disable=not todo) as bar:
        for part in _built(config, folder, todo, n):
            bar.update(part.end - part.start)


def _built(config: IndexConfig, folder: Path, todo: list[PartRange], n: int) -> Iterator[PartRange]:
    """Parts, each as soon as it is finished; `n` at once."""
    if n == 1:
        for part in todo:
            build_part(config.shards, folder, part)
            yield part
        return
    try:
        with _pool(n) as pool:
            try:
                futures = {pool.submit(build_part, config.shards, folder, part): part for part in todo}
            except (OSError, ValueError) as error:  # a builder was killed while another one was started
                raise BrokenProcessPool(str(error)) from error
            for future in as_completed(futures):
                future.result()
                yield futures[future]
    except BrokenProcessPool:
        raise ShardError(
            f"{folder}: a builder was killed, for want of memory perhaps; finished parts stay, the same command goes on: "
            f"give fewer processes (now {n}), or remove the folder and give less memory_gib (now {config.memory_gib})"
        ) from None


@contextmanager
def _pool(n: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned, not forked: the parent may have threads. An error, or an interrupt, ends what has not begun."""
    pool = ProcessPoolExecutor(n, get_context("spawn"), _end_with, (os.getpid(),))
    try:
        yield pool
    except BrokenProcessPool:
        for child in active_children():  # the pool waits for ever for one that it started while it was breaking
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Let this process end when its parent does: a killed build must not go on in the background."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _finish(corpus: Corpus, folder: Path, records: list[PartRecord]) -> None:
    """Sum up the unigrams, write the manifest, and remove what dead builders left."""
    vocab_size = corpus.manifest.vocab_size
    unigrams = np.zeros(vocab_size, np.int64)
    for record in records:
        unigrams += part_unigrams(folder, record.number, vocab_size)
    ranks = np.fromfile(folder / "ranks.idx", "<u4")
    arrays = {"ranks.idx": ranks, "unigrams.idx": unigrams.astype("<i8")}
    sums = {name: write_file(folder / name, [array]).sha256 for name, array in arrays.items()}
    sync_folder(folder)
    shards = os.path.relpath(corpus.folder.absolute(), folder.absolute())
    documents = [documents_sha256(file) for file in corpus.files]
    write_index_manifest(folder, IndexManifest(shards, corpus.manifest.fingerprint(), vocab_size, records, sums, documents))
    sync_folder(folder)
    remove_leftovers(folder, 0)


def _summary(config: IndexConfig, folder: Path, seconds: float) -> str:
    corpus = Corpus(config.shards)
    if not (folder / NAME).exists():
        parts = plan_parts(corpus, agree_on_plan(folder, plan_of(config, corpus)))
        there = sum(finished_part(folder, part) is not None for part in parts)
        return (
            f"{folder}: {there} of {len(parts)} parts are there after {seconds:.0f} s; the other tasks build the rest. The last "
            "to end writes index.json; if none did, run the same command once more"
        )
    n_parts, tokens = len(read_index_manifest(folder).parts), sum(file.entry.tokens for file in corpus.files)
    documents = sum(file.entry.documents for file in corpus.files)
    size = sum(path.stat().st_size for path in folder.iterdir() if not path.name.startswith("."))
    return (
        f"{folder}: {tokens:,} tokens of {documents:,} documents in {n_parts} parts, {size / max(tokens, 1):.2f} bytes per "
        f"token, {seconds:.1f} s\nask it: olmo trace text {folder} --text '...'"
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
