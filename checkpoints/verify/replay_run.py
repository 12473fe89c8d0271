"""Train again from a checkpoint by the trainer's command line: a run folder of its own that ends where it is told."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.convert.step_folder import write_step
from checkpoints.opening import Checkpoint
from checkpoints.release import TRAINING
from launch.local import local_command
from olmo_train.config.data import WithoutConfig
from olmo_train.config.train import Device, TrainConfig
from olmo_train.data.manifest import read_manifest
from olmo_train.errors import EXIT_USAGE, CheckpointError, ConfigError, ShardError
from olmo_train.files import write_atomic
from olmo_train.metrics import drop_lines_after
from olmo_train.problems import find_problems
from olmo_train.schema import to_yaml
from olmo_train.step_folder import step_name

# What the trainer's own config file has around the values; a saved config has only the values.
HYDRA = """defaults:
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none
  - _self_
hydra:
  run: {dir: .}
  output_subdir: null
  job: {chdir: false}
"""
TOLD = 12
"""Last lines of the trainer's output in an error."""


@dataclass(frozen=True)
class Replay:
    """One piece of a run, trained again."""

    start: Checkpoint
    last_step: int
    ranks: int
    threads: int | None
    """Per rank, as then; None: not known."""
    shards: Mapping[str, Path]
    """By source, where its shards lie now."""
    without: WithoutConfig | None = None
    """Documents to leave out, though the run had them (`olmo trace replay`); None: as it was."""


def replay_config(replay: Replay, folder: Path) -> TrainConfig:
    """The config of the published run, changed only in what cannot change a weight: where, when saved, what is shown.

    Raises:
        ConfigError: the shards are not there or are not those of the run, or the ranks do not divide its batch; says all of it.
    """
    assert replay.start.run is not None
    run = deepcopy(replay.start.run)
    run.run_dir, run.stop_at_step = str(folder), replay.last_step
    run.checkpoint.save_every, run.checkpoint.save_log_spaced = run.max_tokens, False  # only where it stops
    run.checkpoint.ephemeral_every = None
    run.eval.eval_every, run.eval.tasks, run.metrics.wandb = None, [], None
    run.metrics.progress_bar = False
    if run.parallel.device == Device.CUDA:
        run.parallel.device = Device.AUTO
    if replay.ranks != replay.start.state["n_ranks"]:
        run.parallel.shard_size = None
    if run.parallel.threads_per_rank is None:
        run.parallel.threads_per_rank = replay.threads
    if run.optim.lr is None:  # it came with what the run was loaded from, and now comes with the state
        run.optim.lr = replay.start.state["peak_lr"]
    run.load = None
    if replay.without is not None:
        run.data.without = replay.without
    problems = set_shards(run, replay.shards, replay.start.state["data"]["order"])
    problems += [] if problems else find_problems(run, replay.ranks)
    if problems:
        raise ConfigError(problems)
    return run


def set_shards(run: TrainConfig, shards: Mapping[str, Path], order: Mapping[str, Any]) -> list[str]:
    """Say in a config where the shards of its sources lie now; problems of those that are not of the run's `order` (its key)."""
    sources = run.data.sources
    problems = [
        f"--shards {name}={path}: the run has no source {name}; it has {', '.join(sources)}"
        for name, path in shards.items()
        if name not in sources
    ]
    wanted = {source["name"]: source["manifest"] for source in order["sources"]}
    for name, source in sources.items():
        if name in shards:
            source.path, source.files, source.dtype = str(shards[name].absolute()), None, None
        if source.path is None:
            continue  # published shards, found by their names; the trainer compares what it makes of them
        try:
            found = read_manifest(source.path).fingerprint()
        except ShardError as error:
            problems.append(f"data.sources.{name}: {error}; give --shards {name}=FOLDER with the shards of the run")
            continue
        if found != wanted.get(name):
            problems.append(
                f"data.sources.{name}: the shards in {source.path} have the fingerprint {found}, the run was trained on "
                f"{wanted.get(name)}; give --shards {name}=FOLDER with the shards of the run"
            )
    return problems


def train_again(replay: Replay, work: Path) -> Path:
    """Train; returns the folder of the new run, whose steps/ has the start and the end.

    Raises:
        ConfigError: the shards do not fit, or the trainer refused. CheckpointError: training failed.
    """
    folder = work / "run"
    run = replay_config(replay, folder)
    _begin(replay, run, folder)
    write_atomic(work / "replay.yaml", (HYDRA + to_yaml(run)).encode())
    words = [f"--config-dir={work}", "--config-name=replay"]
    alone = [sys.executable, "-m", "olmo_train.train", *words]
    command = alone if replay.ranks == 1 else local_command(replay.ranks, words)
    # The trainer sets the number of threads itself; without this torchrun would warn of its own default.
    done = subprocess.run(
        command,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join(done.stdout.splitlines()[-TOLD:])
        kind = ConfigError if done.returncode == EXIT_USAGE else CheckpointError
        raise kind(
            f"the replay from step {replay.start.step} ended with exit status {done.returncode}; the trainer said:\n{said}"
        )
    return folder


def _begin(replay: Replay, run: TrainConfig, folder: Path) -> None:
    """A run folder as it was after the step of the start."""
    start, step = replay.start, replay.start.step
    assert step is not None
    target = folder / "steps" / step_name(step)
    target.parent.mkdir(parents=True)
    if start.is_hf:
        write_step(start, target)
    else:
        shutil.copytree(start.folder, target, copy_function=_link)
    write_atomic(folder / "config.yaml", to_yaml(run).encode())
    records = start.folder / TRAINING if start.is_hf else start.folder.parent.parent
    for name in ("metrics.jsonl", "data.jsonl", "provenance.json"):
        if (records / name).exists():
            shutil.copyfile(records / name, folder / name)
    for name in ("metrics.jsonl", "data.jsonl"):
        drop_lines_after(folder / name, step)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def last_start(folder: Path) -> dict[str, Any]:
    """What the replay itself wrote of its machine."""
    start: dict[str, Any] = json.loads((folder / "provenance.json").read_text())["starts"][-1]
    return start
