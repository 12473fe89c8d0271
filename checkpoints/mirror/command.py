"""`olmo checkpoints mirror RUN PLACE`: copies of a run's permanent steps elsewhere; --restore brings the newest whole one back.

A step is mirrored when its every byte was read back from the mirror and compared; only then its manifest is written there, and
only then --keep-local may delete it here. With --follow the mirror is kept up until the run is complete. Training does all of
this by itself with checkpoint.mirror=PLACE (docs/mirror.md).
"""

import argparse
import os
import select
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from checkpoints.mirror.place import Place
from checkpoints.publish.retry import Patience, scrub
from olmo_train.checkpoint import PERMANENT, read_manifest, remove_step
from olmo_train.config.train import TrainConfig
from olmo_train.errors import CheckpointError, ConfigError, run_command
from olmo_train.files import sync_folder
from olmo_train.schema import read_yaml
from olmo_train.step_folder import SUSPECT, last_trusted, list_steps, step_name

MAX_WAIT_S = 600.0
"""Between rounds that fail."""


def main(argv: list[str]) -> None:
    """Mirror, or restore."""
    parser = argparse.ArgumentParser(
        "olmo checkpoints mirror", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("place", help="a folder, or a URL that fsspec knows: s3://bucket/prefix (pip install s3fs)")
    parser.add_argument("--follow", action="store_true", help="go on until the run's last step is mirrored")
    parser.add_argument(
        "--keep-local", type=int, metavar="K", help="delete all but the newest K permanent steps here, once mirrored"
    )
    parser.add_argument("--restore", action="store_true", help="the other way: the newest whole step into a run without steps")
    parser.add_argument("--poll", type=float, default=10.0, metavar="S", help="seconds between looks for new steps (--follow)")
    parser.add_argument("--attempts", type=int, default=6, help="of one request that fails in a way that may pass")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="with --follow: a last round when it does, then the end"
    )
    args = parser.parse_args(argv)
    if args.keep_local is not None and args.keep_local < 1:
        raise ConfigError(f"--keep-local {args.keep_local} must be at least 1: a run resumes from what is here")
    if "://" in args.place and "@" in args.place.split("://", 1)[1].split("/", 1)[0]:
        raise ConfigError(f"{scrub(args.place)} holds credentials; give them by the environment or fsspec's configuration")
    place = Place(args.place, say, Patience(args.attempts))
    if args.restore:
        restore(args.run, place)
        return
    if not (args.run / "config.yaml").exists():
        raise ConfigError(f"{args.run} is not the folder of a run (it has no config.yaml); e.g. runs/first")
    if args.follow:
        os.nice(10)  # the trainer's own threads come first
        ended = _stdin_closed if args.until_stdin_closes else _complete(args.run, place)
        follow(args.run, place, args.keep_local, lambda: ended(args.poll))
    else:
        mirror_once(args.run, place, args.keep_local)


def say(text: str) -> None:
    """Tell the log in which training tells its own."""
    print(f"{time.strftime('%H:%M:%S')} mirror: {text}", file=sys.stderr, flush=True)


# ---- there -------------------------------------------------------------------------------------------------------------


def mirror_once(run: Path, place: Place, keep_local: int | None) -> None:
    """Bring every permanent step there, then delete those that need not stay here.

    Raises:
        CheckpointError: a step is damaged here, or the place fails. The other steps are mirrored first.
        ConfigError: not allowed, or the place holds another run.
    """
    place.put_records(run)
    permanent = _permanent_steps(run)
    problems, held = [], set()
    for folder in permanent:
        try:
            if not place.holds(folder):
                begin = time.monotonic()
                place.put_records(run)  # metrics up to this step are there before it is
                place.put_step(folder)
                n_bytes, seconds = sum(f.stat().st_size for f in folder.iterdir()), time.monotonic() - begin
                say(f"{folder.name} is at {place.where}: {n_bytes / 1e9:.3g} GB in {seconds:.0f} s, every byte read back")
            held.add(folder)
        except (CheckpointError, OSError) as error:
            problems.append(str(error))
    if keep_local is not None:
        for folder in permanent[:-keep_local]:
            if folder in held:
                remove_step(folder)
                say(f"{folder.name} is deleted here; {place.where} has it")
    if problems:
        raise CheckpointError("; ".join(problems))


def _permanent_steps(run: Path) -> list[Path]:
    found = []
    for _, folder in list_steps(run / "steps"):
        try:
            if read_manifest(folder)["kind"] == PERMANENT:
                found.append(folder)
        except CheckpointError as error:
            if folder.exists():  # it may have been pruned since it was listed
                say(str(error))
    return found


def follow(run: Path, place: Place, keep_local: int | None, ended: Callable[[], bool]) -> None:
    """Keep the mirror up; `ended` waits a little and says whether the next round is the last, whose failure is raised."""
    failures, is_last = 0, False
    while not is_last:
        try:
            mirror_once(run, place, keep_local)
            failures = 0
        except (CheckpointError, ConfigError, OSError) as error:
            failures += 1
            say(f"failed ({failures} in a row), training goes on and it is tried again: {error}")
        again_at = time.monotonic() + (min(MAX_WAIT_S, 5.0 * 2**failures) if failures else 0.0)
        is_last = ended()
        while not is_last and time.monotonic() < again_at:
            is_last = ended()
    mirror_once(run, place, keep_local)


def _stdin_closed(wait_s: float) -> bool:
    """Whoever started this process keeps its stdin open while it lives, and is gone when that ends, however it ended."""
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def _complete(run: Path, place: Place) -> Callable[[float], bool]:
    config = read_yaml(run / "config.yaml", TrainConfig)
    last = step_name(config.max_tokens // config.data.global_batch_size)

    def ended(wait_s: float) -> bool:
        if (run / "steps" / last / "manifest.json").exists():
            return True
        time.sleep(wait_s)
        return False

    return ended


# ---- and back ----------------------------------------------------------------------------------------------------------


def restore(run: Path, place: Place) -> int | None:
    """Bring the newest whole step and the run's records into a run folder without steps; None if there is no trusted one.

    Raises:
        ConfigError: the folder has steps. CheckpointError: the place fails, or no step there is whole.
    """
    steps = run / "steps"
    if list_steps(steps):
        raise ConfigError(f"{steps} has steps already; restore into an empty run folder, or move them away")
    found, problems = place.steps(), []
    if not found:
        say(f"{place.where} holds no step: nothing to restore")
        return None
    trusted = last_trusted(run)
    if trusted is not None:
        suspect = [step for step in found if step > trusted]
        found = [step for step in found if step <= trusted]
        say(f"{len(suspect)} steps of {place.where} are later than step {trusted} and not trusted ({SUSPECT}), {len(found)} are")
        if not found:
            return None
    for step in reversed(found):
        temporary = steps / f".{step_name(step)}.tmp-restore-{os.getpid()}"
        begin = time.monotonic()
        try:
            place.get_step(step, temporary)
        except CheckpointError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            problems.append(str(error))
            say(f"{step_name(step)} cannot be restored, taking the step before it: {error}")
            continue
        try:
            place.get_records(run)
            os.rename(temporary, steps / step_name(step))
            sync_folder(steps)
        except OSError as error:  # full, or another start has cleared the folder away and restores by itself
            raise CheckpointError(f"{error.filename or steps}: {error.strerror}; {step_name(step)} is not restored") from error
        say(f"{step_name(step)} is restored from {place.where} in {time.monotonic() - begin:.0f} s, every byte compared")
        return step
    raise CheckpointError(f"{place.where}: none of its {len(found)} steps could be restored: {'; '.join(problems)}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
