"""Publish steps of a run, oldest first: verify, assemble in a staging folder, compare with what is there, put, then main."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.catalog import find_steps
from checkpoints.convert.hf_folder import FLOAT_DTYPES
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.publish.progress import Progress, amount
from checkpoints.publish.records import Record, record_of
from checkpoints.publish.retry import is_disk_full
from checkpoints.publish.staging import Staged, check_staged, staging_folder
from checkpoints.publish.targets import Target, read_published
from checkpoints.release import SIGNATURE, Release, is_optimizer_file, parse_revision, revision_name
from olmo_train.checkpoint import DTYPES, PERMANENT, read_manifest, verify_files
from olmo_train.config.train import TrainConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.schema import read_yaml


@dataclass(frozen=True)
class Planned:
    """A step to publish."""

    step: int
    folder: Path
    name: str


@dataclass(frozen=True)
class Wishes:
    """What the user asked for."""

    run: Path
    staging: Path
    options: AssembleOptions
    main: str | None
    replace: bool


def plan_steps(run: Path, steps: list[int] | None, stage: int) -> list[Planned]:
    """The permanent steps of a run, or those asked for, oldest first.

    Raises:
        ConfigError: a step is not saved, or is one that a run removes again.
    """
    found = {info.step: info for info in find_steps(run)}
    permanent = [step for step in found if found[step].kind == PERMANENT]
    saved = f"permanent steps: {', '.join(map(str, permanent))}"
    wanted = permanent if steps is None else sorted(set(steps))
    problems = [f"steps: {step} is not saved in {run}; {saved}" for step in wanted if step not in found]
    problems += [
        f"steps: {step} of {run} is ephemeral, the run removes it by and by; {saved}"
        for step in wanted
        if step in found and step not in permanent
    ]
    if problems or not wanted:
        raise ConfigError(problems or f"{run} has no permanent step; checkpoint.save_every says when one comes")
    return [Planned(step, found[step].path, revision_name(stage, step, found[step].tokens)) for step in wanted]


def expected_bytes(folder: Path, options: AssembleOptions) -> int:
    """Of the weights, and the optimizer and random states if they are asked for; texts and plots come on top."""
    manifest = read_manifest(folder)
    total = 0
    for entry in manifest["tensors"]["model"].values():
        dtype = DTYPES[entry["dtype"]] if options.dtype is None else FLOAT_DTYPES[options.dtype]
        total += math.prod(entry["shape"]) * dtype.itemsize
    if options.optimizer_state:
        total += sum(entry["bytes"] for name, entry in manifest["files"].items() if is_optimizer_file(name))
    return total


def print_plan(target: Target, plan: list[Planned], wishes: Wishes) -> None:
    """What would be published, and what is there."""
    try:
        there = target.store.revisions()
    except ConfigError as error:
        print(f"{error}\nso nothing is there yet, as far as can be seen")
        there = []
    print(f"{'revision':<40} {'about':>12}  at {target.where}")
    for planned in plan:
        state = "-"
        if planned.name in there:
            release = read_published(target.store, planned.name)
            damage = target.damage(release) if release is not None else []
            state = f"published, damaged: {damage[0]}" if damage else "published"
        print(f"{planned.name:<40} {amount(expected_bytes(planned.folder, wishes.options)):>12}  {state}")


def publish(target: Target, plan: list[Planned], wishes: Wishes, progress: Progress) -> None:
    """Publish every planned step, then main and the index; these also if a later step fails.

    Raises:
        ConfigError, CheckpointError: what is published until then stays, and the same command goes on.
    """
    done = 0
    try:
        for planned in plan:
            _publish_step(target, planned, wishes, progress)
            done += 1
    except (ConfigError, CheckpointError):
        if done:
            _main_after_failure(target, wishes, progress)
        raise
    _main(target, wishes, progress)


def _main(target: Target, wishes: Wishes, progress: Progress) -> None:
    name, n = target.set_main(wishes.main)
    holds = f"main holds {name}, and" if name is not None else "main has"
    progress.say(f"{target.where}: {holds} the index of {n} release{'s' if n != 1 else ''}")


def _main_after_failure(target: Target, wishes: Wishes, progress: Progress) -> None:
    """What was published shall be found; whatever fails here must not hide why the publishing ended."""
    try:
        _main(target, replace(wishes, main=wishes.main if _is_there(target, wishes.main) else None), progress)
    except (ConfigError, CheckpointError) as error:
        progress.say(f"{target.where}: main and the index are as they were: {error}")


def _is_there(target: Target, choice: str | None) -> bool:
    return choice is None or parse_revision(choice) is None or choice in target.store.revisions()


def _publish_step(target: Target, planned: Planned, wishes: Wishes, progress: Progress) -> None:
    there = read_published(target.store, planned.name) if not wishes.replace else _published_or_none(target, planned.name)
    damage = target.damage(there) if there is not None else []
    if damage and not wishes.replace:
        raise CheckpointError(
            f"{target.where}: {planned.name} is published, and damaged there: {'; '.join(damage[:5])}; replace=true publishes "
            "it anew"
        )
    options = wishes.options
    record = record_of(planned.folder, target.where, [planned.name, options.dtype, options.optimizer_state, options.license])
    if there is not None and not damage and not wishes.replace and record.read() == there.sha256:
        progress.say(f"{planned.name}: published already")
        return
    problems = verify_files(planned.folder, read_manifest(planned.folder))
    if problems:
        raise CheckpointError("\n".join([*problems, f"step {planned.step} of {wishes.run} is damaged and is not published"]))
    parent = _parent(target, planned, wishes)
    with staging_folder(wishes.staging, planned.name) as folder:
        staged = _assemble(planned, wishes, folder, parent, progress)
        _put(target, staged, there if not damage else None, wishes, progress)
    _remember(target, staged, record)


def _assemble(planned: Planned, wishes: Wishes, folder: Path, parent: Release | None, progress: Progress) -> Staged:
    progress.say(f"{planned.name}: assembling")
    try:
        release = assemble(wishes.run, planned.step, folder, replace(wishes.options, parent=parent))
        assert release.name == planned.name, release.name
        return check_staged(folder, release)
    except Exception as error:
        if is_disk_full(error):
            raise CheckpointError(
                f"{wishes.staging}: no space left while {planned.name} was assembled; it needs about "
                f"{amount(expected_bytes(planned.folder, wishes.options))}, nothing was left there or published of it; free "
                "space, or give staging=FOLDER on another disk"
            ) from None
        raise


def _put(target: Target, staged: Staged, there: Release | None, wishes: Wishes, progress: Progress) -> None:
    if there is not None and (not wishes.replace or there.sha256 == staged.release.sha256):
        progress.say(f"{staged.release.name}: published already{_differences(target, there, staged)}")
        return
    progress.begin(staged.release.name, staged.bytes)
    if target.put(staged, wishes.replace, progress.moved):
        progress.end("published")
        return
    there = read_published(target.store, staged.release.name)
    if there is None:
        raise CheckpointError(f"{target.where}: {staged.release.name} was published and removed by another process; run it again")
    progress.say(f"{staged.release.name}: published by another process{_differences(target, there, staged)}")


def _differences(target: Target, there: Release, staged: Staged) -> str:
    """What a published release, the same weights, has otherwise than the one assembled now; it stays as it is.

    Raises:
        CheckpointError: it has other weights, or lacks the optimizer state.
    """
    ours = staged.release
    if there.weights_sha256 != ours.weights_sha256:
        raise CheckpointError(
            f"{target.where}: {ours.name} is published with other weights: weights_sha256 {there.weights_sha256} ({there.dtype}, "
            f"run {there.run}) there, {ours.weights_sha256} ({ours.dtype}, run {ours.run}) here; a published revision is never "
            "overwritten unless replace=true says so"
        )
    if ours.has_optimizer and not there.has_optimizer:
        raise CheckpointError(
            f"{target.where}: {ours.name} is published without the optimizer state (weights_sha256 {there.weights_sha256} there "
            "and here); replace=true publishes it with it"
        )
    other = [path for path in ours.files if there.files.get(path) != ours.files[path]]
    if SIGNATURE in staged.closing and SIGNATURE not in target.store.files(ours.name):
        other.append(SIGNATURE)
    return f" (the same weights; {', '.join(other[:4])} would be others now, replace=true renews them)" if other else ""


def _parent(target: Target, planned: Planned, wishes: Wishes) -> Release | None:
    """The release of the same run and stage before this step."""
    run = read_yaml(planned.folder / "config.yaml", TrainConfig).run_name
    for name in reversed(target.store.revisions()):
        place = parse_revision(name)
        if place is not None and place[0] == wishes.options.stage and place[1] < planned.step:
            before = read_published(target.store, name)
            if before is not None and before.run == run:
                return before
    return None


def _published_or_none(target: Target, name: str) -> Release | None:
    try:
        return read_published(target.store, name)
    except CheckpointError:
        return None  # unreadable, and to be replaced


def _remember(target: Target, staged: Staged, record: Record) -> None:
    there = read_published(target.store, staged.release.name)
    if there is not None:
        record.write(there.sha256)
