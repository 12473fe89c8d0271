"""The work that benchmarks give to every side: config, synthetic corpus, batches and learning rates. No torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Loader, open_sources
from olmo_train.data.order import DataOrder
from olmo_train.data.shards import ShardWriter, WriterOptions, dtype_for
from olmo_train.model.recipes import choose
from olmo_train.model.size import count_params
from olmo_train.optim.schedule import multiplier
from olmo_train.schema import load_config

_BOTH = [
    "run_name=benchmark", "data=demo", "data.repetition_mask=null", "optim.skip=null", "eval.eval_every=null",
    "max_tokens=1_000_000_000",
]  # fmt: skip
_GPU = [
    "model=olmoe_1b_7b", "optim=olmoe", "parallel=fsdp", "data.seq_len=4096", "data.global_batch_size=32768",
    "data.micro_batch_size=32768", "optim.schedule={kind: constant, warmup_tokens: 655360, warmup_start_frac: 0.1}",
]  # fmt: skip
_CPU = [
    "model=tiny_moe", "model.d_model=64", "model.n_layers=2", "model.vocab_size=500", "model.moe.d_expert=32",
    "model.moe.n_experts=8", "model.moe.top_k=2", "data.seq_len=64", "data.global_batch_size=512", "data.micro_batch_size=512",
    "optim.schedule={kind: constant, warmup_tokens: 2048}",
]  # fmt: skip


def compose(on_gpu: bool, overrides: Sequence[str]) -> list[str]:
    """Overrides of a benchmark run: OLMoE-1B-7B at sequences of 4096 on a GPU, a tiny model on a CPU; later words win."""
    words = merge([*_BOTH, *(_GPU if on_gpu else _CPU)], overrides)
    if not on_gpu:
        return words
    if any(word.startswith("model=olmo2") for word in words):
        return merge(["optim=olmo2"], [word for word in words if word != "optim=olmoe"])
    if any(word.startswith("model=olmoe") for word in words):
        return merge(["model.moe.load_balancing_scope=local"], words)  # as OLMoE was trained
    return words


def merge(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Overrides by name, the later ones in the place of the earlier."""
    return list({word.split("=", 1)[0].lstrip("+"): word for word in [*words, *overrides]}.values())


def recipe_words(words: Sequence[str], memory_gib: float | None) -> list[str]:
    """Number formats nearest to float32 that fit a card beside the config's micro-batch, as `olmo size` recommends them.

    A tenth of the card is left for the tuning of kernels, which copies their operands.
    """
    if memory_gib is None:
        return []
    choice = choose(load(words), 1, int(0.9 * memory_gib * 2**30))
    return [] if choice is None else choice.recipe.words().split()


def rows_to_try(words: Sequence[str], asked: Sequence[str], memory_gib: float | None, is_peer: bool) -> list[int]:
    """Sequences per micro-batch, the largest first; of a GPU only, and unless `asked` (the user's words) has a size."""
    run = load(words)
    if memory_gib is None or any(word.startswith("data.micro_batch_size=") for word in asked):
        return [run.data.micro_batch_size // run.data.seq_len]
    largest = run.data.global_batch_size // run.data.seq_len
    if memory_gib < 100 and count_params(run.model).total > 3e9:
        largest = min(largest, 2 if is_peer else 4)  # transformers' OLMoE takes 86 GiB for 4 rows
    return [rows for rows in (16, 8, 4, 2, 1) if rows <= largest and run.data.global_batch_size % (rows * run.data.seq_len) == 0]


def load(config: Sequence[str]) -> TrainConfig:
    """The training config of some overrides."""
    return load_config("train", TrainConfig, list(config))


def open_loader(run: TrainConfig) -> Loader:
    """The same batches for all sides."""
    order = DataOrder(open_sources(run.data, Path(run.run_dir)), run.seed, run.data.seq_len, run.data.global_batch_size)
    return Loader(order, run.data, 0, 1)


def rate(run: TrainConfig, step: int) -> float:
    """Learning rate of a step, of all sides."""
    assert run.optim.lr is not None
    return float(run.optim.lr * multiplier(run.optim.schedule, step * run.data.global_batch_size, run.max_tokens))


def write_corpus(folder: Path, config: Sequence[str], n_steps: int) -> None:
    """Documents of a random language: each id has 8 likely followers, ids fall off like 1/rank. Learnable, not trivial."""
    run = load(config)
    vocab = run.model.vocab_size
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, vocab)
    followers = rng.choice(np.arange(1, vocab), size=(vocab, 8), p=weights / weights.sum())
    n_tokens = (n_steps + 1) * run.data.global_batch_size
    with ShardWriter(folder, WriterOptions(dtype_for(vocab), vocab, 0)) as writer:
        written = number = 0
        while written < n_tokens:
            choices = rng.integers(0, 8, size=int(rng.integers(100, 2000)))
            ids, at = [], int(rng.integers(1, vocab))
            for choice in choices.tolist():
                at = int(followers[at, choice])
                ids.append(at)
            writer.add("synthetic", (f"doc{number}", "", number + 1), np.array([*ids, 0]), len(ids))
            written, number = written + len(ids) + 1, number + 1
        writer.close()
