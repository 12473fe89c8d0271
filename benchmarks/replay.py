"""How far rounding carries a replay, and how far a forgery: the table of docs/verify.md.

    python benchmarks/replay.py

Trains four small runs on two ranks of the CPU, and replays parts of them on one, or from forged step folders.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.verify.command import main as verify
from olmo_train.errors import run_command
from tests.runs import run_training, small
from tests.texts import VOCAB, write_text_corpus

Change = Callable[[str, Tensor], Tensor]
FORGERIES: dict[str, tuple[str, Change]] = {
    "moments of the output layer zeroed": ("optim", lambda name, value: value * 0 if "lm_head" in name else value),
    "all moments zeroed": ("optim", lambda name, value: torch.zeros_like(value)),
    "one router negated": ("model", lambda name, value: -value if "blocks.0.moe.router" in name else value),
}


def forge(folder: Path, group: str, change: Change) -> None:
    """Change tensors of a step folder, and its manifest so that it fits."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for path in folder.glob(f"{group}-*.safetensors"):
        tensors = {name: change(name, value).contiguous() for name, value in load_file(path).items()}
        path.unlink()
        save_file(tensors, path)
        data = path.read_bytes()
        manifest["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def show(title: str, run: Path, *words: str) -> None:
    """One line of the table."""
    file = run.parent / "found.json"
    run_command(verify, [str(run), "--replay", *words, f"--json={file}"])
    found = json.loads(file.read_text())["replay"]
    far, loss = found["weights"]["of_update"], found["losses"]["max_relative"]
    print(f"| {title} | {found['steps']} | {far:.2g} | {loss:.2g} |", flush=True)


def main(folder: Path) -> None:
    """Train the runs, and replay them."""
    shards = write_text_corpus(folder / "corpus", 2000).shards
    words = [f"model.vocab_size={VOCAB}", "max_tokens=76800", "optim.schedule.warmup_tokens=2560", "metrics.log_every=100"]
    bf16 = "parallel.compute_dtype=bfloat16"
    runs = {
        "float32": ["checkpoint.save_every=100"],
        "bf16": ["checkpoint.save_every=100", bf16],
        "bf16-10": ["checkpoint.save_every=10", "stop_at_step=120", bf16],
        "bf16-1": ["checkpoint.save_every=1", "stop_at_step=24", bf16],
    }
    for name, more in runs.items():
        run_training(small(shards, folder / name, *words, *more), 2)
    for name, starts in {"float32": (100, 200), "bf16-1": (20, 22), "bf16-10": (100, 50), "bf16": (100, 200)}.items():
        for start in starts:
            show(f"{name}, other ranks, from {start}", folder / name, "--ranks=1", f"--from={start}")
    for title, (group, change) in FORGERIES.items():
        forged = Path(shutil.copytree(folder / "float32", folder / title))
        forge(forged / "steps/step00000200", group, change)
        show(f"float32, {title}", forged, "--from=200")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
