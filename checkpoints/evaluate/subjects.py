"""What is evaluated: the checkpoints that a command line names, and the run that their results belong to."""

from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints.catalog import find_folders
from checkpoints.opening import Checkpoint, open_checkpoint
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.step_folder import MANIFEST


@dataclass(frozen=True)
class Subject:
    """One checkpoint."""

    checkpoint: Checkpoint
    run: Path | None
    """Folder of the run that has this step; None: the checkpoint stands outside a run."""

    name: str
    """For the table: the step, where all are of one run."""


@dataclass(frozen=True)
class Steps:
    """Which steps of a run; neither: the newest."""

    wanted: tuple[int, ...] = ()
    all: bool = False

    def __bool__(self) -> bool:
        return self.all or bool(self.wanted)


def find_subjects(places: list[str], steps: Steps) -> list[Subject]:
    """Open what the places name; reads no weights.

    Raises:
        ConfigError: a place is no checkpoint, or a step is not saved; lists every problem.
    """
    subjects, problems = [], []
    for where in places:
        try:
            subjects += _open(where, steps)
        except ConfigError as error:
            problems += error.problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    if len({subject.run for subject in subjects}) > 1:
        return [replace(subject, name=subject.checkpoint.where) for subject in subjects]
    return subjects


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, and not of one step or of a Hugging Face model."""
    return (path / "config.yaml").exists() and not (path / MANIFEST).exists() and not (path / "config.json").exists()


def _open(where: str, steps: Steps) -> list[Subject]:
    path = Path(where)
    if not is_run(path):
        if steps:
            raise ConfigError(f"{where} is one checkpoint; --step, --steps and --all-steps go with the folder of a run")
        checkpoint = open_checkpoint(where)
        run = None if checkpoint.is_hf else checkpoint.folder.absolute().parent.parent
        return [_subject(checkpoint, run if run is not None and is_run(run) else None)]
    if not steps:
        return [_subject(open_checkpoint(where), path)]
    folders = dict(find_folders(path))
    missing = [step for step in steps.wanted if step not in folders]
    if missing:
        have = ", ".join(map(str, folders))
        raise ConfigError([f"step {step} is not saved in {where}; saved: {have}" for step in missing])
    return [_subject(open_checkpoint(where, step), path) for step in (folders if steps.all else steps.wanted)]


def _subject(checkpoint: Checkpoint, run: Path | None) -> Subject:
    return Subject(checkpoint, run, checkpoint.where if run is None else str(checkpoint.step))
