"""Tokens per second and GPU on 8 to 1,024 GPUs, predicted from kernel rates and link speeds; and which mesh to choose. No torch.

    python -m benchmarks.scaling_model [--gpus 8 64 1024] [--card 141] [--rate nic=40e9 ...] [name=value of the config ...]

Per block: while it computes, the links gather the next block's weights and reduce the last one's gradients; the longer of the
two counts. What nothing hides: the first gather, the last reduction, the optimizer. Every assumption is a field of `Rates` or a
line of ASSUMPTIONS, and is printed. Nothing here has been measured on more than one GPU.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from olmo_train.config.dtypes import FloatType
from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.model.activations import BYTES
from olmo_train.model.memory import CARDS, RESERVE, moment_bytes, predict, with_micro_batch
from olmo_train.model.shapes import d_head, moe_of_layer, n_kv_heads, param_shapes, vocab_rows, window_of_layer
from olmo_train.model.size import mean_keys
from olmo_train.schema import load_config

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
DEFAULTS = ["run_name=scaling", "model=olmoe_1b_7b", "data=olmoe_mix", "optim=olmoe", "parallel=fsdp"]
ASSUMPTIONS = (
    "routing is balanced enough that no expert delays a layer; ranks are equally fast; data loading and logging cost nothing",
    "weights of one block are gathered ahead; gathers and reductions of one mesh axis share its links one after the other",
    "with replicas, their all-reduce runs beside the gathers: it uses the network, they use NVLink, if a copy fits in a node",
    "gradients are reduced over shards after every micro-step, as the trainer does",
    "memory: olmo_train/model/memory.py with its reserve; the fastest mesh that fits is chosen; within 0.5 %, the simplest",
)


@dataclass(frozen=True)
class Rates:
    """Of one GPU and its links; FLOP/s, bytes/s, seconds. The last word of each description is where the number comes from."""

    experts: float = 474e12
    """Expert MLP with gather, SwiGLU and combine, compiled grouped_mm, forward and backward, 32k tokens. Measured on an H200."""
    attention: float = 586e12
    """Causal attention, flash-attn-4, B 4, T 4096, H 16, C 128, forward and backward. Measured on an H200."""
    projections: float = 650e12
    """Dense products: 81 ms for OLMoE's 32k tokens. Estimated from a bare product's 783e12."""
    head: float = 621e12
    """Output projection with compiled cross entropy, V 50304. Measured on an H200."""
    memory: float = 4.25e12
    """Device memory, read and written. Measured on an H200 by a copy."""
    passes: float = 99.0
    """Times that d_model bf16 values per token and layer pass memory in norms, rotary, residuals, routing: 50 ms of 32k."""
    half_rate_tokens: float = 1024.0
    """Tokens of a micro-batch at which products run at half their rate; the rates above are of 16k or more. Assumed."""
    nvlink: float = 400e9
    """Of collectives within a node, per GPU and direction. Assumed, between 370e9 and 450e9 usual for 8 GPUs with NVSwitch."""
    nic: float = 45e9
    """Network of one GPU, per direction: 400 Gb/s each. Assumed, 90 % of the line."""
    gpus_per_node: float = 8.0
    """Assumed."""
    latency: float = 20e-6
    """Of a collective, whatever its size. Assumed."""
    latency_per_rank: float = 1.5e-6
    """And per rank in it: rings. Assumed."""
    contention: float = 1.03
    """Compute takes so much longer while links are busy, whose kernels take multiprocessors. Assumed."""
    sums_every_micro_step: float = 0.0
    """1: replicas sum their gradients after every micro-step. 0: once a step, as the trainer does while it reduces in float32;
    in bfloat16 it sums every time, so as not to add up in it. Of the code."""
    host: float = 3e-3
    """Per step: clipping, guard, sums over ranks, the launch of the first kernels. Assumed."""


MAY_BE_ZERO = ("passes", "half_rate_tokens", "latency", "latency_per_rank", "sums_every_micro_step", "host")


@dataclass(frozen=True)
class Plan:
    """A choice of layout."""

    shard_size: int
    sequences: int
    """Of a micro-batch."""
    reduce_dtype: FloatType

    def apply(self, run: TrainConfig) -> TrainConfig:
        """The run laid out so."""
        parallel = replace(run.parallel, shard_size=self.shard_size, reduce_dtype=self.reduce_dtype)
        return with_micro_batch(replace(run, parallel=parallel), self.sequences)


@dataclass(frozen=True)
class Times:
    """Seconds of one optimizer step."""

    compute: float
    waiting: float
    """What links add: nothing to compute, and slower compute beside them."""
    optimizer: float
    tokens_per_rank: int

    @property
    def tokens_per_s(self) -> float:
        """Of one GPU."""
        return self.tokens_per_rank / (self.compute + self.waiting + self.optimizer)


# ---- compute -----------------------------------------------------------------------------------------------------------------


def block_seconds(run: TrainConfig, layer: int, rates: Rates) -> float:
    """Forward pass of a block over one micro-batch; its backward pass takes twice as long."""
    model, n = run.model, run.data.micro_batch_size
    d, c, f = model.d_model, d_head(model), model.d_ff or 0
    dense = d * c * (2 * model.n_heads + 2 * n_kv_heads(model))
    experts = 0
    moe = moe_of_layer(model, layer)
    if moe is None:
        dense += 3 * d * f
    else:
        dense += d * moe.n_experts + 3 * d * moe.d_expert * moe.n_shared_experts
        experts = 3 * d * moe.d_expert * moe.top_k
    scores = 2 * model.n_heads * c * mean_keys(run.data.seq_len, window_of_layer(model, layer))
    fill = _fill(n, rates)
    products = 2 * n * (dense / rates.projections + experts / rates.experts + scores / rates.attention) / fill
    return products + n * rates.passes * 2 * d / rates.memory / 3


def head_seconds(run: TrainConfig, rates: Rates) -> float:
    """Output projection and cross entropy, forward and backward."""
    n = run.data.micro_batch_size
    return 6 * n * vocab_rows(run.model) * run.model.d_model / rates.head / _fill(n, rates)


def _fill(n_tokens: int, rates: Rates) -> float:
    """Share of the measured rates that products of so many tokens reach."""
    return min(1.0, n_tokens / (n_tokens + rates.half_rate_tokens) * (16384 + rates.half_rate_tokens) / 16384)


def optimizer_seconds(run: TrainConfig, n_shards: int, rates: Rates) -> float:
    """Weights and moments read and written, gradients read twice (norm and update), by memory."""
    weight, grad = BYTES[run.optim.weight_dtype], BYTES[run.optim.grad_dtype]
    moved = sum(s.size * (2 * weight + 2 * grad) + 2 * moment_bytes(s, 1, run) for s in param_shapes(run.model))
    return moved / n_shards / rates.memory


# ---- links -------------------------------------------------------------------------------------------------------------------


def gather_seconds(size: float, n_ranks: int, rates: Rates) -> float:
    """All-gather of `size` bytes in all, or reduce-scatter of as many, over neighbouring ranks.

    Every GPU takes in what it lacks by NVLink; every node takes in what it lacks by the network cards of all its GPUs.
    """
    if n_ranks == 1:
        return 0.0
    per_node = min(n_ranks, int(rates.gpus_per_node))
    n_nodes = n_ranks / per_node
    within = size * (n_ranks - 1) / n_ranks / rates.nvlink
    across = size * (n_nodes - 1) / n_nodes / (per_node * rates.nic)
    return max(within, across) + _latency(n_ranks, rates)


def all_reduce_seconds(size: float, n_replicas: int, rates: Rates) -> float:
    """All-reduce of `size` bytes of each rank over its replicas, which stand in other nodes: twice through its own card."""
    if n_replicas == 1:
        return 0.0
    return 2 * size * (n_replicas - 1) / n_replicas / rates.nic + _latency(n_replicas, rates)


def _latency(n_ranks: int, rates: Rates) -> float:
    return rates.latency + rates.latency_per_rank * (n_ranks - 1)


# ---- a step ------------------------------------------------------------------------------------------------------------------


def step_times(run: TrainConfig, n_ranks: int, rates: Rates) -> Times:
    """One optimizer step of a run on `n_ranks` GPUs."""
    micro_steps = max(1, run.data.global_batch_size // (run.data.micro_batch_size * n_ranks))
    n_shards = run.parallel.shard_size or n_ranks
    compute, last = _micro_step(run, n_ranks, n_shards, rates)
    # Without sums over replicas a copy of the weights is as good as alone.
    sums_once = not rates.sums_every_micro_step and run.parallel.reduce_dtype == FloatType.FLOAT32
    each = _micro_step(run, n_shards, n_shards, rates)[1] if sums_once else last
    optimizer = optimizer_seconds(run, n_shards, rates) + (rates.host if n_ranks > 1 else 0.0)
    waiting = 0.0 if n_ranks == 1 else (micro_steps - 1) * (each - compute) + last - compute
    return Times(micro_steps * compute, waiting, optimizer, micro_steps * run.data.micro_batch_size)


def _micro_step(run: TrainConfig, n_ranks: int, n_shards: int, rates: Rates) -> tuple[float, float]:
    """(seconds of compute alone, seconds with what the links add) of one forward and backward pass."""
    weight, reduce = BYTES[run.parallel.compute_dtype], BYTES[run.parallel.reduce_dtype]
    sizes = _block_sizes(run.model)
    root = sum(shape.size for shape in param_shapes(run.model) if shape.layer is None)
    gathers = [gather_seconds(size * weight, n_shards, rates) for size in (*sizes, root)]
    reductions = [gather_seconds(size * reduce, n_shards, rates) for size in (*sizes, root)]
    sums = [all_reduce_seconds(size * reduce / n_shards, n_ranks // n_shards, rates) for size in (*sizes, root)]
    forward = [block_seconds(run, layer, rates) for layer in range(run.model.n_layers)]
    head = head_seconds(run, rates)
    slow = rates.contention if n_ranks > 1 else 1.0
    in_node = n_shards <= rates.gpus_per_node
    total = gathers[-1] + gathers[0] + slow * head  # the last block's second gather hides behind the head
    last = len(forward) - 1
    for layer, seconds in enumerate(forward):
        total += max(slow * seconds, gathers[layer + 1] if layer < last else 0.0)
        total += _backward(slow * 2 * seconds, gathers[layer - 1] if layer else 0.0,
                           (reductions[layer + 1], sums[layer + 1]) if layer < last else (0.0, 0.0), in_node)  # fmt: skip
    total += reductions[0] + sums[0] + reductions[-1] + sums[-1]
    return 3 * sum(forward) + head, total


def _backward(seconds: float, gather: float, reduction: tuple[float, float], in_node: bool) -> float:
    """A block's backward pass beside the gather of the next and the reduction of the last, over shards and over replicas."""
    over_shards, over_replicas = reduction
    links = max(gather + over_shards, over_replicas) if in_node else gather + over_shards + over_replicas
    return max(seconds, links)


