"""Train: compose the config, check it, build everything in order, run.   olmo train run_name=first model=tiny_moe data=demo

token shards + config  ->  runs/<run_name>/{config.yaml, provenance.json, metrics.jsonl, data.jsonl, steps/...}
"""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from olmo_train.attempt import EndKind, attempt_folder, run_rank
from olmo_train.checkpoint import manifest_identity
from olmo_train.checkups import Checkups
from olmo_train.config.model import BalanceScope
from olmo_train.config.train import TrainConfig
from olmo_train.data.checks import find_data_problems, find_tokenizer, readable_corpora
from olmo_train.data.loader import Loader, open_sources, prepare_sources, source_corpus
from olmo_train.data.order import DataOrder, Source
from olmo_train.data.shards import Corpus
from olmo_train.downstream import TaskEvaluator, find_task_problems
from olmo_train.drill import Drill
from olmo_train.errors import ConfigError, ShardError
from olmo_train.evaluate import HeldoutEvaluator
from olmo_train.kernels.choose import Kernels, choose_kernels, find_kernel_problems
from olmo_train.kernels.needs import Needs
from olmo_train.metrics import MetricsLog, peak_flops
from olmo_train.mirror import end_mirror, restore_from_mirror, start_mirror
from olmo_train.model.init import initial_rows
from olmo_train.model.kernel_needs import kernel_needs
from olmo_train.model.shapes import param_shapes, stacked_rows, vocab_rows
from olmo_train.model.size import FLOPS_CONVENTION, count_params, flops_per_token
from olmo_train.model.transformer import Transformer
from olmo_train.optim.build import build_optimizer
from olmo_train.optim.guard import Guard
from olmo_train.optim.parts import Part
from olmo_train.parallel.agreement import facts_of
from olmo_train.parallel.collectives import any_rank, from_main
from olmo_train.parallel.float8 import find_float8_problems
from olmo_train.parallel.fsdp import DTYPES, materialize, shard
from olmo_train.parallel.health import check_health
from olmo_train.parallel.memory import keep_freed_memory
from olmo_train.parallel.mesh import Layout, choose_device, init_distributed, world
from olmo_train.parallel.rendezvous import meet
from olmo_train.parallel.stragglers import CollectiveClock
from olmo_train.parallel.watchdog import Watchdog
from olmo_train.parallel.weights import Weight, weights_of
from olmo_train.problems import find_problems
from olmo_train.provenance import provenance
from olmo_train.resume import Live, Progress, forget_suspects, load_weights, newest_good_step, resume, verify_together
from olmo_train.rng import seed_everything
from olmo_train.run_folder import RunFolder
from olmo_train.saver import Saver
from olmo_train.schema import load_saved, run_hydra, to_plain
from olmo_train.train_step import TrainStep
from olmo_train.trainer import Parts, Trainer

log = logging.getLogger("olmo_train")


def main(argv: list[str]) -> None:
    """Compose the config from `argv`, or take a saved one (`--from FILE`), and train."""
    keep_freed_memory()
    if argv and argv[0].split("=", 1)[0] == "--from":
        path, overrides = saved_config(argv)
        train(load_saved(path, TrainConfig, overrides, find_all_problems))
    else:
        run_hydra(train, "train", TrainConfig, find_all_problems, argv)


def saved_config(argv: list[str]) -> tuple[Path, list[str]]:
    """The file of `--from FILE` or `--from=FILE`, and the words after it."""
    words = [*argv[0].split("=", 1), *argv[1:]]
    if len(words) < 2 or not words[1]:
        raise ConfigError("--from needs a file: the config.yaml of a run or of a job, e.g. runs/NAME/config.yaml")
    return Path(words[1]), words[2:]


