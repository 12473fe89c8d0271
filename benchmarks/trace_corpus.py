"""Corpus questions beside infini-gram on the same tokens, in one run: counts, what follows, a text by the infinite-gram, repeats.

    python benchmarks/trace_corpus.py shards/a --index INDEX [--peer FOLDER] [--number 300]

Asks about pieces of training documents. `--peer`: where infini-gram's index of these shards lies or is written. Answers are
compared, but for contexts that stand in held-out documents too: those are in its index and not in our distributions.
docs/trace_corpus.md quotes it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import numpy as np

from benchmarks.trace_query import open_peer
from data_tools.trace.build_index import index_folder_of
from data_tools.trace.next_tokens import infgram_log_probs, next_counts, next_tokens
from data_tools.trace.repeats import RepeatsOptions, find_repeats
from data_tools.trace.searcher import Searcher

EXACT = 10**9
"""Of infini-gram's `max_support`: with the default of 1000 it draws a sample of longer ranges."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--index")
    parser.add_argument("--peer", help="folder for infini-gram's index")
    parser.add_argument("--number", type=int, default=300)
    args = parser.parse_args()
    searcher = Searcher([args.index or str(index_folder_of(args.shards))], verify="size")
    peer: Any = None if args.peer is None else open_peer(searcher.corpora[0], Path(args.peer))
    size = f"{searcher.n_tokens:,} tokens in {len(searcher.parts)} parts, vocabulary {searcher.vocab_size:,}"
    print(f"{size}, load {os.getloadavg()[0]:.1f}")
    asked = [ids for n in range(args.number) if (ids := piece(searcher, n, 1 + n % 10))]
    texts = [ids for n in range(max(1, args.number // 30)) if (ids := piece(searcher, 7 * n, 200))]
    for name, ours, theirs, queries in (
        ("count, 1 to 10 tokens", searcher.count, lambda ids: peer.count(ids)["count"], asked),
        (
            "next tokens, 1 to 10 tokens of context",
            lambda ids: next_counts(searcher, ids),
            lambda ids: their_next(peer, ids),
            asked,
        ),
        (
            "next tokens of the infinite-gram",
            lambda ids: next_tokens(searcher, ids).total,
            lambda ids: peer.infgram_ntd(ids),
            asked,
        ),
        (
            "200 tokens read by the infinite-gram",
            lambda ids: infgram_log_probs(searcher, ids),
            lambda ids: their_reading(peer, ids),
            texts,
        ),
    ):
        line = f"{name}: ours {milliseconds(ours, queries)}"
        print(line + (f"; infini-gram {milliseconds(theirs, queries)}" if peer is not None else ""), flush=True)
    if peer is not None:
        compare(searcher, peer, asked)
    for n in (20, 50):
        began = time.process_time()
        found = find_repeats(searcher, RepeatsOptions(n, 20))
        seconds = time.process_time() - began
        rate, first = searcher.n_tokens / seconds / 1e6, found.found[0].apart if found.found else 0
        print(f"20 most repeated spans of at least {n} tokens: {seconds:.1f} CPU-s, {rate:.1f} M tokens/CPU-s")
        print(f"  exact: {found.is_exact}; the first stands {first:,} times")


def piece(searcher: Searcher, number: int, length: int) -> list[int]:
    """Tokens of a training document; none where a draw meets the end of one."""
    rng = np.random.default_rng(number)
    part = searcher.parts[int(rng.integers(len(searcher.parts)))]
    at = int(part.sa["train"][int(rng.integers(part.record.train))])
    ids = part.tokens[at : at + length].tolist()
    return [] if searcher.corpora[0].manifest.eos_id in ids or len(ids) < length else ids


def milliseconds(ask: Callable[[list[int]], object], queries: list[list[int]]) -> str:
    ask(queries[0])
    took = []
    for ids in queries:
        began = time.perf_counter()
        ask(ids)
        took.append(1000 * (time.perf_counter() - began))
    return f"{np.median(took):.3f} ms (90 %: {np.quantile(took, 0.9):.3f})"


def their_next(peer: Any, ids: list[int]) -> dict[int, int]:
    found = peer.ntd(ids, max_support=EXACT)["result_by_token_id"]
    return {int(token): value["cont_cnt"] for token, value in found.items()}


def their_reading(peer: Any, ids: list[int]) -> list[float]:
    return [peer.infgram_prob(ids[:t], ids[t])["prob"] for t in range(len(ids))]


def compare(searcher: Searcher, peer: Any, asked: list[list[int]]) -> None:
    counts = sum(searcher.count(ids) + searcher.count(ids, "heldout") != peer.count(ids)["count"] for ids in asked)
    here = [ids for ids in asked if not searcher.count(ids, "heldout")]
    following = sum(next_counts(searcher, ids) != their_next(peer, ids) for ids in here)
    print(f"  of {len(asked)} counts {counts} differ, of {len(here)} distributions {following}")


if __name__ == "__main__":
    main()