def _block_sizes(model: ModelConfig) -> list[int]:
    sizes = [0] * model.n_layers
    for shape in param_shapes(model):
        if shape.layer is not None:
            sizes[shape.layer] += shape.size
    return sizes


# ---- choosing ----------------------------------------------------------------------------------------------------------------


def plans(run: TrainConfig, n_ranks: int) -> Iterator[Plan]:
    """Shards of 8, 16, ... GPUs or all, micro-batches of 1, 2, 4, ... sequences that divide the global batch, both reductions."""
    sizes = [size for size in (2**power for power in range(3, 20)) if size <= n_ranks and n_ranks % size == 0] or [n_ranks]
    sequences = 1
    while sequences * run.data.seq_len * n_ranks <= run.data.global_batch_size:
        if run.data.global_batch_size % (sequences * run.data.seq_len * n_ranks) == 0:
            for size in sizes:
                for dtype in (FloatType.FLOAT32, FloatType.BFLOAT16):
                    yield Plan(size, sequences, dtype)
        sequences *= 2


def best_plan(run: TrainConfig, n_ranks: int, rates: Rates, capacity: int) -> tuple[Plan, Times] | None:
    """The fastest plan whose memory fits; of those within 0.5 % the one that reduces in float32, in small micro-batches."""
    found = []
    for plan in plans(run, n_ranks):
        candidate = plan.apply(run)
        if predict(candidate, n_ranks).peak + RESERVE <= capacity:
            found.append((plan, step_times(candidate, n_ranks, rates)))
    if not found:
        return None
    top = max(times.tokens_per_s for _, times in found)
    close = [each for each in found if each[1].tokens_per_s > 0.995 * top]
    return min(close, key=lambda each: (each[0].reduce_dtype != FloatType.FLOAT32, each[0].sequences, each[0].shard_size))


