"""Tokens per second of generation on a CPU: ours against transformers' `generate`, on the same weights and prompts.

    python benchmarks/generate.py [--models tiny_moe,moe,dense] [--batches 1,8] [--prompts 64,512] [--new 128] [--pairs 5]
                                  [--threads N] [--experts grouped_mm,eager] [--dtype float32]

tiny_moe and tiny_dense are configs of this project; moe (121M parameters, 64 experts, top 8) and dense (50M) are wide enough that
memory sets the pace. Both sides decode greedily, without an end of text, and must give the same tokens; they take turns, so that
a machine whose speed drifts drifts for both, and the first turn is not counted. Each side reads the prompt too. transformers runs
with sdpa attention and the fastest of `--experts` for the case, found by trying each once. Needs the `dev` extra.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import torch

from checkpoints.generate.engine import Limits, generate
from checkpoints.generate.sampling import Sampling
from checkpoints.hf_names import ARCHITECTURES, hf_config, to_hf
from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.kernels.choose import Kernels
from olmo_train.model.init import init_params
from olmo_train.model.shapes import param_shapes
from olmo_train.model.size import count_params
from olmo_train.model.transformer import Transformer
from olmo_train.schema import load_config

MODELS = {
    "tiny_moe": ["model=tiny_moe"],
    "tiny_dense": ["model=tiny_dense"],
    "moe": [
        "model=tiny_moe", "model.d_model=512", "model.n_heads=8", "model.moe.n_experts=64", "model.moe.top_k=8",
        "model.moe.d_expert=256", "model.vocab_size=16384",
    ],
    "dense": [
        "model=tiny_dense", "model.d_model=512", "model.n_layers=8", "model.n_heads=8", "model.d_ff=2048",
        "model.vocab_size=16384",
    ],
}  # fmt: skip
Side = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, new tokens) -> the new tokens of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny_moe,moe,dense")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompts", default="64,512")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--experts", default="grouped_mm,eager", help="candidates of transformers' experts_implementation")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {args.threads} threads, {args.dtype}, {args.new} new tokens, medians of {args.pairs} pairs"
    )
    print(f"{'model':<11}{'batch':>6}{'prompt':>7}{'ours':>10}{'transformers':>14}{'ratio':>7}  {'range':<13}same tokens")
    for name in args.models.split(","):
        config = load_config("train", TrainConfig, ["run_name=benchmark", *MODELS[name]]).model
        dtype = getattr(torch, args.dtype)
        model = build(config, dtype)
        theirs = {how: transformers_side(model, how, dtype) for how in (args.experts.split(",") if config.moe else ["none"])}
        print(f"{name}: {count_params(config).total:,} parameters, {count_params(config).active:,} active")
        for batch in map(int, args.batches.split(",")):
            for length in map(int, args.prompts.split(",")):
                prompts = torch.randint(
                    0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(batch)
                ).tolist()
                compare(name, our_side(model), theirs, prompts, args)


def compare(name: str, ours: Side, theirs: dict[str, Side], prompts: list[list[int]], args: argparse.Namespace) -> None:
    """Print one line."""
    trials = {how: timed(side, prompts, args.new)[0] for how, side in theirs.items()}
    other = theirs[min(trials, key=trials.__getitem__)]
    timed(ours, prompts, args.new)
    pairs = [(timed(ours, prompts, args.new), timed(other, prompts, args.new)) for _ in range(args.pairs)]
    tokens = len(prompts) * args.new
    mine, its = (tokens / median(pair[side][0] for pair in pairs) for side in (0, 1))
    ratios = sorted(pair[1][0] / pair[0][0] for pair in pairs)
    same = sum(a == b for a, b in zip(pairs[0][0][1], pairs[0][1][1], strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"{name:<11}{len(prompts):>6}{len(prompts[0]):>7}{mine:>10.1f}{its:>14.1f}{median(ratios):>7.2f}  {spread:<13}"
          f"{same} of {len(prompts)} rows", flush=True)  # fmt: skip


def timed(side: Side, prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
    begin = time.perf_counter()
    tokens = side(prompts, new)
    return time.perf_counter() - begin, tokens


# ---- the two sides ---------------------------------------------------------------------------------------------------------


def build(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """Initial weights with a larger deviation, so that the most probable token leads by more than rounding."""
    model = Transformer(config, Kernels("sdpa", "loop", "chunked"))
    init_params(model, param_shapes(config), config, seed=0)
    return model.to(dtype).eval()


def our_side(model: Transformer) -> Side:
    greedy = Sampling(temperature=0)

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        limits = Limits(max_tokens=new, context=len(prompts[0]) + new)
        return [sample.tokens for sample in generate(model, prompts, limits, greedy)]

    return run


def transformers_side(model: Transformer, experts: str, dtype: torch.dtype) -> Side:
    import transformers

    values = hf_config(model.config, 4096) | {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
    settings = transformers.AutoConfig.for_model(**values)
    choices: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": dtype}
    if model.config.moe is not None:
        choices["experts_implementation"] = experts
    other = getattr(transformers, ARCHITECTURES[values["model_type"]])._from_config(settings, **choices)
    other.load_state_dict(to_hf(dict(model.named_parameters()), model.config, "module"))
    other.eval()

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = other.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return out[:, ids.shape[1] :].tolist()

    return run


if __name__ == "__main__":
    main()
