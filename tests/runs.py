"""Training runs for tests: tiny, in float32 on the CPU, by the same entry point as real ones."""

import json
from pathlib import Path
from typing import Any

from olmo_train.config.train import TrainConfig
from olmo_train.schema import load_config
from olmo_train.train import find_all_problems, train
from tests.distributed import spawn
from tests.texts import VOCAB, TextCorpus

SMALL = [
    "model=tiny_moe", "model.d_model=32", "model.n_layers=2", "model.n_heads=4", "model.vocab_size=97",
    "model.moe.n_experts=4", "model.moe.top_k=2", "model.moe.d_expert=16",
    "data.seq_len=16", "data.global_batch_size=256", "data.micro_batch_size=64", "max_tokens=2560", "optim.lr=1e-2",
    "optim.schedule.warmup_tokens=512", "checkpoint.save_every=5", "checkpoint.save_log_spaced=false", "eval.eval_every=null",
    "metrics.log_every=2", "metrics.peak_flops=1e11",
]  # fmt: skip


def small(shards: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Overrides of a run of 10 steps of 16 rows on `shards`; later ones win."""
    words = [*SMALL, f"data.sources.demo.path={shards}", f"run_name={run_dir.name}", f"run_dir={run_dir}", *overrides]
    return list({word.split("=", 1)[0]: word for word in words}.values())


def train_here(overrides: list[str]) -> None:
    """Train in this process, as one rank of whatever the environment says."""
    train(load_config("train", TrainConfig, overrides, find_all_problems))


def run_training(overrides: list[str], n_ranks: int = 1) -> list[Any]:
    """Train on `n_ranks` ranks."""
    return spawn(train_here, n_ranks, overrides)


def run_on_text(corpus: TextCorpus, folder: Path) -> Path:
    """A finished run of two ranks on a corpus of texts, with checkpoints at steps 0, 1, 2, 4, 5 and 10 and held-out losses."""
    words = [f"data.sources.demo.path='{corpus.shards}'", f"model.vocab_size={VOCAB}", "eval.eval_every=5"]
    run_training(small(corpus.shards, folder, *words, "checkpoint.save_log_spaced=true"), 2)
    return folder


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    """Training loss of each step."""
    return [line["loss"] for line in metrics(run_dir) if line["step"] > 0]


TIMES = ("tokens_per_s", "tokens_per_s_per_rank", "mfu", "peak_memory_gib", "seconds", "eta_s", "time", "ranks")


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics that must be equal between two runs, `layers` included only where both wrote at the same steps."""
    return [{k: v for k, v in line.items() if k not in (*TIMES, "layers")} for line in lines]


def weights(run_dir: Path, step: int) -> dict[str, bytes]:
    """Bytes of every weight and optimizer file of a step."""
    folder = run_dir / "steps" / f"step{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
