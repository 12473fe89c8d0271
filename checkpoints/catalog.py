"""The step folders of a run: `olmo checkpoints list runs/first`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from olmo_train.checkpoint import read_manifest, read_state
from olmo_train.errors import ConfigError, run_command
from olmo_train.step_folder import list_steps


@dataclass(frozen=True)
class StepInfo:
    """One finished step folder."""

    step: int
    path: Path
    kind: str
    bytes: int
    tokens: int
    loss: float | None
    lr: float
    """Of the last step taken; 0 before the first."""


def find_folders(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the finished steps of a run, oldest first; nothing in them is read.

    Raises:
        ConfigError: there is no such run, or nothing is saved.
    """
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} is not the folder of a run (it has no config.yaml); e.g. runs/first")
    folders = list_steps(run / "steps")
    if not folders:
        raise ConfigError(f"{run} has no finished step folder yet; checkpoint.save_every says when one comes")
    return folders


def find_steps(run: Path) -> list[StepInfo]:
    """Finished steps of a run, oldest first.

    Raises:
        ConfigError: there is no such run, or nothing is saved. CheckpointError: a step folder is damaged.
    """
    steps = []
    for step, path in find_folders(run):
        manifest, state = read_manifest(path), read_state(path)
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        steps.append(StepInfo(step, path, manifest["kind"], size, state["tokens"], state["loss"], state["lr"]))
    return steps


def resolve_step(path: Path, step: int | None = None) -> Path:
    """A step folder given as such, or as a run (then the newest step, or `step`).

    Raises:
        ConfigError: there is no such step, or `path` is one step and `step` asks for another.
    """
    if (path / "manifest.json").exists():
        if step is not None:
            raise ConfigError(f"--step={step} goes with the folder of a run; {path} is one step already")
        return path
    folders = dict(find_folders(path))
    if step is None:
        return folders[max(folders)]
    if step not in folders:
        raise ConfigError(f"--step={step} is not saved in {path}; saved: {', '.join(map(str, folders))}")
    return folders[step]


def main(argv: list[str]) -> None:
    """Print a line per step folder."""
    parser = argparse.ArgumentParser("olmo checkpoints list", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    args = parser.parse_args(argv)
    print(f"{'step':>10} {'tokens':>18} {'loss':>8} {'MiB':>10}  kind       folder")
    for info in find_steps(args.run):
        loss = f"{info.loss:.4f}" if info.loss is not None else "-"
        print(f"{info.step:>10} {info.tokens:>18,} {loss:>8} {info.bytes / 2**20:>10,.1f}  {info.kind:<9}  {info.path}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
