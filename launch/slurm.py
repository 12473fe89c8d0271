"""What this project asks of Slurm: its command line tools with typed answers, time limits and errors that say what to do."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from olmo_train.errors import EXIT_FAILED

PATIENCE_S = 75.0
"""For one answer. Slurm's tools themselves ask a controller that is silent again and again."""
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
FOREIGN = ("SLURM_", "SQUEUE_", "SINFO_", "SCANCEL_")
"""Variables that change what Slurm's tools do: of a job around us, or a user's own defaults for squeue."""
REMEDIES = {
    "Invalid account": "name one of your accounts (`sacctmgr show associations user=$USER`) as cluster.account",
    "Invalid qos": "name a QOS that the account may use as cluster.qos",
    "invalid partition": "name a partition of `sinfo -s` as cluster.partition",
    "Requested time limit is invalid": "ask for less time, or another partition; `sinfo -s` shows their limits",
    "Node count specification invalid": "ask for fewer nodes, or another partition; `sinfo -s` shows their sizes",
    "More processors requested than permitted": "ask for fewer nodes, or fewer cluster.cpus_per_rank",
    "Requested node configuration is not available": "no node has so many GPUs, CPUs or so much memory; `sinfo -N -l` shows them",
    "Invalid generic resource": "cluster.gpu_request names GPUs as this site does not; `sinfo -o '%P %G'` shows how it does",
    "Unable to contact slurm controller": "the controller does not answer; try again, or ask the site (`scontrol ping`)",
    "Unable to parse": "look at the options under cluster.sbatch",
    "unrecognized option": "look at the options under cluster.sbatch and cluster.srun",
}


class SlurmError(RuntimeError):
    """Slurm is not there, did not answer, or refused; says which command, what it printed and what to do."""


class SlurmSilentError(SlurmError):
    """No answer in time: nobody knows whether Slurm did what it was asked."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs. A task of an array has an id like 12_3."""

    id: str
    name: str
    state: str
    """As Slurm writes it: PENDING, RUNNING, COMPLETING, REQUEUED, ..."""
    reason: str
    """Why it waits; empty for a job that runs."""
    nodes: list[str]
    used_s: int | None
    left_s: int | None
    """Until the time limit; None where there is none."""
    partition: str
    restarts: int
    start: str
    """When it began or is expected to, in the controller's local time; empty if nobody knows."""


@dataclass(frozen=True)
class Partition:
    """A queue of the site, and what a job in it can have."""

    name: str
    is_default: bool
    is_up: bool
    max_nodes: int
    max_time_s: int | None
    """None: no limit."""
    gres: list[str]
    """GPUs and the like of its kinds of nodes, e.g. gpu:h100:8."""
    memory_mib: int
    """Of its largest node."""
    cpus: int
    """Of its largest node."""


def submit(script: Path, options: Sequence[str] = (), cwd: Path | None = None) -> str:
    """Submit a batch script and return the job's id; options go before those in the script.

    Raises:
        SlurmError: it was refused, or the answer holds no id.
    """
    answer = ask(["sbatch", "--parsable", *options, str(script)], cwd=cwd)
    job_id = answer.strip().splitlines()[-1].split(";")[0] if answer.strip() else ""
    if not job_id.isdigit():
        raise SlurmError(f"sbatch answered {answer.strip()!r}, which holds no job id; see with `squeue --me` if there is a job")
    return job_id


def requeue(job_id: str) -> None:
    """Put a job back into the queue; Slurm ends what it runs."""
    ask(["scontrol", "requeue", job_id])


def cancel(job_id: str, signal: str | None = None, step: str | None = None) -> None:
    """End a job or one step of it, or only send a signal: to all processes of its steps, not to the batch script."""
    ask(["scancel", *([f"--signal={signal}"] if signal else []), f"{job_id}.{step}" if step else job_id])


QUEUE_FIELDS = {
    "JobArrayID": 40, "State": 20, "Reason": 60, "NodeList": 1000, "TimeUsed": 20, "TimeLeft": 20, "Partition": 60,
    "RestartCnt": 10, "StartTime": 24, "Name": 250,
}  # fmt: skip


def queue(job_ids: Sequence[str] | None = None) -> list[QueuedJob]:
    """The jobs with these ids (of an array: each task) that wait or run, or all of this user's; one that has ended is absent."""
    if job_ids is not None and not job_ids:
        return []
    which = ["--me"] if job_ids is None else [f"--jobs={','.join(job_ids)}"]
    columns = ",".join(f"{name}:{width}|" for name, width in QUEUE_FIELDS.items())
    try:
        answer = ask(["squeue", "--noheader", "--array", *which, f"--Format={columns}"])
    except SlurmError as error:
        if "Invalid job id" in str(error):  # squeue's word for a single job that Slurm has forgotten
            return []
        raise
    return [_queued([word.strip() for word in line.split("|", len(QUEUE_FIELDS) - 1)]) for line in answer.splitlines() if line]


