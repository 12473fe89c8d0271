"""The folder of one job: all that it needs to run, to run again, and to tell what happened.

    runs/NAME/jobs/0001/
        job.json       `Job`: what the supervisor needs; nothing else decides what runs
        job.sbatch     the script that was submitted
        repeat.sh      the command that made this folder
        config.yaml    the training config, resolved; ranks read this file
        code/          the code as it was, which the ranks run; code.json says from which commit
        slurm.json     ids of the Slurm jobs that ran this, oldest first, and when they were submitted
        job-ID.log     the story: what the supervisor did and why
        attempts/0001/ what the ranks of each start left behind (olmo_train/attempt.py), and attempt.json
        cancelled      there if `olmo cancel` was here: nothing restarts

No module imported here needs more than Python's own library: the supervisor starts from it on any batch node.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic

FORMAT = "olmo_train.job"
VERSION = 1


@dataclass
class Job:
    """What runs, where, and how often again."""

    run_name: str
    run_dir: str
    """Absolute."""
    kind: str
    """train: ranks of one run; tasks: one command of data work."""
    command: list[str]
    """One rank's (or one task's) whole command line, container included; without srun."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that the command needs beside what the batch script exports."""
    node_counts: list[int] = field(default_factory=lambda: [1])
    """Numbers of nodes on which this run is correct, the wanted one first, then the next best."""
    ranks_per_node: int = 1
    srun: list[str] = field(default_factory=list)
    """Options of srun for the ranks, beyond which nodes."""
    max_failures: int = 3
    """Restarts in a row without a newer step saved."""
    silent_s: float = 60.0
    """After which ranks end by themselves when others are gone (faults.silent_s)."""
    margin_s: float = 120.0
    """With less than this left until the time limit nothing is started any more (cluster.signal_before_s)."""
    requeue: bool = True
    """`scontrol requeue` is allowed; else the script is submitted anew."""

    def write(self, folder: Path) -> None:
        """Write job.json."""
        write_atomic(folder / "job.json", json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1).encode())

    @staticmethod
    def read(folder: Path) -> "Job":
        """Read what `write` wrote.

        Raises:
            ConfigError: there is none, or it is of another version.
        """
        try:
            values = json.loads((folder / "job.json").read_text())
            if (values.pop("format"), values.pop("version")) != (FORMAT, VERSION):
                raise ValueError(f"not of format {FORMAT} version {VERSION}")
            return Job(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{folder / 'job.json'} is not a job: {error}; make one with `olmo launch`") from error


def new_folder(jobs: Path) -> Path:
    """Make and return the next numbered folder of `jobs` (or of attempts); safe against a second launcher."""
    jobs.mkdir(parents=True, exist_ok=True)
    folder = next_folder(jobs)
    while True:
        try:
            folder.mkdir()
        except FileExistsError:  # counted from its name: a network file system may list a new folder late
            folder = jobs / f"{int(folder.name) + 1:04d}"
            continue
        return folder


def next_folder(jobs: Path) -> Path:
    """The folder that `new_folder` would make now."""
    return jobs / f"{max((int(path.name) for path in numbered(jobs)), default=0) + 1:04d}"


def numbered(root: Path) -> list[Path]:
    """The numbered folders in `root`, the oldest first; none where it is not there."""
    return sorted(path for path in root.iterdir() if path.name.isdigit()) if root.is_dir() else []


def add_slurm_id(folder: Path, job_id: str, submitted: float) -> None:
    """Remember a Slurm job that runs this folder."""
    entries = [*slurm_ids(folder), {"id": job_id, "submitted": submitted}]
    write_atomic(folder / "slurm.json", json.dumps(entries).encode())


def slurm_ids(folder: Path) -> list[dict[str, Any]]:
    """What `add_slurm_id` wrote, the oldest first."""
    path = folder / "slurm.json"
    return json.loads(path.read_text()) if path.exists() else []


def attempts(folder: Path) -> list[Path]:
    """Folders of the starts, the oldest first."""
    return numbered(folder / "attempts")
