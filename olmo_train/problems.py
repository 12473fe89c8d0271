"""Everything that can be wrong with a run's values together, before anything is allocated. Types and names: schema.py."""

from collections.abc import Iterator
from pathlib import Path

from olmo_train.config.data import WithoutConfig
from olmo_train.config.dtypes import FloatType, MomentType
from olmo_train.config.faults import DrillConfig
from olmo_train.config.model import ModelConfig, MoEConfig
from olmo_train.config.optim import OptimConfig, ScheduleKind
from olmo_train.config.train import ParallelConfig, TrainConfig


def find_problems(run: TrainConfig, n_ranks: int) -> list[str]:
    """All problems of a run on `n_ranks` ranks, each as: dotted name, value, rule, remedy."""
    return [
        *_model(run.model),
        *_batch(run, n_ranks),
        *_sources(run),
        *_optim(run.optim, run),
        *_parallel(run.parallel, n_ranks),
        *_faults(run),
        *_rest(run),
    ]


def _model(model: ModelConfig) -> Iterator[str]:
    positive = (
        "d_model",
        "n_layers",
        "n_heads",
        "vocab_size",
        "norm_eps",
        "rope_theta",
        "init_std",
        "init_cutoff_factor",
        "full_attention_every",
    )
    for name in positive:
        yield from _positive(f"model.{name}", getattr(model, name))
    for name in ("n_kv_heads", "d_head", "d_ff", "padded_vocab_size", "sliding_window", "clip_qkv"):
        if getattr(model, name) is not None:
            yield from _positive(f"model.{name}", getattr(model, name))
    if min(model.n_heads, model.d_model) < 1:
        return
    if model.d_head is None and model.d_model % model.n_heads:
        yield (
            f"model.d_model={model.d_model} is not a multiple of model.n_heads={model.n_heads}; change one, or give model.d_head"
        )
    elif (model.d_head or model.d_model // model.n_heads) % 2:
        yield (
            f"model.d_head={model.d_head or model.d_model // model.n_heads} is odd; rotary positions turn pairs, so "
            "it must be even"
        )
    if model.n_kv_heads and model.n_heads % model.n_kv_heads:
        yield (
            f"model.n_kv_heads={model.n_kv_heads} does not divide model.n_heads={model.n_heads}; each kv head serves "
            "the same number of query heads"
        )
    if model.padded_vocab_size is not None and model.padded_vocab_size < model.vocab_size:
        yield (
            f"model.padded_vocab_size={model.padded_vocab_size} is less than model.vocab_size={model.vocab_size}; "
            "give at least as many rows"
        )
    if model.rope_yarn is not None:
        yield from _positive("model.rope_yarn.factor", model.rope_yarn.factor)
        yield from _positive("model.rope_yarn.original_seq_len", model.rope_yarn.original_seq_len)
    if model.moe is not None:
        yield from _moe(model.moe, model.n_layers)
    if model.d_ff is None and (model.moe is None or model.moe.n_dense_layers > 0):
        yield "model.d_ff=null, but there are dense layers; give the hidden width of their feed-forward"


def _moe(moe: MoEConfig, n_layers: int) -> Iterator[str]:
    for name in ("n_experts", "top_k", "d_expert"):
        yield from _positive(f"model.moe.{name}", getattr(moe, name))
    for name in (
        "n_shared_experts",
        "n_dense_layers",
        "load_balancing_loss_weight",
        "router_z_loss_weight",
        "bias_update_rate",
    ):
        yield from _not_negative(f"model.moe.{name}", getattr(moe, name))
    if moe.top_k > moe.n_experts:
        yield (
            f"model.moe.top_k={moe.top_k} is more than model.moe.n_experts={moe.n_experts}; a token takes each expert "
            "at most once"
        )
    if moe.n_dense_layers >= n_layers:
        yield (
            f"model.moe.n_dense_layers={moe.n_dense_layers} leaves no MoE layer of model.n_layers={n_layers}; use "
            "model.moe=null for a dense model"
        )


def _batch(run: TrainConfig, n_ranks: int) -> Iterator[str]:
    data = run.data
    bad = [*_positive("data.seq_len", data.seq_len), *_positive("data.global_batch_size", data.global_batch_size)]
    bad += _positive("data.micro_batch_size", data.micro_batch_size)
    yield from bad
    if bad:
        return
    if data.seq_len < 2:
        yield f"data.seq_len={data.seq_len}: an instance needs at least 2 tokens, one to see and one to predict"
    if data.micro_batch_size % data.seq_len:
        yield (
            f"data.micro_batch_size={data.micro_batch_size} tokens is not a multiple of data.seq_len={data.seq_len}; "
            f"nearest: {_nearest(data.micro_batch_size, data.seq_len)}"
        )
    unit = data.micro_batch_size * n_ranks
    if data.global_batch_size % unit:
        yield (
            f"data.global_batch_size={data.global_batch_size} tokens is not a multiple of micro_batch_size * n_ranks = "
            f"{data.micro_batch_size} * {n_ranks} = {unit}; nearest: {_nearest(data.global_batch_size, unit)}"
        )
    if run.max_tokens < data.global_batch_size:
        yield f"max_tokens={run.max_tokens} is less than one step of data.global_batch_size={data.global_batch_size} tokens"
    mask = data.repetition_mask
    if mask is not None:
        for name in ("min_period", "max_period", "max_count"):
            yield from _positive(f"data.repetition_mask.{name}", getattr(mask, name))
        if mask.max_period < mask.min_period:
            yield f"data.repetition_mask.max_period={mask.max_period} is less than min_period={mask.min_period}"
    if data.without is not None:
        yield from _without(data.without, run.max_tokens // data.global_batch_size)
    yield from _positive("data.prefetch", data.prefetch)


def _without(without: WithoutConfig, last_step: int) -> Iterator[str]:
    if not without.documents:
        yield "data.without.documents is empty; give ids of documents, or data.without=null"
    yield from _not_negative("data.without.after_step", without.after_step)
    if without.after_step >= last_step > 0:
        yield (
            f"data.without.after_step={without.after_step}, but the run ends after step {last_step}, so nothing would be left "
            "out; give an earlier step"
        )


def _sources(run: TrainConfig) -> Iterator[str]:
    sources = run.data.sources
    if not sources:
        yield "data.sources is empty; give a source, e.g. data.sources.web.path=shards/web"
    weighted = [name for name, source in sources.items() if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        without = [name for name in sources if name not in weighted]
        yield f"data.sources.{without[0]}.weight=null while {weighted[0]} has a weight; give all sources a weight or none"
    for name, source in sources.items():
        here = f"data.sources.{name}"
        if source.weight is not None:
            yield from _positive(f"{here}.weight", source.weight)
        if (source.path is None) == (source.files is None):
            yield f"{here}: give either path (a folder with a manifest) or files (globs of published shards)"
        elif source.path is not None and not Path(source.path).exists():
            yield (
                f"{here}.path={source.path} does not exist; write shards with `olmo data tokenize` or a manifest with "
                "`olmo data manifest`"
            )
        if source.files is not None and source.dtype not in ("uint8", "uint16", "uint32", "uint64"):
            yield f"{here}.dtype={source.dtype} is not one of uint8, uint16, uint32, uint64; the files themselves do not say it"
        if source.files is not None and source.select is not None:
            yield f"{here}.select={source.select} goes with path; files are one source"


def _optim(optim: OptimConfig, run: TrainConfig) -> Iterator[str]:
    if optim.lr is None and run.load is None:
        yield "optim.lr=null takes the rate at which a loaded checkpoint stopped, and load is null; give a rate or load.path"
    if optim.lr is not None:
        yield from _positive("optim.lr", optim.lr)
    yield from _positive("optim.eps", optim.eps)
    yield from _positive("optim.max_skips_in_a_row", optim.max_skips_in_a_row)
    if optim.max_grad_norm is not None:
        yield from _positive("optim.max_grad_norm", optim.max_grad_norm)
    yield from _not_negative("optim.weight_decay", optim.weight_decay)
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            yield f"optim.{name}={getattr(optim, name)} is not in [0, 1)"
    yield from _number_formats(optim, run)
    yield from _muon(optim)
    schedule = optim.schedule
    for name in ("warmup_start_frac", "final_frac"):
        if not 0 <= getattr(schedule, name) <= 1:
            yield f"optim.schedule.{name}={getattr(schedule, name)} is not in [0, 1]"
    yield from _not_negative("optim.schedule.warmup_tokens", schedule.warmup_tokens)
    if schedule.warmup_tokens >= run.max_tokens > 0:
        yield (
            f"optim.schedule.warmup_tokens={schedule.warmup_tokens} is not less than max_tokens={run.max_tokens}; the "
            "run would end warming up"
        )
    if schedule.decay_tokens is not None:
        yield from _positive("optim.schedule.decay_tokens", schedule.decay_tokens)
        if schedule.kind == ScheduleKind.WSD and schedule.decay_tokens + schedule.warmup_tokens > run.max_tokens:
            yield (
                f"optim.schedule: warm-up and decay ({schedule.warmup_tokens} + {schedule.decay_tokens} tokens) are "
                f"more than max_tokens={run.max_tokens}"
            )
        elif schedule.kind in (ScheduleKind.COSINE, ScheduleKind.LINEAR) and schedule.decay_tokens <= schedule.warmup_tokens:
            yield f"optim.schedule.decay_tokens={schedule.decay_tokens} must be after warmup_tokens={schedule.warmup_tokens}"
    if schedule.kind == ScheduleKind.WSD and schedule.decay_tokens is None:
        yield "optim.schedule.decay_tokens=null: wsd needs the length of its final decay (use kind=constant for none)"
    if optim.skip is not None:
        yield from _positive("optim.skip.sigma", optim.skip.sigma)
        if not 2 <= optim.skip.min_history <= optim.skip.window:
            yield f"optim.skip.min_history={optim.skip.min_history} is not between 2 and optim.skip.window={optim.skip.window}"


def _number_formats(optim: OptimConfig, run: TrainConfig) -> Iterator[str]:
    parallel, has_bf16_weights = run.parallel, optim.weight_dtype == FloatType.BFLOAT16
    if has_bf16_weights and parallel.compute_dtype != FloatType.BFLOAT16:
        yield (
            f"optim.weight_dtype=bfloat16 with parallel.compute_dtype={parallel.compute_dtype}: float32 copies of rounded "
            "weights gain nothing; use parallel.compute_dtype=bfloat16, or optim.weight_dtype=float32"
        )
    if optim.grad_dtype == FloatType.BFLOAT16 and not has_bf16_weights:
        yield (
            f"optim.grad_dtype=bfloat16 with optim.weight_dtype={optim.weight_dtype}: gradients are added up in the weights' "
            "format or a finer one; use grad_dtype=float32, or weight_dtype=bfloat16"
        )
    is_added_unreduced = not parallel.reduce_every_micro_step and parallel.compute_dtype == FloatType.BFLOAT16
    if is_added_unreduced and parallel.reduce_dtype == FloatType.BFLOAT16 and optim.grad_dtype == FloatType.FLOAT32:
        yield (
            "optim.grad_dtype=float32 with parallel.reduce_dtype=bfloat16 and reduce_every_micro_step=false: whole gradients are "
            "added up in the format in which they are reduced; use reduce_dtype=float32 or reduce_every_micro_step=true"
        )


def _muon(optim: OptimConfig) -> Iterator[str]:
    muon = optim.muon
    if muon is None:
        return
    yield from _positive("optim.muon.n_iterations", muon.n_iterations)
    if not 0 <= muon.momentum < 1:
        yield f"optim.muon.momentum={muon.momentum} is not in [0, 1)"
    if muon.lr is not None:
        yield from _positive("optim.muon.lr", muon.lr)
        if optim.lr is None:
            yield (
                f"optim.muon.lr={muon.lr} with optim.lr=null: the matrices' rate is a multiple of optim.lr all through the "
                "schedule; give both or neither"
            )
    if optim.moment_dtype == MomentType.INT8:
        yield "optim.moment_dtype=int8 with optim.muon: the momentum is float32 or bfloat16; use moment_dtype=bfloat16"


def _parallel(parallel: ParallelConfig, n_ranks: int) -> Iterator[str]:
    if parallel.shard_size is not None and (parallel.shard_size < 1 or n_ranks % parallel.shard_size):
        divisors = [n for n in range(1, n_ranks + 1) if n_ranks % n == 0]
        yield (
            f"parallel.shard_size={parallel.shard_size} does not divide the number of ranks {n_ranks}; it may be "
            f"{', '.join(map(str, divisors))}"
        )
    yield from _positive("parallel.timeout_s", parallel.timeout_s)
    yield from _not_negative("parallel.prefetch", parallel.prefetch)
    if parallel.threads_per_rank is not None:
        yield from _positive("parallel.threads_per_rank", parallel.threads_per_rank)


def _faults(run: TrainConfig) -> Iterator[str]:
    faults = run.faults
    for name in ("hang_s", "hang_at_start_s", "silent_s", "straggler_frac"):
        yield from _positive(f"faults.{name}", getattr(faults, name))
    if faults.hang_at_start_s < faults.hang_s:
        yield (
            f"faults.hang_at_start_s={faults.hang_at_start_s} is less than faults.hang_s={faults.hang_s}, but a start takes "
            "longer than a step; give at least as much"
        )
    for name in ("replica_check_every", "replay_check_every"):
        if getattr(faults, name) is not None:
            yield from _positive(f"faults.{name}", getattr(faults, name))
    if faults.replica_check_every is not None and run.parallel.shard_size is None:
        yield (
            f"faults.replica_check_every={faults.replica_check_every} compares replicas, but with parallel.shard_size=null all "
            "ranks share one copy of the parameters; give a shard_size, or replica_check_every=null"
        )
    if not 0 <= faults.replay_tolerance < 1:
        yield f"faults.replay_tolerance={faults.replay_tolerance} is not in [0, 1): it is a fraction of the norm"
    for i, drill in enumerate(faults.drill):
        yield from _drill(f"faults.drill[{i}]", drill, run.max_tokens // max(run.data.global_batch_size, 1))


def _drill(here: str, drill: DrillConfig, last_step: int) -> Iterator[str]:
    yield from _positive(f"{here}.step", drill.step)
    yield from _positive(f"{here}.seconds", drill.seconds)
    if drill.step > last_step > 0:
        yield f"{here}.step={drill.step}, but the run ends after step {last_step}; give an earlier step"
    if drill.node is None and drill.rank is None:
        yield f"{here}.rank=null and node=null: nobody would fail; give one of them"
    if drill.rank is not None:
        yield from _not_negative(f"{here}.rank", drill.rank)


def _rest(run: TrainConfig) -> Iterator[str]:
    for name, value in {
        "checkpoint.save_every": run.checkpoint.save_every, "checkpoint.max_failures": run.checkpoint.max_failures,
        "metrics.log_every": run.metrics.log_every, "eval.max_instances": run.eval.max_instances, "gc_every": run.gc_every,
    }.items():  # fmt: skip
        yield from _positive(name, value)
    for name, optional in {
        "checkpoint.ephemeral_every": run.checkpoint.ephemeral_every, "eval.eval_every": run.eval.eval_every,
        "stop_at_step": run.stop_at_step, "eval.task_max_requests": run.eval.task_max_requests,
        "metrics.peak_flops": run.metrics.peak_flops,
    }.items():  # fmt: skip
        if optional is not None:
            yield from _positive(name, optional)
    yield from _places(run)
    if run.eval.tasks and run.eval.eval_every is None:
        yield "eval.tasks is set, but with eval.eval_every=null they never run; give eval.eval_every"
    if run.load is not None and not Path(run.load.path, "manifest.json").is_file():
        is_other = Path(run.load.path, "config.json").is_file()
        remedy = (
            f"`olmo convert {run.load.path} FOLDER --to step` makes one of it"
            if is_other
            else "e.g. runs/base/steps/step00001000"
        )
        yield f"load.path={run.load.path} is not a step folder (it has no manifest.json); {remedy}"
    if "/" in run.run_name or run.run_name in ("", ".", ".."):
        yield f"run_name={run.run_name!r} must be a plain folder name; set run_dir to write elsewhere"


def _places(run: TrainConfig) -> Iterator[str]:
    """Where checkpoints go and which stay."""
    config, run_dir = run.checkpoint, Path(run.run_dir).absolute()
    if config.keep_ephemeral < 1:
        yield f"checkpoint.keep_ephemeral={config.keep_ephemeral}: keep at least 1, or there is nothing to resume from"
    if config.keep_local is not None and config.keep_local < 1:
        yield f"checkpoint.keep_local={config.keep_local}: keep at least 1, or there is nothing to resume from"
    if config.keep_local is not None and config.mirror is None:
        yield (
            f"checkpoint.keep_local={config.keep_local} deletes what a mirror holds, and checkpoint.mirror=null; give "
            "checkpoint.mirror, or keep_local=null"
        )
    for name, place in (("stage_dir", config.stage_dir), ("mirror", config.mirror)):
        if place is None or "://" in place:
            continue
        if not place or Path(place).absolute().is_relative_to(run_dir):
            yield f"checkpoint.{name}={place} must be a folder outside of run_dir={run.run_dir}; give another, or null"
    if config.mirror is not None and "@" in config.mirror.partition("://")[2].split("/", 1)[0]:
        yield (
            "checkpoint.mirror holds credentials, which would be saved with every checkpoint; give them by the environment or "
            "fsspec's configuration"
        )


def _positive(name: str, value: float) -> list[str]:
    return [] if value > 0 else [f"{name}={value} must be positive"]


def _not_negative(name: str, value: float) -> list[str]:
    return [] if value >= 0 else [f"{name}={value} must not be negative"]


def _nearest(value: int, unit: int) -> str:
    """The multiples around a value."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)
