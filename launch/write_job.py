"""A checked request to a job folder, and the job folder to Slurm."""

import fcntl
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from launch.cluster import has_slurm, ranks_per_node
from launch.job_folder import Job, add_slurm_id, new_folder, numbered, slurm_ids
from launch.request import Request
from launch.script import Place, batch_script, in_environment, srun_options
from launch.slurm import SlurmError, SlurmSilentError, queue, submit
from launch.snapshot import share_snapshot, take_snapshot
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic
from olmo_train.schema import to_yaml


def place_of(request: Request, folder: Path) -> Place:
    """Where a job of this request is."""
    return Place(request.run.run_name, folder, Path.cwd(), (request.run_dir,))


def job_of(request: Request, place: Place) -> Job:
    """What the supervisor is told."""
    ranks = ["-m", "olmo_train.parallel.srun", "-m", "olmo_train.train", "--from", str(place.folder / "config.yaml")]
    return Job(
        run_name=request.run.run_name,
        run_dir=str(request.run_dir),
        kind="train",
        command=in_environment(request.cluster, place, ranks),
        node_counts=request.node_counts,
        ranks_per_node=ranks_per_node(request.cluster),
        srun=srun_options(request.cluster, place),
        max_failures=request.launch.max_failures,
        silent_s=request.run.faults.silent_s,
        margin_s=request.cluster.signal_before_s + 60.0,
        requeue=request.cluster.requeue,
    )


def write_job(request: Request, words: Sequence[str], code_of: Path | None = None) -> Path:
    """Make the next job folder of the run and write all of it; `code_of`: a job folder that holds the code already.

    Raises:
        ConfigError: it cannot be written; nothing of it stays.
    """
    try:
        folder = new_folder(request.run_dir / "jobs")
    except OSError as error:
        raise ConfigError(f"run_dir={request.run.run_dir} cannot be written: {error}; give another run_dir") from error
    place = place_of(request, folder)
    try:
        if code_of is None:
            take_snapshot(folder)
        else:
            share_snapshot(code_of, folder)
        write_atomic(folder / "config.yaml", to_yaml(request.run).encode())
        job_of(request, place).write(folder)
        write_atomic(folder / "job.sbatch", batch_script(request.cluster, request.launch, place).encode())
        write_repeat(folder, "launch", words)
        (folder / "attempts").mkdir()
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"{folder} cannot be written: {error}; make room, or give another run_dir") from error
    except ConfigError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def write_repeat(folder: Path, verb: str, words: Sequence[str]) -> None:
    """Write repeat.sh: the command that made the folder, with the code of the folder."""
    code = json.loads((folder / "code.json").read_text())
    commit = (
        "outside git" if code["commit"] is None else f"commit {code['commit']}{' with changes' if code['has_changes'] else ''}"
    )
    command = f"exec {shlex.quote(sys.executable)} -m olmo_train.cli {verb} {shlex.join(words)}"
    lines = [
        "#!/bin/bash",
        f"# The command that made this folder; its code: {commit}",
        f"cd {shlex.quote(os.getcwd())} || exit 2",
    ]
    lines += [f"export PYTHONPATH={shlex.quote(str(folder / 'code'))} PYTHONSAFEPATH=1", command, ""]
    write_atomic(folder / "repeat.sh", "\n".join(lines).encode())


def give_to_slurm(folder: Path) -> str:
    """Submit a job folder and return the job's id. A folder that Slurm refused is deleted again.

    Raises:
        SlurmError: it was refused, or sbatch did not answer; then the folder stays, for the job may be there.
    """
    began = time.time()
    try:
        job_id = submit(folder / "job.sbatch")
    except SlurmSilentError:
        raise
    except SlurmError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    add_slurm_id(folder, job_id, began)
    return job_id


@contextmanager
def alone(run_dirs: Sequence[Path]) -> Iterator[None]:
    """Launch these runs while no other launch does; two at the same moment would not see each other's jobs.

    Raises:
        ConfigError: another launch of one of them is under way, or it has a job already.
    """
    with ExitStack() as stack:
        for run_dir in run_dirs:
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(run_dir / ".launch", "w"))
            except OSError as error:
                raise ConfigError(f"run_dir={run_dir} cannot be written: {error}; give another run_dir") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"run_dir={run_dir} is launched by another `olmo launch` right now; see `olmo jobs`") from None
            except OSError:
                continue  # a file system without locks
        refuse_second(run_dirs)
        yield


def refuse_second(run_dirs: Sequence[Path]) -> None:
    """Raises:
    ConfigError: a run already has a job that waits or runs; two would take each other's place.
    """
    owners = {
        entry["id"]: run_dir for run_dir in run_dirs for folder in numbered(run_dir / "jobs") for entry in slurm_ids(folder)
    }
    if not owners or not has_slurm():
        return
    problems = [
        f"run_dir={owners[job.id]} has job {job.id} already, which is {job.state}; wait for it, or end it with "
        f"`olmo cancel {owners[job.id].name}`"
        for job in queue(list(owners))
        if job.id in owners
    ]
    if problems:
        raise ConfigError(problems)
