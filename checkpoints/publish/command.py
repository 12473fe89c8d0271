"""`olmo publish run=runs/first target=hub:owner/name`: releases of a run on a hub, in a folder or in an object store."""

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from checkpoints.convert.hf_folder import FLOAT_DTYPES
from checkpoints.publish.assemble import AssembleOptions
from checkpoints.publish.claims import Timing
from checkpoints.publish.folder_target import FolderTarget
from checkpoints.publish.hub_store import HUB_NAME
from checkpoints.publish.hub_target import HubTarget
from checkpoints.publish.object_target import ObjectTarget
from checkpoints.publish.progress import Progress
from checkpoints.publish.publishing import Wishes, plan_steps, print_plan, publish
from checkpoints.publish.retry import Patience, scrub
from checkpoints.publish.signature import read_private_key
from checkpoints.publish.targets import NEWEST, Manner, Target
from checkpoints.release import parse_revision
from olmo_train.errors import ConfigError, run_command
from olmo_train.schema import load_config


@dataclass
class RetryConfig:
    """Of requests that failed in a way that may pass: lost connections, 408, 429 and 5xx."""

    attempts: int = 6
    first_wait_s: float = 1.0
    """Doubled each time; a random half to all of it is waited."""
    max_wait_s: float = 60.0
    timeout_s: float = 120.0
    """Without a byte, before a connection counts as lost."""


@dataclass
class ClaimsConfig:
    """Of claims in object stores (docs/publish.md)."""

    beat_s: float = 20.0
    expiry_s: float = 120.0
    """A claim that stands still so long is left over."""


@dataclass
class PublishConfig:
    """`configs/publish.yaml`."""

    run: str = MISSING
    """Folder of a run."""
    target: str = MISSING
    """hub:owner/name, a folder, or a URL that fsspec knows (s3://bucket/prefix)."""
    steps: list[int] | None = None
    """None (or `all`): every permanent step."""
    stage: int = 1
    """Of training; part of the revisions' names."""
    optimizer_state: bool = True
    """Moments and random states: without them nobody can go on bit for bit, or replay. They take twice the float32 weights."""
    dtype: str | None = None
    """Of the weights: float32, bfloat16 or float16; None: as saved."""
    license: str = MISSING
    """Of the weights, for the model card."""
    main: str | None = "newest"
    """What main shall hold: `newest`, a revision, or None: its files stay, only the index is written."""
    sign: str | None = None
    """Private key that signs the manifests (`olmo keys new`)."""
    private: bool | None = None
    """Of a hub repository; None: as it is, and for a new one what the hub does by default."""
    replace: bool = False
    """Overwrite published revisions that have another content, and a main that is not ours."""
    workers: int = 4
    """Files at a time."""
    staging: str | None = None
    """Where releases are assembled; None: .publishing in the run's folder. It takes the size of one release."""
    dry_run: bool = False
    """Only list what would be published and what is there."""
    retry: RetryConfig = MISSING
    claims: ClaimsConfig = MISSING


def main(argv: list[str]) -> None:
    """Publish, and say what is where."""
    words = ["steps=null" if word == "steps=all" else re.sub(r"^steps=(\d+)$", r"steps=[\1]", word) for word in argv]
    config = load_config("publish", PublishConfig, words, _problems)
    run = Path(config.run)
    plan = plan_steps(run, config.steps, config.stage)
    progress = Progress()
    target = open_target(config.target, _manner(config, progress))
    options = AssembleOptions(
        config.stage, config.dtype, config.optimizer_state, config.license, Path(config.sign) if config.sign else None, None
    )
    staging = Path(config.staging) if config.staging else run / ".publishing"
    wishes = Wishes(run, staging, options, config.main, config.replace)
    if config.dry_run:
        print_plan(target, plan, wishes)
        return
    target.prepare(config.private, config.main is not None and not config.replace)
    publish(target, plan, wishes, progress)


def open_target(where: str, manner: Manner) -> Target:
    """The place that `where` names: only `hub:` is a hub here, because `runs/first` may be a folder that is not there yet.

    Raises:
        ConfigError: a package is missing, or no file system has that name.
    """
    if where.startswith("hub:"):
        return HubTarget(where.removeprefix("hub:"), manner)
    if "://" not in where or where.startswith(("file://", "local://")):
        return FolderTarget(re.sub(r"^(file|local)://", "", where), manner)
    return ObjectTarget(where, manner)


def _manner(config: PublishConfig, progress: Progress) -> Manner:
    patience = Patience(config.retry.attempts, config.retry.first_wait_s, config.retry.max_wait_s)
    timing = Timing(config.claims.beat_s, config.claims.expiry_s)
    return Manner(config.workers, patience, config.retry.timeout_s, timing, progress.say)


def _problems(config: PublishConfig) -> list[str]:
    problems = []
    if not (Path(config.run) / "config.yaml").exists():
        problems.append(f"run={config.run} is not the folder of a run (it has no config.yaml); e.g. runs/first")
    name = config.target.removeprefix("hub:")
    if config.target.startswith("hub:") and not HUB_NAME.fullmatch(name):
        problems.append(f"target={scrub(config.target)} is not a hub repository: hub:owner/name; a token comes from HF_TOKEN")
    if "://" in config.target and "@" in config.target.split("://", 1)[1].split("/", 1)[0]:
        problems.append(
            f"target={scrub(config.target)} holds credentials; give them by the environment or fsspec's configuration"
        )
    if config.stage < 1:
        problems.append(f"stage={config.stage} must be at least 1, the first stage of training")
    if config.dtype is not None and config.dtype not in FLOAT_DTYPES:
        problems.append(f"dtype={config.dtype} is not one of {', '.join(FLOAT_DTYPES)}; leave it out to publish as saved")
    if config.steps == []:
        problems.append("steps=[] names no step; steps=all, or e.g. steps=[100,200]")
    if config.main not in (None, NEWEST) and parse_revision(config.main) is None:
        problems.append(f"main={config.main} is neither newest, null nor the name of a revision, e.g. stage1-step100-tokens4B")
    if config.workers < 1 or config.retry.attempts < 1:
        problems.append(f"workers={config.workers} and retry.attempts={config.retry.attempts} must be at least 1")
    times = config.retry.first_wait_s, config.retry.max_wait_s, config.retry.timeout_s, config.claims.beat_s
    if min(times) <= 0 or config.claims.expiry_s < 3 * config.claims.beat_s:
        problems.append(
            f"claims.expiry_s={config.claims.expiry_s} must be at least 3 * claims.beat_s={config.claims.beat_s}, and the waits "
            "positive"
        )
    if config.sign is not None:
        try:
            read_private_key(Path(config.sign))
        except ConfigError as error:
            problems += error.problems
    return problems


if __name__ == "__main__":
    raise SystemExit(run_command(main))
