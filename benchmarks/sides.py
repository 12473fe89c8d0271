"""The sides of train_step.py, each alone in its process: the trainer's own step, and transformers' models tuned by options."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, Watch, default_device, matmul_rate, synchronize
from benchmarks.workload import load, open_loader, rate
from checkpoints.hf_names import ARCHITECTURES, hf_config, to_hf
from olmo_train.config.model import Init, ModelConfig
from olmo_train.config.optim import ParamKind
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Rows
from olmo_train.evaluate import to_device
from olmo_train.metrics import PhaseTimer
from olmo_train.model.shapes import ParamShape, param_shapes
from olmo_train.parallel.mesh import init_distributed
from olmo_train.rng import seed_of
from olmo_train.schema import load_config
from olmo_train.train import build, find_all_problems
from olmo_train.train_step import TrainStep

COMPUTES_OURS = "cross entropy, load-balancing and router z-losses as configured, clipping, guard, update"
COMPUTES_THEIRS = "cross entropy, clipping, update; no load-balancing or z-loss (less work than ours)"


class Side(NamedTuple):
    """What a side gives to the stopwatch."""

    step: Callable[[Rows, float, PhaseTimer], Tensor]
    """Takes an optimizer step; returns the loss as a tensor on the device, which nothing has waited for."""
    loads: Callable[[Rows], Tensor | None]
    """float (L, E), tokens sent to each expert by the routers as they are now; None without routers."""
    facts: dict[str, Any]


@torch.no_grad()
def initial_weight(shape: ParamShape, model: ModelConfig, seed: int, device: torch.device) -> Tensor:
    """A parameter's first value, float32, drawn on `device`: there in a second for 7B parameters, and alike for every side.

    Normal values cut at 3 standard deviations; not the bits of a training run, whose weights are the same on every device.
    """
    if shape.kind == ParamKind.NORM:
        return torch.ones(shape.shape, device=device)
    generator = torch.Generator(device).manual_seed(seed_of("benchmark", seed, shape.name))
    std = model.init_std if model.init == Init.TRUNCATED_NORMAL else model.d_model**-0.5
    return torch.randn(shape.shape, device=device, generator=generator).clamp_(-3, 3).mul_(std)


# ---- ours ------------------------------------------------------------------------------------------------------------------


def build_ours(run: TrainConfig) -> Side:
    """The trainer's own step, built as `olmo train` builds it."""
    layout = init_distributed(run.parallel)
    assert layout.n_ranks == 1
    live = build(run, layout, open_loader(run).order)
    for shape in param_shapes(run.model):
        live.weights[shape.name].fill(initial_weight(shape, run.model, run.seed, layout.device))
    train_step = TrainStep(live.model, live.optimizer, live.guard, layout, run)
    last: dict[str, Tensor] = {}

    def step(rows: Rows, lr: float, timer: PhaseTimer) -> Tensor:
        result = train_step(rows, lr, timer)
        if result.router is not None:
            last["loads"] = result.router.counts
        return result.loss

    facts = {
        "computes": COMPUTES_OURS, "kernels": live.model.kernels.describe(), "compile": run.parallel.compile,
        "weights": str(run.optim.weight_dtype), "moments": str(run.optim.moment_dtype),
    }  # fmt: skip
    return Side(step, lambda _: last.get("loads"), facts)


# ---- transformers ----------------------------------------------------------------------------------------------------------


@dataclass
class PeerOptions:
    """How a model of transformers is tuned."""

    compile: str = "layers"
    """none; layers (each decoder layer: the model's own code then sees that it needs no mask); decoder; model (with the loss)."""
    attention: str = "sdpa"
    """An attn_implementation of transformers, or cudnn: sdpa with no other backend allowed."""
    experts: str = "grouped_mm"
    loss: str = "own"
    """own: transformers' loss; compiled: output projection and cross entropy in one compiled function."""
    recompute: bool = False
    """transformers' gradient checkpointing."""
    mode: str | None = None
    """Of torch.compile."""