def train(run: TrainConfig) -> None:
    """Run a checked config to its end; all ranks meet first, and are watched until they end."""
    rank, n_ranks, _ = world()
    is_watched = n_ranks > 1 or attempt_folder() is not None
    meeting = meet(rank, n_ranks, facts_of(run, n_ranks), run.faults) if is_watched else None
    with Watchdog(run.faults, meeting) as watchdog:
        layout = init_distributed(run.parallel, meeting.store if meeting is not None else None)
        _start_logging(layout)
        is_complete = _train(run, layout, watchdog)
        watchdog.finish(EndKind.COMPLETE if is_complete else EndKind.PAUSED)
    dist.destroy_process_group()


def _train(run: TrainConfig, layout: Layout, watchdog: Watchdog) -> bool:
    """Build everything in order and train, the table of contents of this project; False if `stop_at_step` came before the end."""
    seed_everything(run.seed, layout.rank)
    drill = Drill(run.faults, layout.rank, layout.n_ranks, Path(run.run_dir)) if run.faults.drill else None
    check_health(layout, run.faults, drill is not None and drill.is_sick())
    folder = RunFolder(run, layout)
    try:
        sources = _open_data(run, layout, folder.path)
        order = DataOrder(sources, run.seed, run.data.seq_len, run.data.global_batch_size)
        live = build(run, layout, order)
        progress = _begin(run, live, folder.steps, watchdog)
        parts = _assemble(run, live, sources, progress, folder, watchdog, drill)
        mirror = start_mirror(run, layout)
        last = run.max_tokens // run.data.global_batch_size
        if progress.step >= last:
            log.info("run %s is complete: step %d is saved in %s", run.run_name, progress.step, folder.steps)
        else:
            Trainer(run, parts).fit()
            log.info("run %s: step %d of %d is saved in %s", run.run_name, progress.step, last, folder.steps)
        if progress.step >= last:
            end_mirror(run, layout, mirror, lambda: watchdog.beat("end", last))
        return progress.step >= last
    finally:
        folder.close()


# ---- checks, before anything is allocated ----------------------------------------------------------------------------------


def find_all_problems(run: TrainConfig) -> list[str]:
    """Problems of the values, the kernels, the tasks and the data; needs no process group and reads no token."""
    problems = find_problems(run, n_ranks=world()[1])
    try:
        device = choose_device(run.parallel.device)
        problems += find_float8_problems(run.parallel, device)
        if run.model.n_heads > 0:  # else there is no head width; said above
            problems += find_kernel_problems(asdict(run.kernels), _kernel_needs(run, device))
    except ConfigError as error:
        problems += error.problems
    problems += find_data_problems(run.data, vocab_rows(run.model), run.eval.needs_heldout)
    tokenizer = _task_tokenizer(run, readable_corpora(run.data)) if run.eval.tasks else None
    return problems + find_task_problems(run.eval, tokenizer, vocab_rows(run.model))


def _task_tokenizer(run: TrainConfig, corpora: Iterable[Corpus]) -> Path | None:
    return find_tokenizer(corpora) if run.eval.task_tokenizer is None else Path(run.eval.task_tokenizer)


# ---- building, in order ----------------------------------------------------------------------------------------------------


def _open_data(run: TrainConfig, layout: Layout, folder: Path) -> list[Source]:
    """Open the sources; rank 0 makes missing manifests and checks contents, all ranks hear of what it found."""
    problems: list[str] = []
    if layout.is_main:
        try:
            prepare_sources(run.data, folder / "data", run.model.vocab_size)
            for name in run.data.sources:
                problems += source_corpus(run.data, name, folder / "data").verify(run.data.verify)
        except ShardError as error:
            problems.append(str(error))
    problems = from_main(layout, problems)
    if problems:
        raise ConfigError(problems)  # all ranks have heard of them, and rank 0 tells
    return open_sources(run.data, folder / "data")


