"""Parameters, floating-point operations and memory of a run, from its config alone; no torch.

olmo size [--ranks 8] [--json] model=olmoe_1b_7b data=olmoe_mix parallel=fsdp [name=value ...]
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError, run_command
from olmo_train.model.memory import CARDS, RESERVE, Memory, largest_micro_batch, predict
from olmo_train.model.recipes import MARGIN_FRAC, Choice, choose
from olmo_train.model.shapes import d_head, moe_of_layer, n_kv_heads, param_shapes, vocab_rows, window_of_layer
from olmo_train.schema import load_config

FLOPS_CONVENTION = (
    "forward and backward, matrix products and causal attention only (each query with the keys it may see), 2 per multiply-add; "
    "embedding lookup, norms, router softmax and recompute count nothing"
)


@dataclass(frozen=True)
class ParamCounts:
    """Parameters of a model."""

    total: int
    active: int
    """Used by one token: all but the experts it is not routed to."""
    embedding: int
    """In the input embedding."""


def count_params(model: ModelConfig) -> ParamCounts:
    """Count parameters. OLMoE-1B-7B: 6,919,161,856 in all, 1,282,017,280 active."""
    total = sum(shape.size for shape in param_shapes(model))
    idle = 0
    for layer in range(model.n_layers):
        moe = moe_of_layer(model, layer)
        if moe is not None:
            idle += (moe.n_experts - moe.top_k) * 3 * moe.d_expert * model.d_model
    return ParamCounts(total, total - idle, vocab_rows(model) * model.d_model)


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Training FLOPs per token, averaged over a sequence of `seq_len`; the convention is FLOPS_CONVENTION.

    OLMoE-1B-7B at 4096: 7.8787e9. Source: PaLM (arXiv 2204.02311) appendix B, with causal attention counted once.
    """
    d, c = model.d_model, d_head(model)
    multiply_adds = float(vocab_rows(model) * d)
    attention = 0.0
    for layer in range(model.n_layers):
        multiply_adds += d * c * (2 * model.n_heads + 2 * n_kv_heads(model))
        moe = moe_of_layer(model, layer)
        if moe is None:
            multiply_adds += 3 * d * (model.d_ff or 0)
        else:
            multiply_adds += 3 * d * moe.d_expert * (moe.top_k + moe.n_shared_experts) + d * moe.n_experts
        attention += 4 * model.n_heads * c * mean_keys(seq_len, window_of_layer(model, layer))
    return 6 * multiply_adds + 3 * attention


def mean_keys(seq_len: int, window: int | None) -> float:
    """Keys a query sees, averaged over the positions of a sequence."""
    w = min(window or seq_len, seq_len)
    return (w * (w + 1) / 2 + (seq_len - w) * w) / seq_len


# ---- the command -----------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    """Print the size of the model that the overrides describe, and the memory that one GPU needs to train it."""
    parser = argparse.ArgumentParser("olmo size", description=__doc__)
    parser.add_argument("--ranks", type=int, help="GPUs of the run; without it parallel.shard_size, or 1")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object, bytes as numbers")
    args, overrides = parser.parse_known_args(argv)
    if args.ranks is not None and args.ranks < 1:
        raise ConfigError(f"--ranks={args.ranks} must be at least 1")
    run = load_config("train", TrainConfig, ["run_name=size", *overrides], lambda run: _find_problems(run, args.ranks))
    n_ranks = args.ranks or run.parallel.shard_size or 1
    memory = predict(run, n_ranks)
    choices = {card: choose(run, n_ranks, capacity) for card, capacity in CARDS.items()}
    if args.json:
        print(json.dumps(_as_json(run, n_ranks, memory, choices)))
    else:
        print(
            "\n".join(
                [*_model_lines(run), "", *_memory_lines(run, n_ranks, memory), "", *_card_lines(run, n_ranks, memory, choices)]
            )
        )