# ---- the command -------------------------------------------------------------------------------------------------------------


def report(run: TrainConfig, gpus: list[int], rates: Rates, capacity: int) -> Iterator[str]:
    """Assumptions, then a line for each number of GPUs."""
    yield "assumed or measured:"
    for field in fields(Rates):
        yield f"  {field.name} = {getattr(rates, field.name):g}"
    yield from (f"  {line}" for line in ASSUMPTIONS)
    alone = replace(run, parallel=replace(run.parallel, shard_size=1))
    base = step_times(with_micro_batch(alone, max(1, 16384 // run.data.seq_len)), 1, rates)
    yield f"one GPU, 16k tokens per micro-batch, compute alone: {base.tokens_per_rank / base.compute:,.0f} tokens/s"
    header = f"{'GPUs':>5} {'shard':>6} {'micro-batch':>12} {'micro-steps':>12} {'reduce':>9}"
    yield f"{header} {'tokens/s/GPU':>13} {'waiting':>8} {'GB':>6}"
    for n_ranks in gpus:
        choice = best_plan(run, n_ranks, rates, capacity)
        if choice is None:
            yield f"{n_ranks:>5}  no layout fits, or data.global_batch_size has less than a sequence for each GPU"
            continue
        plan, times = choice
        step_s = times.compute + times.waiting + times.optimizer
        micro_steps = times.tokens_per_rank // (plan.sequences * run.data.seq_len)
        yield (
            f"{n_ranks:>5} {plan.shard_size:>6} {f'{plan.sequences} x {run.data.seq_len}':>12} {micro_steps:>12} "
            f"{plan.reduce_dtype:>9} {times.tokens_per_s:>13,.0f} "
            f"{times.waiting / step_s:>8.1%} {predict(plan.apply(run), n_ranks).peak / 1e9:>6.1f}"
        )


def main() -> None:
    """Print the prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=list(GPUS))
    parser.add_argument("--card", choices=[card.split()[0] for card in CARDS], default="141", help="GB of memory")
    parser.add_argument("--rate", nargs="+", default=[], metavar="NAME=VALUE", help="other values of Rates")
    args, overrides = parser.parse_known_args()
    words = {word.split("=", 1)[0]: word for word in [*DEFAULTS, *overrides]}
    run = load_config("train", TrainConfig, list(words.values()))
    capacity = next(size for card, size in CARDS.items() if card.startswith(args.card))
    print("\n".join(report(run, args.gpus, parse_rates(args.rate), capacity)))


def parse_rates(words: list[str]) -> Rates:
    """Rates with some values replaced.

    Raises:
        ConfigError: an unknown name or no number.
    """
    known = {field.name for field in fields(Rates)}
    values = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise ConfigError(f"--rate {word}: {value!r} is not a number") from None
        if name not in known or values[name] < 0 or (values[name] == 0 and name not in MAY_BE_ZERO):
            raise ConfigError(f"--rate {word}: give a positive number for one of {', '.join(sorted(known))}")
    return replace(Rates(), **values)


if __name__ == "__main__":
    main()
