"""Parameters and floating-point operations of a model, from its config alone; no torch. `olmo size model=olmoe_1b_7b`."""

from dataclasses import dataclass

from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.errors import run_command
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
        attention += 4 * model.n_heads * c * _mean_keys(seq_len, window_of_layer(model, layer))
    return 6 * multiply_adds + 3 * attention


def _mean_keys(seq_len: int, window: int | None) -> float:
    """Keys a query sees, averaged over the positions of a sequence."""
    w = min(window or seq_len, seq_len)
    return (w * (w + 1) / 2 + (seq_len - w) * w) / seq_len


def main(argv: list[str]) -> None:
    """Print the size of the model that the overrides describe."""
    run = load_config("train", TrainConfig, ["run_name=size", *argv])
    counts = count_params(run.model)
    flops = flops_per_token(run.model, run.data.seq_len)
    rows = [
        ("parameters", f"{counts.total:,}"),
        ("active per token", f"{counts.active:,}"),
        (
            "active without input embedding",
            f"{counts.active - (0 if run.model.tie_embeddings else counts.embedding):,}",
        ),
        (f"training FLOPs per token at {run.data.seq_len}", f"{flops:,.0f} ({flops / 1e9:.4f} GFLOP)"),
        ("fp32 weights, gradients, AdamW moments", f"{counts.total * 16 / 2**30:,.1f} GiB over all ranks of one copy"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print(f"FLOPs: {FLOPS_CONVENTION}.")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
