"""The training loop: steps, and at their intervals metrics, evaluation and checkpoints. It constructs nothing; train.py does."""

import gc
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from olmo_train.checkups import Checkups
from olmo_train.config.optim import OnNonFinite
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Loader, Rows
from olmo_train.downstream import TaskEvaluator
from olmo_train.drill import Drill
from olmo_train.errors import StoppedBySignal, TrainingError
from olmo_train.evaluate import HeldoutEvaluator
from olmo_train.metrics import MetricsLog, PhaseTimer, expert_metrics, peak_memory_gib
from olmo_train.optim.guard import NONFINITE, REASONS
from olmo_train.optim.schedule import multiplier
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.stragglers import compare, gather_times
from olmo_train.parallel.watchdog import Watchdog
from olmo_train.resume import Live, Progress, local_parts, state_text
from olmo_train.saver import Saver, is_due
from olmo_train.schema import to_yaml
from olmo_train.train_step import StepResult, TrainStep

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What train.py built."""

    live: Live
    train_step: TrainStep
    loader: Loader
    heldout: HeldoutEvaluator
    tasks: TaskEvaluator | None
    saver: Saver
    metrics: MetricsLog
    progress: Progress
    flops_per_token: float
    peak_flops: float
    """Of one device, per second."""
    provenance: str
    """JSON, goes into every step folder."""
    watchdog: Watchdog
    checkups: Checkups
    drill: Drill | None
    """None: no fault is caused on purpose."""


@dataclass
class _Interval:
    """Steps since the last write: still on the device, so that no step waits for its own metrics."""

    began: float
    steps: list[tuple[int, float, Rows, StepResult]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    not_training_s: float = 0.0


class Trainer:
    """Runs a run to its end, or to where it is asked to stop."""

    def __init__(self, run: TrainConfig, parts: Parts) -> None:
        self.run, self.parts, self.progress = run, parts, parts.progress
        self.layout: Layout = parts.live.layout
        self.total_steps = run.max_tokens // run.data.global_batch_size
        self.timer = PhaseTimer(self.layout.device)
        self._signal = 0
        self._interval = _Interval(time.perf_counter())

    def fit(self) -> None:
        """Train until the last step.

        Raises:
            StoppedBySignal: a signal asked for it; the step is saved.
            TrainingError: non-finite values under on_nonfinite=stop, or too many skipped steps.
            CheckpointError: saves keep failing.
            CorruptionError: replicas differ, or a micro-step taken twice.
        """
        run, progress, beat = self.run, self.progress, self.parts.watchdog.beat
        last = min(run.stop_at_step or self.total_steps, self.total_steps)
        self.parts.metrics.restart_at(progress.step)
        if progress.step == 0:
            self._evaluate_if_due(0)
            if not progress.is_saved:
                self._save_if_due(0)
        self._interval = _Interval(time.perf_counter())
        with _signals(self._on_signal), _collecting_garbage_by_hand(run.gc_every) as collect:
            steps = self.parts.loader.steps(progress.step + 1, last)
            try:
                for step, rows in self._timed(steps):
                    if self.parts.checkups.is_replay_due(step):
                        with self._not_training("check"):
                            self.parts.checkups.check_replay(step, rows)
                    stopping = self._ask_to_stop()
                    self._train(step, rows)
                    self._evaluate_if_due(step)
                    stop = stopping()
                    if (
                        step % run.metrics.log_every == 0
                        or step == last
                        or stop  # or the saved step would lack its loss, and the resumed run these lines
                        or self._interval.evaluation
                        or is_due(run.checkpoint, step, self.total_steps)
                    ):
                        self._write_metrics()
                    self._save_if_due(step, must=stop or step == last)
                    if stop:
                        beat("end", step)
                        self.parts.saver.settle(is_last=True)
                        log.info("stopped by a signal after step %d, which is saved; the same command continues", step)
                        raise StoppedBySignal
                    collect(step)
            finally:
                steps.close()  # type: ignore[attr-defined]  # ends the reading thread
                self.parts.metrics.close()
        beat("end", progress.step)
        self.parts.saver.settle(is_last=True)

    # ---- one step ----------------------------------------------------------------------------------

    def _train(self, step: int, rows: Rows) -> None:
        self.parts.watchdog.beat("step", step)
        loss_factor = self.parts.drill.begin_step(step, self.parts.live.weights) if self.parts.drill is not None else None
        lr = self.progress.peak_lr * multiplier(
            self.run.optim.schedule, step * self.run.data.global_batch_size, self.run.max_tokens
        )
        result = self.parts.train_step(rows, lr, self.timer, loss_factor)
        self._interval.steps.append((step, lr, rows, result))
        self.progress.step, self.progress.lr = step, lr

    def _timed(self, steps: Iterator[tuple[int, Rows]]) -> Iterator[tuple[int, Rows]]:
        """Count the time spent waiting for data."""
        while True:
            self.parts.watchdog.beat("data", self.progress.step + 1)
            with self.timer.phase("data", on_device=False):
                item = next(steps, None)
            if item is None:
                return
            yield item

    # ---- metrics -----------------------------------------------------------------------------------

    def _write_metrics(self) -> None:
        """Bring the interval's values to the host (the only wait), write them, and act on skipped steps."""
        interval, self._interval = self._interval, _Interval(time.perf_counter())
        if not interval.steps:
            return
        self.parts.watchdog.beat("metrics", interval.steps[-1][0])
        lines = [self._line(step, lr, result) for step, lr, _, result in interval.steps]
        self.progress.loss = lines[-1]["loss"]
        lines[-1] |= self._interval_values(interval)
        if interval.evaluation:
            lines[-1]["eval"] = interval.evaluation
        self.parts.metrics.write(lines, self._ledger(interval))
        nonfinite = [line["step"] for line in lines if line["skipped"] == REASONS[NONFINITE]]
        if nonfinite and self.run.optim.on_nonfinite == OnNonFinite.STOP:
            raise TrainingError(
                f"loss or gradient is not finite at step {nonfinite[0]} (optim.on_nonfinite=stop); no weight was changed by it. "
                "Resume from the last checkpoint with a lower optim.lr, or with on_nonfinite=skip"
            )
        in_a_row = max(int(result.skips_in_a_row) for _, _, _, result in interval.steps)
        if in_a_row >= self.run.optim.max_skips_in_a_row:
            raise TrainingError(
                f"{in_a_row} steps in a row were skipped by step {lines[-1]['step']} ({lines[-1]['skipped']}); "
                "optim.max_skips_in_a_row="
                f"{self.run.optim.max_skips_in_a_row}. See skipped, loss and grad_norm in metrics.jsonl"
            )

    def _line(self, step: int, lr: float, result: StepResult) -> dict[str, Any]:
        """One step's line of metrics.jsonl."""
        line: dict[str, Any] = {
            "step": step,
            "tokens": step * self.run.data.global_batch_size,
            "loss": _finite(result.loss),
            "grad_norm": _finite(result.grad_norm),
            "lr": lr,
            "skipped": REASONS[int(result.verdict)],
            "targets": int(result.n_targets),
        }
        if self.run.model.z_loss_weight:
            line["z_loss"] = _finite(result.z)
        moe, router = self.run.model.moe, result.router
        if moe is not None and router is not None:
            n = self.run.data.global_batch_size
            load = router.counts / (n * moe.top_k)
            line["load_balancing_loss"] = _finite((load * router.probs / n).sum(-1).mean() * moe.n_experts)
            line["router_z_loss"] = _finite(router.z.mean() / n)
        return line

    def _interval_values(self, interval: _Interval) -> dict[str, Any]:
        n_steps = len(interval.steps)
        wall = time.perf_counter() - interval.began
        rate = n_steps * self.run.data.global_batch_size / max(wall - interval.not_training_s, 1e-9)
        per_rank = rate / self.layout.n_ranks
        seconds = self.timer.read()
        values: dict[str, Any] = {
            "tokens_per_s": rate,
            "tokens_per_s_per_rank": per_rank,
            "mfu": per_rank * self.parts.flops_per_token / self.parts.peak_flops,
            "peak_memory_gib": peak_memory_gib(self.layout.device),
            "seconds": {**seconds, "interval": wall},
            "eta_s": (self.total_steps - interval.steps[-1][0]) * wall / n_steps,
            "time": time.time(),
        }
        clock = self.parts.train_step.clock
        if clock is not None:
            times = gather_times(self.layout, wall - interval.not_training_s, clock.read(), seconds.get("data", 0.0))
            values["ranks"], warning = compare(times, n_steps, self.run.faults.straggler_frac)
            if warning is not None and self.layout.is_main:
                log.warning("steps %d to %d: %s", interval.steps[0][0], interval.steps[-1][0], warning)
        routers = [result.router for _, _, _, result in interval.steps if result.router is not None]
        if routers:
            counts, confidence = sum(r.counts for r in routers), sum(r.confidence for r in routers)
            assert isinstance(counts, torch.Tensor)
            assert isinstance(confidence, torch.Tensor)
            values["layers"] = expert_metrics(counts, confidence, n_steps * self.run.data.global_batch_size)
        return values

    def _ledger(self, interval: _Interval) -> list[dict[str, Any]]:
        """Lines of data.jsonl: what each step was fed, summed up over all ranks."""
        loader, n_rows = self.parts.loader, self.parts.loader.order.rows
        checksums = torch.zeros(len(interval.steps), dtype=torch.int64)
        masked = torch.zeros(len(interval.steps), n_rows, dtype=torch.uint8)
        for i, (_, _, rows, _) in enumerate(interval.steps):
            checksums[i] = rows.checksum(loader.first_row)
            masked[i, loader.first_row : loader.end_row] = torch.from_numpy(rows.masked)
        dist.all_reduce(checksums, group=self.layout.control)
        dist.all_reduce(masked, group=self.layout.control)
        without = self._without_rows(interval)
        return [
            {
                "step": step,
                "position": (step - 1) * n_rows,
                "rows": n_rows,
                "checksum": int(checksums[i]) % 2**62,
                "masked_rows": masked[i].nonzero().flatten().tolist(),
                "skipped": REASONS[int(result.verdict)],
                **({"without_rows": without[step]} if step in without else {}),
            }
            for i, (step, _, _, result) in enumerate(interval.steps)
        ]

    def _without_rows(self, interval: _Interval) -> dict[int, list[int]]:
        """By step that leaves documents out, the rows of the global batch that held some of them."""
        if self.run.data.without is None:
            return {}
        loader = self.parts.loader
        changed = torch.zeros(len(interval.steps), loader.order.rows, dtype=torch.uint8)
        for i, (_, _, rows, _) in enumerate(interval.steps):
            if rows.without is not None:
                changed[i, loader.first_row : loader.end_row] = torch.from_numpy(rows.without[:, 0] > 0)
        dist.all_reduce(changed, group=self.layout.control)
        return {
            step: changed[i].nonzero().flatten().tolist()
            for i, (step, _, rows, _) in enumerate(interval.steps)
            if rows.without is not None
        }

    # ---- evaluation and checkpoints ----------------------------------------------------------------

    def _evaluate_if_due(self, step: int) -> None:
        every = self.run.eval.eval_every
        if every is None or (step % every != 0 and step != self.total_steps):
            return
        self.parts.watchdog.beat("eval", step)
        model = self.parts.live.model
        with self._not_training("eval"):
            results: dict[str, Any] = {}
            if self.parts.heldout.has_data:
                results["heldout"] = self.parts.heldout.run(model)
            if self.parts.tasks is not None:
                results["tasks"] = self.parts.tasks.run(model)
        if step == 0:
            self.parts.metrics.write([{"step": 0, "tokens": 0, "loss": None, "lr": 0.0, "eval": results}], [])
        else:
            self._interval.evaluation = results
        for name, value in results.get("heldout", {}).items():
            log.info(
                "step %d  held out, %s: %.4f nats per token%s",
                step,
                name,
                value["loss"],
                "" if value["bits_per_byte"] is None else f", {value['bits_per_byte']:.4f} bits per byte",
            )

    def _save_if_due(self, step: int, must: bool = False) -> None:
        """Save what `is_due` says; with `must`, at least an ephemeral step, unless this very one exists already."""
        kind = is_due(self.run.checkpoint, step, self.total_steps) or ("ephemeral" if must else None)
        if self.parts.checkups.are_replicas_due(step, is_saved=kind is not None):
            with self._not_training("check"):
                self.parts.checkups.check_replicas(step)
        if kind is None:
            return
        self.parts.watchdog.beat("save", step)
        with self._not_training("checkpoint"):
            texts = {
                "state.json": state_text(self.parts.live, self.run, self.progress),
                "config.yaml": to_yaml(self.run),
                "provenance.json": self.parts.provenance,
            }
            self.parts.saver.save(step, kind, local_parts(self.parts.live), texts)

    @contextmanager
    def _not_training(self, name: str) -> Iterator[None]:
        begin, clock = time.perf_counter(), self.parts.train_step.clock
        with self.timer.phase(name, on_device=False), nullcontext() if clock is None else clock.off():
            yield
        self._interval.not_training_s += time.perf_counter() - begin

    # ---- signals -----------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._signal = number

    def _ask_to_stop(self) -> "_Answer":
        """Start agreeing on whether some rank got a signal; the answer is ready long before the step is."""
        flag = torch.tensor(int(self._signal != 0))
        return _Answer(flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.layout.control, async_op=True))


class _Answer:
    def __init__(self, flag: torch.Tensor, work: Any) -> None:
        self._flag, self._work = flag, work

    def __call__(self) -> bool:
        self._work.wait()
        return bool(self._flag)


def _finite(value: torch.Tensor) -> float | None:
    """A number, or None (null in JSON, which has no NaN)."""
    number = float(value)
    return number if math.isfinite(number) else None


@contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 ask for a stop at the end of the step; afterwards they mean what they meant before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _collecting_garbage_by_hand(every: int) -> Iterator[Any]:
    """Collect at the same steps on all ranks; an automatic collection on one stalls the others at the next collective."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield lambda step: gc.collect() if step % every == 0 else None
    finally:
        gc.enable()
        gc.unfreeze()
