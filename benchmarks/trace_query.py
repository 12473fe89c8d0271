"""Searching an index, beside infini-gram on the same tokens, in one run; then with nothing in the page cache.

    python benchmarks/trace_query.py shards/a --index INDEX --texts documents/*.jsonl [--peer FOLDER] [--cold] [--number 40]

Asks for all maximal spans of outputs of `--length` tokens: windows of documents that are not in the shards, and windows of
documents that are. Prints median and 90th percentile in ms, of wall and of CPU time, and checks lengths, spans and counts against
infini-gram. `--peer`: where infini-gram's index of these shards lies or is written. docs/trace_query.md quotes it.
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import numpy as np

from benchmarks.trace_index import write_for_peer
from data_tools.trace.build_index import index_folder_of
from data_tools.trace.config import SpansConfig
from data_tools.trace.searcher import Searcher
from data_tools.trace.spans import maximal_spans
from data_tools.trace.text_tokens import TextTokens, encode
from olmo_train.data.shards import Corpus

MIN_TOKENS, MAX_COUNT = 4, 10
"""Of infini-gram's `attribute`, which returns every place of every span: its default of 10 keeps it from millions of them."""


@dataclass
class Times:
    """ms of each output."""

    wall: list[float]
    cpu: list[float]

    def __str__(self) -> str:
        return f"{_middle(self.wall)} wall, {_middle(self.cpu)} CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--index")
    parser.add_argument("--texts", nargs="+", default=[], help="Dolma documents, some of which are not in the shards")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--peer", help="folder for infini-gram's index")
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    index = args.index or str(index_folder_of(args.shards))
    searcher = Searcher([index], verify="size")
    texts = {"new": list(new_texts(args, searcher)), "indexed": list(indexed_texts(args, searcher))}
    print(f"{searcher.n_tokens:,} tokens in {len(searcher.parts)} parts, vocabulary {searcher.vocab_size:,}")
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    engine = None if args.peer is None else open_peer(searcher.corpora[0], Path(args.peer))
    for name, some in texts.items():
        if some:
            print(f"\n{len(some)} outputs of {args.length} tokens, {name}:")
            warm(searcher, some, engine)
            if engine is not None:
                agree(searcher, some, engine)
    if args.cold:
        cold(index, searcher, texts["new"] or texts["indexed"])


def new_texts(args: argparse.Namespace, searcher: Searcher) -> Iterator[TextTokens]:
    """Windows of documents that are not in the shards."""
    for n in range(args.number):
        path = Path(args.texts[n % len(args.texts)]) if args.texts else None
        if path is None:
            return
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in skip(file, 500 + 97 * n):
                document = json.loads(line)
                if len(document["text"]) > 4000 and not searcher.corpora[0].find_document(document["id"]):
                    yield window(searcher, document["text"], args.length)
                    break


def indexed_texts(args: argparse.Namespace, searcher: Searcher) -> Iterator[TextTokens]:
    """Windows of documents of the shards."""
    rng = np.random.default_rng(1)
    files = searcher.corpora[0].files
    for n in range(args.number):
        file = files[n % len(files)]
        start = int(rng.integers(file.entry.tokens - 2 * args.length))
        yield window(searcher, searcher.tokenizer.decode(file.read(start, start + 2 * args.length)), args.length)


def skip(lines: Iterator[str], number: int) -> Iterator[str]:
    for n, line in enumerate(lines):
        if n >= number:
            yield line


def window(searcher: Searcher, text: str, length: int) -> TextTokens:
    """A text of about `length` tokens from the middle of one."""
    tokens = encode(searcher.tokenizer, text)
    first = max(0, len(tokens) // 2 - length // 2)
    return encode(searcher.tokenizer, "".join(tokens.texts[first : first + length]))


def warm(searcher: Searcher, texts: list[TextTokens], engine: object) -> None:
    """Everything in memory: the second of two rounds is told."""
    words, exact = SpansConfig(), SpansConfig(words=False, max_spans=None, max_count=MAX_COUNT)
    asked: dict[str, Callable[[TextTokens], object]] = {
        "tokens and words of the text": lambda t: encode(searcher.tokenizer, t.text),
        "longest lengths": lambda t: searcher.longest(t.ids),
        "all maximal spans, of words, 10 kept with counts": lambda t: maximal_spans(searcher, t, words),
        f"all maximal spans, token-exact, counts, those that stand {MAX_COUNT} times at most": lambda t: maximal_spans(
            searcher, t, exact
        ),
    }
    if engine is not None:
        asked["infini-gram `attribute`, the same"] = lambda t: attribute(engine, t)
    found = {}
    for _ in range(2):
        for name, ask in asked.items():
            found[name] = timed(ask, texts)
    for name, times in found.items():
        print(f"  {name}: {times}")
    if engine is not None:
        ours, peers = list(found.values())[-2:]
        wall, cpu = (np.median(a) / np.median(b) for a, b in ((peers.wall, ours.wall), (peers.cpu, ours.cpu)))
        print(f"  ratio: {wall:.0f} wall, {cpu:.0f} CPU")


def timed(ask: Callable[[TextTokens], object], texts: list[TextTokens]) -> Times:
    times = Times([], [])
    for text in texts:
        wall, cpu = time.perf_counter(), time.process_time()
        ask(text)
        times.wall.append(1000 * (time.perf_counter() - wall))
        times.cpu.append(1000 * (time.process_time() - cpu))
    return times


def _middle(values: list[float]) -> str:
    return f"{np.median(values):.2f} ms (p90 {np.quantile(values, 0.9):.2f})"


# ---- infini-gram -----------------------------------------------------------------------------------------------------


def open_peer(corpus: Corpus, folder: Path) -> object | None:
    """infini-gram's engine over the same tokens; its index is built if it is not there. None if it cannot be."""
    from infini_gram.engine import InfiniGramEngine

    kind = {2: "u16", 4: "u32"}[corpus.manifest.itemsize]
    if not (folder / "table.0").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_for_peer(corpus, folder)
        words = ["--data_dir", str(folder), "--save_dir", str(folder), "--token_dtype", kind, "--cpus", "2", "--mem", "8"]
        words += ["--ulimit", str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])]
        subprocess.run([sys.executable, "-m", "infini_gram.indexing", *words], check=False, capture_output=True, cwd=folder)
    if not (folder / "table.0").exists() or not (folder / "table.0").stat().st_size:
        print("infini-gram: ends without an index of these shards")
        return None
    eos = corpus.manifest.eos_id
    return InfiniGramEngine(str(folder), eos, corpus.manifest.vocab_size, token_dtype=kind)