def _find_problems(run: TrainConfig, n_ranks: int | None) -> list[str]:
    problems = []
    shard_size, data = run.parallel.shard_size, run.data
    if n_ranks is not None and shard_size is not None and n_ranks % max(shard_size, 1):
        problems.append(f"parallel.shard_size={shard_size} does not divide --ranks={n_ranks}; change one")
    if data.micro_batch_size % data.seq_len:
        problems.append(
            f"data.micro_batch_size={data.micro_batch_size} is not a multiple of data.seq_len={data.seq_len}; "
            f"nearest: {max(1, round(data.micro_batch_size / data.seq_len)) * data.seq_len}"
        )
    return problems


def _model_lines(run: TrainConfig) -> list[str]:
    counts = count_params(run.model)
    flops = flops_per_token(run.model, run.data.seq_len)
    without = counts.active - (0 if run.model.tie_embeddings else counts.embedding)
    rows = [
        ("parameters", f"{counts.total:,}"),
        ("active per token", f"{counts.active:,}"),
        ("active without input embedding", f"{without:,}"),
        (f"training FLOPs per token at {run.data.seq_len}", f"{flops:,.0f} ({flops / 1e9:.4f} GFLOP)"),
    ]
    return [*_aligned(rows), f"FLOPs: {FLOPS_CONVENTION}."]


def _memory_lines(run: TrainConfig, n_ranks: int, memory: Memory) -> list[str]:
    n_shards = run.parallel.shard_size or n_ranks
    sequences = run.data.micro_batch_size // run.data.seq_len
    how = f"{'compiled' if run.parallel.compile else 'eager'}, recompute {run.parallel.recompute}"
    title = (
        f"memory of one GPU of {n_ranks}, {n_shards} to a copy of the weights, micro-batches of {sequences} x {run.data.seq_len} "
        f"tokens, {how}, weights {run.optim.weight_dtype}, moments {run.optim.moment_dtype}; predicted, GB"
    )
    rows = [(name, _gb(size)) for name, size in memory.states.items()]
    rows += [("kept for the backward pass:", "")] + [(f"  {name}", _gb(size)) for name, size in memory.kept.items()]
    rows += [(f"at the fullest, {memory.fullest}:", "")]
    rows += [(f"  {name}", _gb(size)) for name, size in memory.phases[memory.fullest].items()]
    rows += [("  together", _gb(memory.peak)), ("reserve (CUDA, NCCL, fragmentation)", _gb(RESERVE))]
    return [title, *_aligned(rows)]


def _card_lines(run: TrainConfig, n_ranks: int, memory: Memory, choices: dict[str, Choice | None]) -> list[str]:
    lines = []
    for card, capacity in CARDS.items():
        tokens = largest_micro_batch(run, n_ranks, capacity - RESERVE)
        verdict = "fits" if memory.peak + RESERVE <= capacity else "does not fit"
        largest = f"largest micro-batch {tokens // run.data.seq_len} x {run.data.seq_len}" if tokens else "nor does one sequence"
        lines.append(f"{card}: {verdict}; {largest}")
        choice = choices[card]
        advice = "no recipe fits; shard over more GPUs" if choice is None else f"{choice.recipe.words()} ({_gb(choice.peak)} GB)"
        lines.append(f"  predicted to fit with {100 * MARGIN_FRAC:.0f} % to spare, nearest to float32: {advice}")
    return lines


def _as_json(run: TrainConfig, n_ranks: int, memory: Memory, choices: dict[str, Choice | None]) -> dict[str, Any]:
    cards = {}
    for card, capacity in CARDS.items():
        choice = choices[card]
        cards[card] = {
            "capacity": capacity,
            "fits": memory.peak + RESERVE <= capacity,
            "largest_micro_batch": largest_micro_batch(run, n_ranks, capacity - RESERVE),
            "recipe": choice and {"words": choice.recipe.words().split(), "peak": choice.peak},
        }
    return {
        "params": vars(count_params(run.model)), "flops_per_token": flops_per_token(run.model, run.data.seq_len),
        "n_ranks": n_ranks, "shard_size": run.parallel.shard_size or n_ranks, "micro_batch_size": run.data.micro_batch_size,
        "states": memory.states, "kept": memory.kept, "phases": memory.phases, "fullest": memory.fullest, "peak": memory.peak,
        "reserve": RESERVE, "cards": cards,
    }  # fmt: skip


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