def _queued(words: list[str]) -> QueuedJob:
    job_id, state, reason, nodes, used, left, partition, restarts, start, name = words
    return QueuedJob(
        id=job_id,
        name=name.rstrip("|").rstrip(),
        state=state,
        reason="" if reason == "None" else reason,
        nodes=expand(nodes),
        used_s=seconds(used),
        left_s=seconds(left),
        partition=partition,
        restarts=int(restarts) if restarts.isdigit() else 0,
        start="" if start == "N/A" else start,
    )


def expand(nodelist: str) -> list[str]:
    """The names in a list as Slurm writes it: node[1-3,7]."""
    if not re.search(r"[\[,]", nodelist):
        return [nodelist] if nodelist else []
    return ask(["scontrol", "show", "hostnames", nodelist]).split()


FLAGS = "*~#!%$@^-+"
"""After a state; * means that the node does not answer."""


def node_states(nodes: Sequence[str]) -> dict[str, str]:
    """The state of each node: idle, allocated, mixed, draining, drained, down, ...; one that does not answer is down."""
    if not nodes:
        return {}
    answer = ask(["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N|%T"])
    states = {}
    for line in answer.splitlines():
        name, state = line.strip().split("|", 1)
        states[name] = "down" if "*" in state else state.lower().rstrip(FLAGS)
    return states


def partitions() -> list[Partition]:
    """The partitions of this site that the user can see."""
    found: dict[str, Partition] = {}
    for line in ask(["sinfo", "--noheader", "--format=%P|%a|%l|%D|%G|%m|%c|%s"]).splitlines():
        name, up, limit, count, gres, memory, cpus, size = line.strip().split("|")
        name, is_default = name.rstrip("*"), name.endswith("*")
        before = found.get(name)
        most = size.split("-")[-1]
        n_nodes = int(count) + (before.max_nodes if before else 0)
        found[name] = Partition(
            name=name,
            is_default=is_default,
            is_up=up == "up",
            max_nodes=min(n_nodes, int(most)) if most.isdigit() else n_nodes,
            max_time_s=seconds(limit),
            gres=(before.gres if before else []) + _split_gres(gres),
            memory_mib=max(int(memory.rstrip("+")), before.memory_mib if before else 0),
            cpus=max(int(cpus.rstrip("+")), before.cpus if before else 0),
        )
    return list(found.values())


def _split_gres(text: str) -> list[str]:
    """gpu:h100:8(S:0-1),nvme:1 -> [gpu:h100:8, nvme:1]."""
    if text in ("", "(null)", "N/A"):
        return []
    return [word for word in re.sub(r"\([^)]*\)", "", text).split(",") if word]


def show_job(job_id: str) -> dict[str, str]:
    """What `scontrol show job` says; an array gives its first task."""
    line = ask(["scontrol", "--oneliner", "show", "job", job_id]).splitlines()[0]
    return {match[1]: match[2].strip() for match in re.finditer(r"(\S+?)=(.*?)(?=\s+[A-Za-z:/]+=|\s*$)", line)}


def seconds(text: str) -> int | None:
    """A time as Slurm reads and writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    None for one without end (UNLIMITED, infinite) or that is no time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        return None
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, left = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, left = numbers
    else:
        hours, minutes, left = 0, *[*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + left


def ask(command: list[str], timeout_s: float = PATIENCE_S, cwd: Path | None = None) -> str:
    """Run one of Slurm's tools and return what it printed.

    Raises:
        SlurmError: it is not installed, gave no answer in time, or failed.
    """
    try:
        done = subprocess.run(
            command, env=_environment(), cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: not found; run this where Slurm's tools are, e.g. on a login node") from None
    except subprocess.TimeoutExpired:
        remedy = "see with `squeue --me` if the job is there before you submit again" if command[0] == "sbatch" else "try again"
        told = f"{_short(command)} gave no answer in {timeout_s:.0f} s; {remedy}, or ask the site (`scontrol ping`)"
        raise SlurmSilentError(told) from None
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split()) or "nothing was printed"
        remedy = next((f"; {remedy}" for part, remedy in REMEDIES.items() if part.lower() in said.lower()), "")
        raise SlurmError(f"{_short(command)} failed ({done.returncode}): {said}{remedy}")
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours, without what a job around us (a supervisor's own) or a user's taste would make the tools do."""
    ours = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(FOREIGN)}
    return {**ours, "LC_ALL": "C"}


def _short(command: list[str]) -> str:
    return " ".join(word if len(word) < 80 or "/" in word else f"{word[:60]}..." for word in command)


@contextmanager
def told() -> Iterator[None]:
    """For a command's `main`: a SlurmError becomes one line and exit status 1."""
    try:
        yield
    except SlurmError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