def attribute(engine: object, text: TextTokens) -> list[dict]:
    """Its maximal spans."""
    spans: list[dict] = engine.attribute(text.ids, [], MIN_TOKENS, MAX_COUNT, False)["spans"]  # type: ignore[attr-defined]
    return spans


def agree(searcher: Searcher, texts: list[TextTokens], engine: object) -> None:
    """infini-gram's index has training and held-out documents in one."""
    wrong = spans = counts = 0
    for text in texts:
        lengths = np.maximum(searcher.longest(text.ids), searcher.longest(text.ids, "heldout"))
        ours, reached = {}, 0
        for start, length in enumerate(lengths.tolist()):
            if start + length > reached:
                reached = start + length
                n = sum(searcher.count(text.ids[start:reached], split) for split in ("train", "heldout"))
                if length >= MIN_TOKENS and n <= MAX_COUNT:
                    ours[start, reached] = n
        theirs = {(span["l"], span["r"]): span["count"] for span in attribute(engine, text)}
        spans += len(theirs)
        wrong += len(set(ours.items()) ^ set(theirs.items()))
        for start in range(0, len(text) - 3, 7):
            ids = text.ids[start : start + 1 + start % 3]
            n = engine.find(ids)["cnt"]  # type: ignore[attr-defined]
            counts += 1
            wrong += n != searcher.count(ids) + searcher.count(ids, "heldout")
    print(
        f"  agreement with infini-gram: {spans} maximal spans with their counts, {counts} counts of 1 to 3 tokens: {wrong} differ"
    )


# ---- cold ------------------------------------------------------------------------------------------------------------


def cold(index: str, warm: Searcher, texts: list[TextTokens]) -> None:
    """Each output with nothing of the index in memory, searched plainly and in cold mode."""
    config = SpansConfig()
    # Compiles what both need.
    maximal_spans(Searcher([index], verify="size", cold=True), texts[0], config)
    print(f"\nnothing in memory, {len(texts)} outputs, each after its pages were evicted:")
    disk = []
    for name in ("plain, as the system reads ahead", "plain, a page at a time", "cold mode"):
        times, waits, read, left = Times([], []), [], [], []
        searcher = Searcher([index], verify="size", cold=not name.endswith("ahead"))
        searcher.cold = name == "cold mode"
        assert len(searcher.unigram_log_probs)  # reads the unigrams
        for text in texts:
            evict(warm)  # a page that anyone maps stays
            left.append(evict(searcher))
            before, bytes_before, reads = majors(), read_bytes(), (searcher.reads.rounds, searcher.reads.pages)
            one = timed(lambda t, s=searcher: maximal_spans(s, t, config), [text])  # type: ignore[misc]
            times.wall += one.wall
            times.cpu += one.cpu
            waits.append(majors() - before)
            read.append((read_bytes() - bytes_before) / 2**20)
            disk.append((searcher.reads.rounds - reads[0], searcher.reads.pages - reads[1]))
        print(f"  {name}: {times}; {np.median(read):.1f} MiB read, {np.median(waits):.0f} faults waited for (medians); "
              f"{100 * np.median(left):.1f} % of the pages were in memory before")  # fmt: skip
    rounds, pages = np.median(np.array(disk[2 * len(texts) :]), axis=0)
    print(f"  cold mode asked in {rounds:.0f} rounds for {pages:.0f} pages of 4 KiB (medians)")


def evict(searcher: Searcher) -> float:
    """Drop suffix arrays and tokens from mappings and page cache; return the share of pages that stayed."""
    stayed = total = 0
    for part in searcher.parts:
        for path, array in ((part.tokens_path, part.tokens), (part.sa_paths["train"], part.sa["train"])):
            owner = array
            while isinstance(owner, np.ndarray):
                owner = owner.base
            owner.madvise(4)  # MADV_DONTNEED: pages that are mapped cannot be evicted
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
            resident = in_memory(path)
            stayed, total = stayed + int(resident.sum()), total + len(resident)
    return stayed / total


def in_memory(path: Path) -> np.ndarray:
    """bool: whether each page of a file is in the page cache, by mincore."""
    import ctypes

    array = np.memmap(path, np.uint8, "r")
    pages = np.zeros(-(-len(array) // 4096), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(len(array)), ctypes.c_void_p(pages.ctypes.data))
    return (pages & 1).astype(bool)


def majors() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().split("\n")
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


if __name__ == "__main__":
    main()
