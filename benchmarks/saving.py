"""What a save costs training: ours against torch.distributed.checkpoint.async_save, in one run, in seconds and in steps.

    python -m benchmarks.saving --out saving.jsonl                                       (one rank)
    torchrun --nproc-per-node 2 -m benchmarks.saving --out saving.jsonl [--folder /shared/tmp] [name=value of the config ...]

The trainer's own step runs on random tokens. Each side saves weights and moments --rounds times, the sides in turn, and training
goes on until the save is done. `call` is how long the call to save keeps the training thread; `all` is everything that a save
takes from training: the call, and how much longer the steps beside the writing take than the quiet steps just before. Seconds
are those of the slowest rank, medians over the rounds after the first, whose call (memory is allocated) is shown by itself.
`until done` is from the call until the step is on disk, synced. Ours also hashes every byte, as it is written; theirs does not.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks.measure import default_device, describe_machine, synchronize, table
from benchmarks.scaling import random_rows, weak
from benchmarks.workload import compose, load, open_loader, write_corpus
from olmo_train.config.train import CheckpointConfig, TrainConfig
from olmo_train.fence import ATTEMPT, Fence
from olmo_train.metrics import PhaseTimer
from olmo_train.parallel.collectives import any_rank, from_main
from olmo_train.parallel.mesh import Layout, init_distributed, world
from olmo_train.resume import Live, local_parts
from olmo_train.saver import Saver
from olmo_train.train import build
from olmo_train.train_step import TrainStep

# Steps of tenths of a second and a state of 130 MB on a CPU.
CPU_WORDS = [
    "model.d_model=256", "model.n_layers=4", "model.n_heads=4", "model.vocab_size=4000", "model.moe.d_expert=256",
    "data.seq_len=128", "data.global_batch_size=1024", "data.micro_batch_size=1024",
]  # fmt: skip


class Side(NamedTuple):
    """One way to save."""

    label: str
    save: Callable[[int], None]
    """Begin to save a step."""
    is_done: Callable[[], bool]
    """Whether this rank's part of it is on disk."""
    finish: Callable[[], None]
    """Join it, and delete what it wrote."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure; rank 0 prints, and appends a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to append the line to")
    parser.add_argument("--folder", type=Path, help="where to save; default: a temporary folder")
    parser.add_argument("--stage", type=Path, help="a node's own disk: also measure ours by way of it")
    parser.add_argument("--rounds", type=int, default=4, help="saves of each side")
    parser.add_argument("--quiet", type=int, default=8, help="steps without a save before each")
    parser.add_argument("--micro-steps", type=int, default=1, help="micro-batches of a rank in one optimizer step")
    args, overrides = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        is_gpu = default_device().type == "cuda"
        words = [*compose(is_gpu, [*([] if is_gpu else CPU_WORDS), *overrides]), f"run_dir={scratch}/run"]
        words += [f"data.sources.demo.path={scratch}/shards"]
        few = f"data.global_batch_size={load(words).data.micro_batch_size}"
        write_corpus(Path(scratch) / "shards", [*words, few], 1)
        run = weak(load(words), args.micro_steps, world()[1])
        layout = init_distributed(run.parallel)
        folder = Path(from_main(layout, str(args.folder or scratch) if layout.is_main else None)) / "saving"
        bench = Bench(run, layout, [*words, few])
        results = bench.measure(folder, args.stage, args.rounds, args.quiet)
    if layout.is_main:
        print(report(results))
        if args.out is not None:
            line = {"n_ranks": layout.n_ranks, "config": overrides, **results, **describe_machine(layout.device)}
            with args.out.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
    dist.destroy_process_group()


class Bench:
    """The model, its step, and the stopwatch."""

    def __init__(self, run: TrainConfig, layout: Layout, words: Sequence[str]) -> None:
        self.layout = layout
        self.live = build(run, layout, open_loader(load(words)).order)
        for weight in self.live.weights.values():
            weight.fill(torch.randn(weight.tensor.shape, device=layout.device).mul_(0.02))
        self._step = TrainStep(self.live.model, self.live.optimizer, self.live.guard, layout, run)
        self._rows, self._timer = random_rows(run, layout), PhaseTimer(layout.device)

    def step(self) -> float:
        """Seconds of one step."""
        begin = time.perf_counter()
        self._step(self._rows, 1e-4, self._timer)
        synchronize(self.layout.device)
        return time.perf_counter() - begin

    def measure(self, folder: Path, stage: Path | None, n_rounds: int, n_quiet: int) -> dict[str, Any]:
        """Seconds of every save of every side."""
        for _ in range(3):
            self.step()
        sides = [ours(self.live, folder / "ours", "ours"), *theirs(self.live, folder)]
        if stage is not None:
            sides.insert(1, ours(self.live, folder / "staged", "ours, staged", str(stage)))
        rows: dict[str, list[dict[str, float]]] = {side.label: [] for side in sides}
        for number in range(n_rounds):
            for side in sides:
                rows[side.label].append(self._one(side, number, n_quiet))
                if self.layout.is_main:
                    print(f"# {side.label}: {rows[side.label][-1]}", flush=True)
        n_bytes = sum(part.tensor.nbytes for parts in local_parts(self.live).values() for part in parts.values())
        total = torch.tensor(n_bytes)
        dist.all_reduce(total, group=self.layout.control)
        return {"bytes": int(total), "saves": rows}

    def _one(self, side: Side, number: int, n_quiet: int) -> dict[str, float]:
        quiet = [self._with_vote(lambda: False)[0] for _ in range(n_quiet)]
        dist.barrier(group=self.layout.control)
        begin = time.perf_counter()
        side.save(number)
        call_s, beside, is_done, done_s = time.perf_counter() - begin, [], False, 0.0
        while not is_done:
            seconds, is_done = self._with_vote(lambda: not side.is_done())
            beside.append(seconds)
            done_s = time.perf_counter() - begin
        side.finish()
        return {
            "step_s": self._slowest(median(quiet)), "call_s": self._slowest(call_s),
            "all_s": self._slowest(call_s + sum(beside) - len(beside) * median(quiet)),
            "done_s": self._slowest(done_s), "n_steps_beside": len(beside),
        }  # fmt: skip

    def _with_vote(self, is_busy: Callable[[], bool]) -> tuple[float, bool]:
        """Seconds of a step, the ranks' agreement on whether all are done included; and the agreement."""
        begin = time.perf_counter()
        self.step()
        is_done = not any_rank(self.layout, is_busy())
        return time.perf_counter() - begin, is_done

    def _slowest(self, value: float) -> float:
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.layout.control)
        return float(tensor)