def parse_peer(words: Sequence[str]) -> PeerOptions:
    """Options from name=value words.

    Raises:
        ValueError: an unknown name.
    """
    values: dict[str, Any] = dict(word.split("=", 1) for word in words)
    unknown = set(values) - set(PeerOptions.__dataclass_fields__)
    if unknown:
        known = ", ".join(PeerOptions.__dataclass_fields__)
        raise ValueError(f"a peer has no option {', '.join(sorted(unknown))}; it has {known}")
    if "recompute" in values:
        values["recompute"] = values["recompute"].lower() == "true"
    return PeerOptions(**values)


def build_theirs(run: TrainConfig, options: PeerOptions) -> Side:
    """The usual loop around a model of transformers: bf16 weights (float32 on a CPU), fused AdamW with states of that type."""
    device = default_device()
    model = _their_model(run, options, device)
    o = run.optim
    optimizer = torch.optim.AdamW(model.parameters(), o.lr or 0.0, (o.beta1, o.beta2), o.eps, o.weight_decay, fused=True)
    loss_of = _loss_of(model, options)
    micro = run.data.micro_batch_size // run.data.seq_len

    def step(rows: Rows, lr: float, timer: PhaseTimer) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = lr
        with timer.phase("forward_backward"):
            starts = range(0, len(rows.ids), micro)
            losses = []
            for start in starts:
                ids, labels, _ = to_device(rows.slice(start, start + micro), device)
                loss = loss_of(ids, labels) / len(starts)
                loss.backward()
                losses.append(loss.detach())
        with timer.phase("optimizer"):
            if o.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).sum()

    def loads(rows: Rows) -> Tensor | None:
        return _their_loads(model, to_device(rows.slice(0, micro), device)[0])

    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    facts = {"computes": COMPUTES_THEIRS, "kernels": f"attention={options.attention}, experts={options.experts}",
             "compile": options.compile, "weights": dtype, "moments": dtype}  # fmt: skip
    return Side(step, loads, facts)


def _their_model(run: TrainConfig, options: PeerOptions, device: torch.device) -> Any:
    import transformers

    values = hf_config(run.model, run.data.seq_len) | {"pad_token_id": None, "eos_token_id": 0, "use_cache": False}
    attention = "sdpa" if options.attention == "cudnn" else options.attention
    if options.attention == "cudnn":
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    choices = {"attn_implementation": attention, "dtype": dtype}
    if run.model.moe is not None:
        values["output_router_logits"] = False
        choices["experts_implementation"] = options.experts
    kind = values["model_type"]
    with device:
        settings = transformers.AutoConfig.for_model(**values)
        model = getattr(transformers, ARCHITECTURES[kind])._from_config(settings, **choices)
    assert model.config._attn_implementation == attention, model.config._attn_implementation
    weights = {s.name: initial_weight(s, run.model, run.seed, device).to(dtype) for s in param_shapes(run.model)}
    model.load_state_dict(to_hf(weights, run.model, "module"))
    if options.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _compile(model, options)
    return model.train()


def _compile(model: Any, options: PeerOptions) -> None:
    torch._dynamo.config.recompile_limit = 64
    modules = {"none": [], "layers": list(model.model.layers), "decoder": [model.model], "model": [model]}[options.compile]
    for module in modules:
        module.compile(dynamic=False, mode=options.mode)


def _loss_of(model: Any, options: PeerOptions) -> Callable[[Tensor, Tensor], Tensor]:
    """(ids, labels already shifted) -> mean cross entropy."""
    if options.loss == "own":
        return lambda ids, _: model(input_ids=ids, labels=ids).loss

    def head(hidden_BTD: Tensor, w_VD: Tensor, labels_BT: Tensor) -> Tensor:
        logits = nn.functional.linear(hidden_BTD, w_VD).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=-100)

    compiled = torch.compile(head, dynamic=False)
    return lambda ids, labels: compiled(model.model(input_ids=ids).last_hidden_state, model.lm_head.weight, labels)


