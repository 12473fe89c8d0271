"""How sure `olmo trace belief` may be, and what it costs: `python benchmarks/trace_belief.py runs/first`.

Spans of documents that training saw once, and as many of held-out documents, for which it is pretended that the steps of the
former saw them. Each has controls of its own. Held-out spans must have an effect as often as chance has it.
"""

import argparse
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import numpy as np
import torch

from checkpoints.inspect.places import find_checkpoints
from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint
from checkpoints.trace.controls import ControlOptions, choose_controls
from checkpoints.trace.curves import learned_steps
from checkpoints.trace.estimate import estimate_effect
from checkpoints.trace.queries import Context, query_place
from checkpoints.trace.span_probability import SpanQuery, score_spans, span_log_probs
from data_tools.trace.answer import Place
from data_tools.trace.opening import Trace, load_trace_config, open_trace
from olmo_train.errors import run_command


def main(argv: list[str]) -> None:
    """Print rates of intervals without 0, of small p-values, and mean effects."""
    parser = argparse.ArgumentParser("benchmarks.trace_belief", description=__doc__)
    parser.add_argument("run", help="folder of a run with an index")
    parser.add_argument("--spans", type=int, default=60, help="of each kind")
    parser.add_argument("--tokens", type=int, default=12, help="of each span")
    parser.add_argument("--controls", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", help="of checkpoints; default: all")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="of configs/trace.yaml")
    args = parser.parse_intermixed_args(argv)
    trace = open_trace(args.run, load_trace_config(args.overrides))
    rng, options = np.random.default_rng(args.seed), ControlOptions(args.controls, seed=args.seed)
    addresses = find_checkpoints(args.run, None if args.steps is None else tuple(args.steps))
    steps = [open_checkpoint(address).step or 0 for address in addresses]
    trained = _draw(trace, rng, args, is_heldout=False, steps=steps)
    heldout = _draw(trace, rng, args, is_heldout=True, steps=steps)
    pretended = [(query, trained[i % len(trained)][1]) for i, (query, _) in enumerate(heldout)]
    start = time.process_time()
    groups = [[query, *choose_controls(trace.searcher, query, options)[0]] for query, _ in (*trained, *pretended)]
    each = (time.process_time() - start) / len(groups)
    print(
        f"controls: {each:.3f} CPU-seconds per span, {np.mean([len(group) - 1 for group in groups]):.0f} of {args.controls} found"
    )
    scores = _score(addresses, groups)
    for name, asked, first in (("seen once", trained, 0), ("held out", pretended, len(trained))):
        print(f"{name}: {len(asked)} spans of {args.tokens} tokens")
        for what, last in (("the interval of the sight", False), ("from before the sight to the end", True)):
            _tell(what, [_estimate(steps, scores[first + i], step, last) for i, (_, step) in enumerate(asked)])


def _draw(
    trace: Trace, rng: np.random.Generator, args: argparse.Namespace, is_heldout: bool, steps: list[int]
) -> list[tuple[SpanQuery, int]]:
    """(span with its document's context, the one step that learned from it; 0 for held-out ones), in files of the first index."""
    assert trace.history is not None
    data, found = trace.history.run.data, []
    files = trace.searcher.corpora[0].files
    for _ in range(2000 * args.spans):
        number = int(rng.integers(len(files)))
        offset = int(rng.integers(files[number].entry.tokens - args.tokens))
        index, place = files[number].index, Place(0, number, offset)
        ordinals = index.documents_between(offset, offset + args.tokens)
        start, end = index.span(ordinals[0])
        inside = len(ordinals) == 1 and offset - start >= 64 and offset + args.tokens < end
        if not inside or (index.train_position(offset) is None) != is_heldout:
            continue
        query = query_place(trace.searcher, place, args.tokens, Context.DOCUMENT, data)
        learned = learned_steps(trace.history.sighted(trace.searcher, place, args.tokens).sights)
        is_once = len(learned) == 1 and trace.searcher.count(query.ids) == 1 and steps[0] < learned[0] <= steps[-1]
        if is_heldout or is_once:
            found.append((query, 0 if is_heldout else learned[0]))
        if len(found) == args.spans:
            break
    return found


def _score(addresses: list[str], groups: list[list[SpanQuery]]) -> list[np.ndarray]:
    """By group float64 (spans, checkpoints)."""
    flat = [query for group in groups for query in group]
    device, columns = torch.device("cpu"), []
    for address in addresses:
        checkpoint = open_checkpoint(address)
        model = load_model(checkpoint, device)
        start = time.process_time()
        found = score_spans(model, flat, checkpoint.seq_len)
        seconds = time.process_time() - start
        columns.append([sum(score.log_probs_T) for score in found])
    few, start = flat[:: max(1, len(flat) // 64)][:64], time.process_time()
    alone = [sum(span_log_probs(model, query.context_ids, query.ids, checkpoint.seq_len)) for query in few]
    apart = (time.process_time() - start) / len(few)
    together = [columns[-1][flat.index(query)] for query in few]
    print(
        f"one checkpoint: {len(flat):,} spans after {np.mean([len(q.context_ids) for q in flat]):.0f} tokens of context, "
        f"{1e3 * seconds / len(flat):.2f} CPU-ms per span together, {1e3 * apart:.2f} one by one; largest difference "
        f"{np.abs(np.subtract(alone, together)).max():.1e} nats"
    )
    ends = np.cumsum([len(group) for group in groups])
    return np.split(np.array(columns).T, ends[:-1])


def _estimate(steps: list[int], scores: np.ndarray, step: int, to_end: bool) -> tuple[float, float, bool]:
    """(effect, p-value, whether the interval is without 0)."""
    after = next(i for i, saved in enumerate(steps) if saved >= step)
    found = estimate_effect(steps, scores[0], scores[1:], after - 1, len(steps) - 1 if to_end else after)
    return found.effect, found.p_value, not found.low <= 0 <= found.high


def _tell(what: str, found: list[tuple[float, float, bool]]) -> None:
    effects = np.array([effect for effect, _, _ in found])
    error = effects.std(ddof=1) / np.sqrt(len(effects))
    rates = [np.mean([p <= level for _, p, _ in found]) for level in (0.05, 0.2)]
    outside = np.mean([is_outside for _, _, is_outside in found])
    print(
        f"  {what}: mean effect {effects.mean():+.3f} +- {error:.3f} nats; 95 % interval without 0: {100 * outside:.0f} %; "
        f"p <= 0.05: {100 * rates[0]:.0f} %, p <= 0.2: {100 * rates[1]:.0f} %"
    )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