def build(run: TrainConfig, layout: Layout, order: DataOrder) -> Live:
    """Model, optimizer and guard, laid over the ranks; weights are not filled yet."""
    needs = _kernel_needs(run, layout.device)
    # One rank chooses for all: its checks compile kernels, and ranks that differ would wait for each other for ever.
    kernels = from_main(layout, choose_kernels(asdict(run.kernels), needs) if layout.is_main else None)
    with torch.device("meta"):
        model = Transformer(run.model, kernels)
    shard(model, model.fsdp_units(), layout, run.parallel, run.optim.weight_dtype)
    materialize(model, layout.device)
    weights = weights_of(model, layout, DTYPES[run.optim.weight_dtype])
    optimizer = build_optimizer(_parts(run, weights), run.optim, run.seed, layout.shard_group)
    _describe(run, layout, order, kernels)
    return Live(layout, model, weights, optimizer, Guard(run.optim.skip, layout.device), order)


def _parts(run: TrainConfig, weights: dict[str, Weight]) -> dict[str, Part]:
    """The weights as the optimizer wants them."""
    parts = {}
    for shape in param_shapes(run.model):
        weight, stacked = weights[shape.name], stacked_rows(shape.name, shape.shape, run.model)
        parts[shape.name] = Part(weight.tensor, shape.kind, shape.shape, weight.rows[0], stacked, weight.copy)
    return parts


def _begin(run: TrainConfig, live: Live, steps: Path, watchdog: Watchdog) -> Progress:
    """Fill the weights: from this run's newest good step, here or in its mirror, or another run's, or at random."""
    newest = newest_good_step(steps, live.layout)
    wants_mirror = newest is None and run.checkpoint.mirror is not None
    if wants_mirror and restore_from_mirror(run, live.layout, lambda: watchdog.beat("start", 0)):
        newest = newest_good_step(steps, live.layout)
    forget_suspects(steps, live.layout)
    if newest is not None:
        progress = resume(live, run, newest)
        log.info("resumed after step %d from %s", progress.step, newest)
        return progress
    if run.load is not None:
        folder = Path(run.load.path)
        problems = verify_together(folder, live.layout)
        if problems:
            raise ConfigError([f"load.path: {problem}" for problem in problems])
        state = load_weights(live, folder, run.load.optimizer_state)
        if run.optim.lr is None and state["lr"] == 0:
            raise ConfigError(
                f"optim.lr=null takes the rate at which load.path={folder} stopped, which stopped at a learning rate of 0; "
                "give optim.lr, or load an earlier checkpoint"
            )
        log.info("began with the weights of %s", folder)
        return Progress(peak_lr=run.optim.lr if run.optim.lr is not None else state["lr"])
    draw_weights(run, live)
    assert run.optim.lr is not None  # find_problems
    return Progress(peak_lr=run.optim.lr)


def draw_weights(run: TrainConfig, live: Live) -> None:
    """Fill this rank's rows with the initial weights of the run's seed."""
    for shape in param_shapes(run.model):
        weight = live.weights[shape.name]
        weight.fill(initial_rows(shape, run.model, run.seed, weight.rows))


def _assemble(
    run: TrainConfig,
    live: Live,
    sources: list[Source],
    progress: Progress,
    folder: RunFolder,
    watchdog: Watchdog,
    drill: Drill | None,
) -> Parts:
    """Everything around the model."""
    layout = live.layout
    corpora = {source.name: source_corpus(run.data, source.name, folder.path / "data") for source in sources}
    token_bytes = {name: corpus.token_bytes() for name, corpus in corpora.items()}
    tokenizer = _task_tokenizer(run, corpora.values())
    peak, peak_source = peak_flops(run.metrics, layout.device)
    facts: dict[str, Any] = {
        "from_step": progress.step, "kernels": asdict(live.model.kernels), "flops_convention": FLOPS_CONVENTION,
        "peak_flops": {"value": peak, "source": peak_source}, **provenance(layout.n_ranks, layout.device), **watchdog.facts(),
    }  # fmt: skip
    if run.load is not None and not progress.is_saved:
        facts["loaded"] = manifest_identity(Path(run.load.path))
    if layout.is_main and progress.is_saved:
        _tell_of_other_kernels(folder.starts(), live.model.kernels)
    metrics = MetricsLog(folder.path, run, layout.is_main, to_plain(run), folder.fence.check)
    clock = CollectiveClock(layout.device) if layout.n_ranks > 1 else None
    train_step = TrainStep(live.model, live.optimizer, live.guard, layout, run, clock)
    return Parts(
        live=live,
        train_step=train_step,
        loader=Loader(live.order, run.data, layout.rank, layout.n_ranks),
        heldout=HeldoutEvaluator(sources, token_bytes, run.data, layout, run.eval.max_instances),
        tasks=TaskEvaluator(run.eval, run.data, tokenizer, layout) if run.eval.tasks and tokenizer else None,
        saver=Saver(
            folder.steps,
            run.checkpoint,
            (layout.rank, layout.n_ranks),
            folder.fence,
            lambda flag: any_rank(layout, flag),
            metrics.sync,
        ),
        metrics=metrics,
        progress=progress,
        flops_per_token=flops_per_token(run.model, run.data.seq_len),
        peak_flops=peak,
        provenance=folder.add_start(facts) if layout.is_main else "",
        watchdog=watchdog,
        checkups=Checkups(run, live, train_step, progress.step),
        drill=drill,
    )


