"""The Slurm allocation that a supervisor runs in: its nodes, its time, the steps in it, and the way back into the queue."""

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import slurm
from launch.attempts import Attempt
from launch.job_folder import Job, add_slurm_id
from olmo_train.attempt import ATTEMPT_DIR, node_name

SOON_S = 20.0
"""For an answer of Slurm's while a run waits for it."""
RANKS = "ranks"
"""Name of the ranks' steps."""
PROBE_S = 15.0
"""In which a node must start a process to count as alive."""
KILL_S = 3.0
"""In which nodes that live have heard of the end of a step; for one that is lost, scancel waits longer."""
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
WITHOUT_ANSWER_S = 75.0
"""srun --wait: after the first rank ended. The ranks' own watchdog is faster."""
LOST = ("down", "fail", "failing", "error", "unknown", "no_respond", "power_down", "powered_down", "powering_down", "reboot")


@dataclass
class Allocation:
    """One Slurm job, seen from one of its nodes."""

    job_id: str
    """What squeue, scontrol and scancel call it. srun wants SLURM_JOB_ID, a number also for a task of an array."""
    job: Job
    folder: Path
    """Of the job."""
    ended_steps: set[str] = field(default_factory=set)
    """Killed already; one on a lost node stays in Slurm's list until Slurm has noticed the loss."""

    can_requeue = True

    def look(self) -> tuple[list[str], float | None]:
        """Nodes that Slurm does not call lost, and the seconds until the time limit.

        Raises:
            SlurmError: Slurm does not answer from here, or knows nothing yet.
        """
        answer = slurm.ask(["squeue", "--noheader", f"--jobs={self.job_id}", "--format=%N|%L"], SOON_S).strip()
        nodelist, _, left = answer.partition("|")
        nodes = slurm.expand(nodelist)
        states = slurm.node_states(nodes)
        alive = [node for node in nodes if states.get(node, "down") not in LOST]
        if node_name() in nodes and node_name() not in alive:
            # As long as a controller that was started anew has not heard of its nodes: they are no less there than this one.
            raise slurm.SlurmError(f"Slurm calls {node_name()} {states.get(node_name(), 'unknown')}, from where this is asked")
        return alive, slurm.seconds(left)

    def is_at_time_limit(self) -> bool:
        """Whether that is why Slurm ends this job."""
        try:
            return slurm.ask(["squeue", "--noheader", f"--jobs={self.job_id}", "--format=%r"], SOON_S).strip() == "TimeLimit"
        except slurm.SlurmError:
            return False

    def start(self, attempt: Attempt) -> subprocess.Popen[bytes]:
        """Start the ranks as a step on the attempt's nodes; what srun itself says goes to srun.log."""
        folder = Path(attempt.folder)
        command = [
            *self._srun(attempt.nodes, attempt.ranks_per_node), "--kill-on-bad-exit=1", f"--wait={WITHOUT_ANSWER_S:.0f}",
            f"--output={folder}/rank-%5t.log", f"--job-name={RANKS}", *self.job.srun, *self.job.command,
        ]  # fmt: skip
        environment = {**_environment(), **self.job.environment, ATTEMPT_DIR: str(folder), "PYTHONUNBUFFERED": "1"}
        with open(folder / "srun.log", "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def said(self, attempt: Attempt) -> list[str]:
        """What srun said of the attempt's ranks."""
        path = Path(attempt.folder) / "srun.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [line for line in lines if "Job step aborted: Waiting" not in line]

    def start_guard(self, node: str, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start `command` on one node beside the ranks, without GPUs. It outlives SIGUSR1, which is meant for the ranks."""
        options = [*self._srun([node], 1), "--mem=0", "--gres=none", f"--output={log}", "--open-mode=append", "--job-name=guard"]
        deaf = ["/bin/sh", "-c", 'trap "" USR1; exec "$@"', "sh", *command]
        return subprocess.Popen([*options, *deaf], env=_environment(), **QUIET)

    def _srun(self, nodes: list[str], ranks_per_node: int) -> list[str]:
        number = os.environ.get("SLURM_JOB_ID", self.job_id)
        return [
            "srun", f"--jobid={number}", "--overlap", "--input=none", "--export=ALL", f"--nodes={len(nodes)}",
            f"--nodelist={','.join(nodes)}", f"--ntasks={len(nodes) * ranks_per_node}", f"--ntasks-per-node={ranks_per_node}",
        ]  # fmt: skip

    def probe(self, nodes: list[str], enough: int) -> list[str]:
        """Those of the nodes on which a process can be started now; once `enough` are found, the others are not waited for."""
        tries = {}
        for node in nodes:
            command = [*self._srun([node], 1), "--mem=0", "--gres=none", "--job-name=probe", "true"]
            tries[node] = subprocess.Popen(command, env=_environment(), **QUIET)
        deadline = time.monotonic() + PROBE_S
        alive: list[str] = []
        while len(alive) < enough and time.monotonic() < deadline and any(try_.poll() is None for try_ in tries.values()):
            time.sleep(0.1)
            alive = [node for node, try_ in tries.items() if try_.poll() == 0]
        for try_ in tries.values():
            if try_.poll() is None:
                try_.kill()
            try_.wait()
        return alive

    def steps(self) -> list[str]:
        """The steps of ranks that Slurm lists and that were not ended from here."""
        answer = slurm.ask(["squeue", "--steps", "--noheader", f"--jobs={self.job_id}", "--format=%i|%j"], SOON_S)
        found = [line.strip().split("|", 1) for line in answer.splitlines() if "|" in line]
        return [step for step, name in found if name == RANKS and step not in self.ended_steps]

    def stop(self, process: subprocess.Popen[bytes] | None) -> None:
        """Kill what is left of the ranks, wherever it still can be reached, and do not wait for nodes that are lost."""
        try:
            steps = self.steps()
        except slurm.SlurmError:
            steps = []
        for step in steps:
            killer = subprocess.Popen(["scancel", "--signal=KILL", step], env=_environment(), **QUIET)
            with suppress(subprocess.TimeoutExpired):
                killer.wait(KILL_S)
            self.ended_steps.add(step)
        if process is not None and process.poll() is None:
            process.kill()  # srun would wait for the lost node until Slurm gives it up
            process.wait()

    def requeue(self) -> None:
        """Put this job back into the queue; Slurm then ends it.

        Raises:
            SlurmError: it was refused.
        """
        slurm.requeue(self.job_id)

    def submit_anew(self, without: list[str]) -> str:
        """Submit the job's script again, to start after this job, and return the new id.

        Raises:
            SlurmError: it was refused.
        """
        options = [f"--dependency=afterany:{self.job_id}"]
        options += [f"--exclude={','.join(without)}"] if without else []
        job_id = slurm.submit(self.folder / "job.sbatch", options)
        add_slurm_id(self.folder, job_id, time.time())
        return job_id

    def cancel(self) -> None:
        """End this job.

        Raises:
            SlurmError: it was refused.
        """
        slurm.cancel(self.job_id)


def own_job_id() -> str:
    """Of the job around us: 12, or 12_3 for a task of an array.

    Its SLURM_JOB_ID, which alone srun takes, may be 12, and that means all tasks to scontrol.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _environment() -> dict[str, str]:
    """Ours, without what Slurm told the batch script of its own step: srun would take it for options."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(("SLURM_", "SLURMD_"))}
