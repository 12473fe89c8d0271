"""Documents of a text with context, and when they were seen, beside what OLMoTrace does with infini-gram, in one run.

    python benchmarks/trace_documents.py shards/a --index INDEX --texts documents/*.jsonl [--run FOLDER] [--peer FOLDER]

Traces outputs of `--length` tokens: windows of documents that are not in the shards, and windows of documents that are. Prints
median and 90th percentile in ms of the last of three rounds; each line holds the work of the one before. The peer: `attribute` of
infini-gram, the ten most improbable spans, ten documents of each by `get_docs_by_ptrs` with 500 tokens, decoded, ranked by
BM25Okapi over `split(" ")`; `--peer`: where its index of these shards lies or is written. docs/trace.md quotes it.
"""

import argparse
import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import numpy as np

from benchmarks.trace_query import attribute, indexed_texts, new_texts, open_peer, timed
from data_tools.trace.opening import Trace, load_trace_config, open_trace
from data_tools.trace.spans import maximal_spans
from data_tools.trace.text_tokens import TextTokens, encode
from data_tools.trace.trace_text import trace_text

ROUNDS = 3
SPANS, PER_SPAN, TOKENS = 10, 10, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--index")
    parser.add_argument("--run", help="a run on these shards, for when")
    parser.add_argument("--texts", nargs="+", default=[], help="Dolma documents, some of which are not in the shards")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--peer", help="folder for infini-gram's index")
    args = parser.parse_args()
    where = args.run or args.index or args.shards
    trace = open_trace(where, load_trace_config([f"indexes=['{args.index}']"] if args.run and args.index else []))
    engine = None if args.peer is None else open_peer(trace.searcher.corpora[0], Path(args.peer))
    print(f"{trace.searcher.n_tokens:,} tokens, load {os.getloadavg()[0]:.1f}")
    for name, texts in (("new", list(new_texts(args, trace.searcher))), ("indexed", list(indexed_texts(args, trace.searcher)))):
        if texts:
            print(f"\n{len(texts)} outputs of {args.length} tokens, {name}:")
            measure(trace, texts, engine)


def measure(trace: Trace, texts: list[TextTokens], engine: object) -> None:
    searcher, config, alone = trace.searcher, trace.config.spans, replace(trace, history=None)
    asked: dict[str, Callable[[TextTokens], object]] = {
        "spans": lambda t: maximal_spans(searcher, encode(searcher.tokenizer, t.text), config),
        "and documents with context": lambda t: trace_text(alone, t.text),
    }
    if trace.history is not None:
        asked["and when they were seen"] = lambda t: trace_text(trace, t.text)
    if engine is not None:
        asked["peer, spans and documents"] = lambda t: peer_documents(trace, engine, t)
    for _ in range(ROUNDS):
        found = {name: timed(ask, texts) for name, ask in asked.items()}
    answers = [trace_text(alone, text.text) for text in texts]
    spans, documents = (np.mean([len(getattr(answer, name)) for answer in answers]) for name in ("spans", "documents"))
    print(f"  {spans:.1f} spans and {documents:.1f} documents on average")
    for name, times in found.items():
        print(f"  {name}: {times}")
    if engine is not None:
        _, ours, *_, peer = found.values()
        wall, cpu = (np.median(theirs) / np.median(mine) for theirs, mine in ((peer.wall, ours.wall), (peer.cpu, ours.cpu)))
        print(f"  ratio: {wall:.1f} wall, {cpu:.1f} CPU")


def peer_documents(trace: Trace, engine: object, text: TextTokens) -> list[float]:
    """What OLMoTrace's service does for one output (allenai/infinigram-api, get_documents.py and attribution_service.py)."""
    spans = sorted(attribute(engine, text), key=lambda span: span["unigram_logprob_sum"])[:SPANS]
    chosen = random.Random(42)
    found = []
    for span in spans:
        places = span["docs"] if len(span["docs"]) <= PER_SPAN else chosen.sample(span["docs"], PER_SPAN)
        pairs = [(place["s"], place["ptr"]) for place in places]
        found += engine.get_docs_by_ptrs(pairs, max_disp_len=TOKENS)  # type: ignore[attr-defined]
    tokenizer = trace.searcher.tokenizer
    return okapi(text.text.split(" "), [tokenizer.decode(document["token_ids"]).split(" ") for document in found])


def okapi(query: list[str], documents: list[list[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """BM25Okapi of the package rank_bm25, but for its floor of negative weights."""
    counts = [Counter(document) for document in documents]
    mean = sum(map(len, documents)) / max(len(documents), 1)
    have = Counter(word for document in counts for word in document)
    scores = []
    for document, count in zip(documents, counts, strict=True):
        norm = k1 * (1 - b + b * len(document) / mean)
        idf = {word: math.log((len(documents) - have[word] + 0.5) / (have[word] + 0.5)) for word in query}
        scores.append(sum(idf[word] * count[word] * (k1 + 1) / (count[word] + norm) for word in query))
    return scores


if __name__ == "__main__":
    main()