def ours(live: Live, run_dir: Path, label: str, stage_dir: str | None = None) -> Side:
    """The trainer's own saver."""
    layout = live.layout
    if layout.is_main:
        (run_dir / "steps").mkdir(parents=True)
        (run_dir / ATTEMPT).write_text("bench")
    dist.barrier(group=layout.control)
    config = replace(CheckpointConfig(save_every=1), stage_dir=stage_dir)
    fence = Fence(run_dir, "bench")
    saver = Saver(
        run_dir / "steps", config, (layout.rank, layout.n_ranks), fence, lambda flag: any_rank(layout, flag), lambda: None
    )

    def finish() -> None:
        saver.settle(is_last=True)
        if layout.is_main:
            shutil.rmtree(run_dir / "steps")
        dist.barrier(group=layout.control)

    return Side(
        label,
        lambda step: saver.save(step, "permanent", local_parts(live), {"state.json": "{}"}),
        lambda: not saver.is_busy,
        finish,
    )


def theirs(live: Live, folder: Path) -> list[Side]:
    """torch's, as it comes, and with a stager that keeps its buffers from save to save as ours does."""
    rank, group = live.layout.rank, dist.new_group(backend="gloo")
    busy: dict[str, Any] = {}

    def side(label: str, path: Path, stager: DefaultStager | None) -> Side:
        def save(step: int) -> None:
            # Each rank its own names, so that no tensor is taken for a replica of another rank's.
            state = {
                f"{rank}/{key}/{name}": part.tensor
                for key, parts in local_parts(live).items()
                for name, part in parts.items()
                if part.is_mine
            }
            busy[label] = dcp.async_save(state, checkpoint_id=str(path / f"step{step}"), process_group=group, async_stager=stager)

        def finish() -> None:
            busy[label].result()
            dist.barrier(group=live.layout.control)
            if live.layout.is_main:
                shutil.rmtree(path)
            dist.barrier(group=live.layout.control)

        return Side(label, save, lambda: busy[label].done(), finish)

    plain = StagingOptions(use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False)
    return [
        side("dcp async_save", folder / "dcp", None),
        side("dcp async_save, kept buffers", folder / "dcp_kept", DefaultStager(plain)),
    ]


def report(results: dict[str, Any]) -> str:
    """A table of the sides, and ours over the best of theirs."""
    gb, rows, best = results["bytes"] / 1e9, [], {}
    for label, saves in results["saves"].items():
        middle = {name: median(save[name] for save in saves[1:] or saves) for name in saves[0]}
        step_s = middle["step_s"]
        rows.append([
            label, f"{saves[0]['call_s']:.3f}", f"{middle['call_s']:.3f}", f"{middle['call_s'] / step_s:.2f}",
            f"{middle['all_s']:.3f}", f"{middle['all_s'] / step_s:.2f}", f"{middle['done_s']:.2f}",
            f"{gb / middle['done_s']:.2f}",
        ])  # fmt: skip
        best[label] = middle
    header = ["side", "first call s", "call s", "call, steps", "all s", "all, steps", "until done s", "GB/s"]
    ours_, peers = best["ours"], [middle for label, middle in best.items() if label.startswith("dcp")]
    ratios = ", ".join(f"{name} {ours_[name] / min(peer[name] for peer in peers):.2f}" for name in ("call_s", "all_s", "done_s"))
    steps = [save["step_s"] for saves in results["saves"].values() for save in saves]
    return "\n".join([
        f"{gb:.2f} GB a save, {median(steps):.3f} s a quiet step", table(header, rows), f"ours / best of theirs: {ratios}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