@torch.no_grad()
def _their_loads(model: Any, ids: Tensor) -> Tensor | None:
    """Loads of the routers on some rows, seen by hooks without compilation."""
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    if not gates:
        return None
    for module in model.modules():
        module._compiled_call_impl = None
    chosen: list[Tensor] = []
    hooks = [gate.register_forward_hook(lambda _m, _i, out: chosen.append(out[2])) for gate in gates]
    model.model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    n_experts = gates[0].weight.shape[0]
    return torch.stack([torch.bincount(ids.flatten(), minlength=n_experts) for ids in chosen]).float()


# ---- the stopwatch ---------------------------------------------------------------------------------------------------------


@dataclass
class Measurement:
    """How long to run a side."""

    settle: int
    """Steps that train and are not counted: compilation, tuning, and a router that has left its random start."""
    steps: int
    budget_s: float
    """For the counted steps; at least 3 are taken."""


def measure_side(config: Sequence[str], peer: Sequence[str] | None, how: Measurement) -> dict[str, Any]:
    """Build a side, train, and return rates, memory and losses as plain values. `peer`: options of transformers' side."""
    run = load(config) if peer is not None else load_config("train", TrainConfig, list(config), find_all_problems)
    device = default_device()
    first_rate = matmul_rate(device)
    begin = time.perf_counter()
    side = build_ours(run) if peer is None else build_theirs(run, parse_peer(peer))
    batches = open_loader(run).steps(1, 10**6)
    losses, step_s = _settle(side, run, batches, how.settle)
    ready_s = time.perf_counter() - begin
    gc.collect()
    gc.freeze()
    gc.disable()  # as the trainer does
    counted, rows = _count(side, run, batches, max(3, min(how.steps, int(how.budget_s / max(step_s, 1e-3)))))
    result = side.facts | counted | {"ready_s": ready_s, "settle": how.settle, "micro_batch_size": run.data.micro_batch_size}
    result["losses"] = [float(loss) for loss in [*losses, *counted["losses"]]]
    loads = side.loads(rows)
    if loads is not None:
        result["busiest_over_mean"] = float((loads.amax(-1) / loads.mean(-1)).mean())
        result["idlest_over_mean"] = float((loads.amin(-1) / loads.mean(-1)).mean())
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result | {"matmul_rates": [first_rate, matmul_rate(device)]}


Batches = Iterator[tuple[int, Rows]]


def _settle(side: Side, run: TrainConfig, batches: Batches, n_steps: int) -> tuple[list[Tensor], float]:
    """Train a few steps; return their losses and the seconds of the last one."""
    device, losses, took = default_device(), [], 0.0
    for _ in range(n_steps):
        number, rows = next(batches)
        begin = time.perf_counter()
        losses.append(side.step(rows, rate(run, number), PhaseTimer(device)))
        synchronize(device)
        took = time.perf_counter() - begin
    return losses, took


def _count(side: Side, run: TrainConfig, batches: Batches, n_steps: int) -> tuple[dict[str, Any], Rows]:
    """Take the counted steps without a synchronisation between them; return what was seen, and the last batch."""
    device = default_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clock, timers, losses = Clock(device), [PhaseTimer(device) for _ in range(n_steps)], []
    with Watch() as watch:
        begin = time.perf_counter()
        clock.mark()
        for timer in timers:
            number, rows = next(batches)
            losses.append(side.step(rows, rate(run, number), timer))
            clock.mark()
        step_s = clock.seconds()
        wall_s = time.perf_counter() - begin
    phases = [timer.read() for timer in timers]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    seen = {"step_s": step_s, "wall_s": wall_s, "losses": losses, "gpu": watch.medians, "peak_gib": peak,
            "forward_backward_s": [phase["forward_backward"] for phase in phases]}  # fmt: skip
    return seen, rows
