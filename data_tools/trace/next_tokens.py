"""What follows a text in training documents: `olmo trace next runs/first --text 'import os'`.

The n-gram model of unbounded order (Liu et al., Infini-gram, arXiv 2401.17377, section 3): the context is the longest suffix of
the text that stands in training documents, and the probability of a token is its share among all that follow it there. Counts are
exact, for any number of occurrences. The end of a document counts as end-of-text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_tools.trace.next_kernels import next_ids
from data_tools.trace.parts import Part
from data_tools.trace.questions import give, has_tokenizer, new_parser, open_question, parse, read_asked, shown, text_of
from data_tools.trace.search_kernels import find_ranges
from data_tools.trace.searcher import Searcher
from olmo_train.errors import run_command

NO_TOKEN = -1
"""Stands for the end of a document where the shards have no end-of-text token."""


@dataclass(frozen=True)
class NextToken:
    """A token that follows."""

    id: int
    """NO_TOKEN: the document ends, and the shards have no end-of-text token."""
    text: str | None
    count: int
    prob: float


@dataclass(frozen=True)
class NextTokens:
    """The distribution after a context."""

    ids: list[int]
    """The context: a suffix of the tokens asked about."""
    text: str | None
    total: int
    """Occurrences of the context in training documents."""
    n_distinct: int
    tokens: list[NextToken]
    """The most frequent first; equal counts by id."""


@dataclass(frozen=True)
class InfgramLogProbs:
    """A text read by the infinite-gram, by token."""

    log_probs_T: np.ndarray
    """float64, nats; -inf: the token never follows its context."""
    n_context_T: np.ndarray
    """int64: tokens of the context."""
    count_T: np.ndarray
    """int64: occurrences of the context and the token."""
    total_T: np.ndarray
    """int64: occurrences of the context."""


def main(argv: list[str]) -> None:
    """Print what follows."""
    parser = new_parser("next", __doc__)
    parser.add_argument("--order", type=int, metavar="N", help="an N-gram model instead: the context is the last N - 1 tokens")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="tokens to tell (default: %(default)s)")
    args = parse(parser, argv, ["order", "top"])
    searcher = open_question(args).searcher
    found = [with_texts(searcher, next_tokens(searcher, asked.ids, args.order), args.top) for asked in read_asked(args, searcher)]
    give(args, found, (line for one in found for line in _lines(one)))


def next_tokens(searcher: Searcher, ids: Sequence[int], order: int | None = None) -> NextTokens:
    """The tokens after the longest suffix of `ids` that stands in training documents, or after the last `order` - 1 ids.

    With an order, a context that does not stand there has no next tokens. Texts are left out; `with_texts` adds them.
    """
    context = list(ids) if order is None else list(ids)[max(0, len(ids) - order + 1) :]
    if order is None:
        context = context[_longest_suffix(searcher, context) :]
    counts = next_counts(searcher, context)
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    tokens = [NextToken(i, None, n, n / total) for i, n in ordered]
    return NextTokens(context, None, total, len(tokens), tokens)


def with_texts(searcher: Searcher, found: NextTokens, top: int) -> NextTokens:
    """The first `top` tokens, and the texts of context and tokens where there is a tokenizer."""
    tokens = found.tokens[:top]
    if not has_tokenizer(searcher):
        return replace(found, tokens=tokens)
    named = [replace(t, text=None if t.id == NO_TOKEN else searcher.tokenizer.decode([t.id])) for t in tokens]
    return replace(found, text=text_of(searcher, found.ids), tokens=named)


def next_counts(searcher: Searcher, ids: Sequence[int]) -> dict[int, int]:
    """How often each token follows `ids` in training documents; the end of a document is end-of-text."""
    found: dict[int, int] = {}
    for parts, sign in ((searcher.parts, 1), (searcher.blocked.parts, -1)):
        for part in parts:
            for token, n in _next_in_part(part, list(ids), searcher.corpora[part.corpus].manifest.eos_id):
                found[token] = found.get(token, 0) + sign * n
    return {token: n for token, n in found.items() if n}


def _next_in_part(part: Part, ids: list[int], eos_id: int | None) -> Iterator[tuple[int, int]]:
    range_12 = np.array([[0, len(part.sa["train"])]])
    if ids:
        query = part.query(np.array(ids, np.int64), eos_id)
        find_ranges(*part.arrays("train"), query, np.array([[0, len(ids)]]), range_12)
    ids_N, counts_N = next_ids(part.sa["train"], part.tokens, part.ends, *range_12[0].tolist(), len(ids))
    end = NO_TOKEN if eos_id is None else eos_id
    yield from ((end if token < 0 else token, n) for token, n in zip(ids_N.tolist(), counts_N.tolist(), strict=True))


def _longest_suffix(searcher: Searcher, ids: list[int]) -> int:
    """Where the longest suffix that stands in training documents begins; the empty suffix always does."""
    low, high = 0, len(ids)  # a suffix of one that stands there does too
    while low < high:
        middle = (low + high) // 2
        if searcher.count(ids[middle:]):
            high = middle
        else:
            low = middle + 1
    return low


def infgram_log_probs(searcher: Searcher, ids: Sequence[int]) -> InfgramLogProbs:
    """The log-probability of each of T tokens by the infinite-gram, given those before it."""
    tokens, eos_ids = list(ids), {corpus.manifest.eos_id for corpus in searcher.corpora}
    n_context, counts, totals = (np.zeros(len(tokens), np.int64) for _ in range(3))
    start, total = 0, searcher.n_tokens
    for t, token in enumerate(tokens):
        while not total and start < t:
            start += 1
            total = searcher.count(tokens[start:t]) if start < t else searcher.n_tokens
        n_context[t], totals[t] = t - start, total
        if token in eos_ids:  # no search finds it, and nothing goes on after it
            counts[t], total = next_counts(searcher, tokens[start:t]).get(token, 0), 0
        else:
            counts[t] = total = searcher.count(tokens[start : t + 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return InfgramLogProbs(np.log(counts / totals), n_context, counts, totals)


def _lines(found: NextTokens) -> list[str]:
    context = f"{shown(found.text, found.ids)} ({len(found.ids)} tokens, {found.total:,} times)"
    lines = [f"after {context}: {found.n_distinct:,} different tokens"]
    for token in found.tokens:
        name = "end of document" if token.id == NO_TOKEN else shown(token.text, [token.id])
        lines.append(f"  {token.prob:8.4f}  {token.count:>10,}  {name}")
    return lines


if __name__ == "__main__":
    raise SystemExit(run_command(main))