# ---- telling ---------------------------------------------------------------------------------------------------------------


def _start_logging(layout: Layout) -> None:
    prefix = "" if layout.n_ranks == 1 else f"rank {layout.rank}: "
    logging.basicConfig(
        level=logging.INFO if layout.is_main else logging.WARNING,
        format=f"%(asctime)s {prefix}%(message)s",
        datefmt="%H:%M:%S",
    )


def _tell_of_other_kernels(starts: list[dict[str, Any]], kernels: Kernels) -> None:
    """`auto` may choose otherwise on another GPU, or when a library is gone; then the run goes on, but not in the same bits."""
    before = starts[-1]["kernels"] if starts else {}
    changed = [name for name, backend in kernels.backends().items() if before.get(name, backend) != backend]
    if changed:
        then = ", ".join(f"{name}={before[name]}" for name in changed)
        wanted = " ".join(f"kernels.{name}={before[name]}" for name in changed)
        log.warning(
            "kernels differ from those of the last start (%s): the run continues to float rounding, not bit for bit; "
            "insist with %s",
            then,
            wanted,
        )


def _kernel_needs(run: TrainConfig, device: torch.device) -> Needs:
    return kernel_needs(run.model, run.data.seq_len, run.data.document_masking, device, DTYPES[run.parallel.compute_dtype])


def _describe(run: TrainConfig, layout: Layout, order: DataOrder, kernels: Kernels) -> None:
    counts, data = count_params(run.model), run.data
    micro_steps = data.global_batch_size // (data.micro_batch_size * layout.n_ranks)
    log.info("%s: %s parameters, %s active per token", run.run_name, f"{counts.total:,}", f"{counts.active:,}")
    log.info("%d steps of %s tokens: %d instances of %d, %d ranks x %d micro-steps; instances per epoch: %s",
             run.max_tokens // data.global_batch_size, f"{data.global_batch_size:,}", order.rows, data.seq_len,
             layout.n_ranks, micro_steps,
             ", ".join(f"{name} {n:,}" for name, n in order.instances_per_epoch().items()))  # fmt: skip
    mesh = " x ".join(f"{name} {size}" for name, size in zip(layout.mesh.mesh_dim_names or (), layout.mesh.shape, strict=True))
    log.info("%s, mesh %s, compute in %s; kernels: %s", layout.device, mesh, run.parallel.compute_dtype, kernels.describe())
    for reason in kernels.passed_over:
        log.info("not taken: %s", reason)
    moe = run.model.moe
    if (
        moe is not None
        and moe.load_balancing_scope == BalanceScope.GLOBAL
        and moe.load_balancing_loss_weight > 0
        and micro_steps > 1
    ):
        log.info(
            "model.moe.load_balancing_scope=global with %d micro-steps: an extra forward pass of each counts the "
            "expert loads first; "
            "a larger data.micro_batch_size saves it, scope=running avoids it and depends on the layout",
            micro_steps,
        )


if __name__ == "__main__":
    raise SystemExit(run_rank(main))
