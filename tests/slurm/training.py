"""A training run on a cluster of the tests: launched as its user launches it, watched from outside, compared at the end."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from launch.job_folder import slurm_ids
from olmo_train.checkpoint import read_manifest, verify_files
from olmo_train.files import write_atomic
from olmo_train.step_folder import list_steps
from tests.runs import TIMES, metrics, small, weights
from tests.slurm.cluster import PATIENCE_S, ROOT, Cluster, ClusterError, Process, rank_processes, wait_until

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "PREEMPTED", "NODE_FAIL")
SITE = """\
partition: main
gpus_per_node: 0
ranks_per_node: 1
cpus_per_rank: 4
memory_gib_per_node: 2
gpu_request: null
signal_before_s: 20
environment: {{kind: none, python: {python}}}
"""
"""A site like the cluster of the tests: nodes without GPUs, one rank on each."""
ROWS = 12
"""Of a global batch: it divides among 4, 3 and 2 ranks."""
WORDS = [
    f"data.global_batch_size={ROWS * 16}", "data.micro_batch_size=16", "metrics.log_every=1", "metrics.progress_bar=false",
    "parallel.device=cpu", "parallel.threads_per_rank=1", "parallel.timeout_s=120",
    "faults.hang_s=20", "faults.silent_s=10", "faults.hang_at_start_s=45",
    "checkpoint.save_every=20", "checkpoint.ephemeral_every=2", "checkpoint.max_failures=2",
]  # fmt: skip
"""Beside those of tests/runs.py: often saved, soon noticed, and the same bits with whatever number of cores."""

SLOWLY = ["faults.drill=[{kind: slow, rank: 0, step: 1, seconds: 0.1, once: false}]", "faults.straggler_frac=1000.0"]
"""A launched run takes its time, so that a fast machine is not at the end of it before the fault comes."""


def words(shards: Path, run_dir: Path, n_steps: int, *more: str) -> list[str]:
    """Overrides of a run that all nodes of the tests can take."""
    return small(shards, run_dir, *WORDS, f"max_tokens={n_steps * ROWS * 16}", *more)


class TrainingJob:
    """A run of `n_steps` steps, launched once by `olmo launch`; whatever else it needs it does itself."""

    def __init__(self, cluster: Cluster, run_dir: Path, n_steps: int) -> None:
        self.cluster, self.run_dir, self.n_steps = cluster, run_dir, n_steps
        self.steps = run_dir / "steps"

    def launch(self, overrides: list[str], *options: str) -> str:
        """Submit; `options` are words of LaunchConfig. Returns what the command printed."""
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        site = self.run_dir.with_name(f"{self.run_dir.name}-site.yaml")
        write_atomic(site, SITE.format(python=json.dumps(sys.executable)).encode())
        command = [sys.executable, "-m", "olmo_train.cli", "launch", f"cluster={site}", "time=60", *options, *overrides, *SLOWLY]
        return self.cluster.client("env", "-C", str(ROOT), f"PYTHONPATH={ROOT}", *command)

    # ---- asking --------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Its job folder."""
        return max((self.run_dir / "jobs").glob("[0-9]*"))

    @property
    def job_id(self) -> str:
        """Its id at Slurm now; another one where it had to submit itself anew."""
        return str(slurm_ids(self.folder)[-1]["id"])

    def log(self) -> str:
        """The story that the job tells, of all its Slurm jobs."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("job-*.log")))

    def newest_step(self) -> int:
        """Of the finished step folders; -1 if there is none."""
        return max((step for step, _ in list_steps(self.steps)), default=-1)

    def is_complete(self) -> bool:
        return self.newest_step() == self.n_steps

    def is_alive(self) -> bool:
        """Whether Slurm has it, or will have it again."""
        return self.cluster.state(self.job_id) in ALIVE

    def ranks(self) -> list[Process]:
        return rank_processes(self.run_dir)

    def batch_node(self) -> str:
        """Where its supervisor runs."""
        return self.cluster.job(self.job_id).get("BatchHost", "")

    # ---- waiting -------------------------------------------------------------------------------------------------------

    def wait_for_step(self, step: int, timeout_s: float = PATIENCE_S) -> None:
        """Until a step folder of `step` or later is finished.

        Raises:
            ClusterError: with the end of its log: it ended before, or it took too long.
        """
        deadline, ask = time.monotonic() + timeout_s, time.monotonic() + 5
        while self.newest_step() < min(step, self.n_steps):
            time.sleep(0.02)
            if time.monotonic() > deadline:
                raise ClusterError(f"no step {step} after {timeout_s:.0f} s\n{self.last_words()}")
            if time.monotonic() > ask:
                ask = time.monotonic() + 5
                if not self.is_alive() and self.newest_step() < min(step, self.n_steps):
                    raise ClusterError(
                        f"the job is over ({self.cluster.state(self.job_id)}) before step {step}\n{self.last_words()}"
                    )

    def wait_for_end(self, timeout_s: float = PATIENCE_S) -> str:
        """Until Slurm is done with it; returns the last state."""
        wait_until(lambda: not self.is_alive(), f"the job ends\n{self.last_words()}", timeout_s, every_s=0.5)
        return self.cluster.state(self.job_id)

    def wait_for_ranks(self, n: int) -> list[Process]:
        """Until `n` ranks live."""
        wait_until(lambda: len(self.ranks()) == n, f"{n} ranks live")
        return self.ranks()

    def last_words(self) -> str:
        """What a person would look at: the ends of the job's log and of its newest attempt's logs."""
        files = [*sorted(self.folder.glob("job-*.log")), *sorted(self.folder.glob("attempts/*"))[-1:]]
        logs = [log for file in files for log in ([file] if file.is_file() else sorted(file.glob("rank-*.log")))]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def freeze_in_save(self) -> list[Process]:
        """Stop all ranks while a step folder is being written, and return them; `thaw` lets them go on."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not self.is_complete():
            ranks = self.ranks()
            seen = set(self.steps.glob(".step*.tmp-*"))
            while not set(self.steps.glob(".step*.tmp-*")) - seen:
                if time.monotonic() > deadline or self.is_complete():
                    break
                if not ranks or not Path(f"/proc/{ranks[0].pid}").exists():
                    ranks = self.ranks()
            send(ranks, signal.SIGSTOP)
            if set(self.steps.glob(".step*.tmp-*")) - seen:
                return ranks
            send(ranks, signal.SIGCONT)  # it was finished a moment ago: the next one
        raise ClusterError(f"no save was seen\n{self.last_words()}")


def send(ranks: list[Process], number: signal.Signals) -> None:
    """Send a signal to ranks, of which some may be gone."""
    for rank in ranks:
        try:
            os.kill(rank.pid, number)
        except ProcessLookupError:
            continue


# ---- comparing -------------------------------------------------------------------------------------------------------------


def assert_whole(run_dir: Path, n_steps: int) -> None:
    """Every step stands once in metrics.jsonl and data.jsonl, in order, and every step folder is as it was written."""
    assert [line["step"] for line in metrics(run_dir) if line["step"] > 0] == list(range(1, n_steps + 1))
    ledger = [json.loads(line) for line in (run_dir / "data.jsonl").read_text().splitlines()]
    assert [line["step"] for line in ledger] == list(range(1, n_steps + 1))
    for _, folder in list_steps(run_dir / "steps"):
        assert verify_files(folder, read_manifest(folder)) == []


def assert_same_batches(run_dir: Path, calm: Path) -> None:
    """The same rows at every step, by their checksums."""
    assert (run_dir / "data.jsonl").read_text() == (calm / "data.jsonl").read_text()


def assert_equal_runs(run_dir: Path, calm: Path, n_steps: int) -> None:
    """Nothing but time differs: weights and moments to the last bit, losses, batches."""
    assert_whole(run_dir, n_steps)
    assert weights(run_dir, n_steps) == weights(calm, n_steps)
    assert [_values(line) for line in metrics(run_dir)] == [_values(line) for line in metrics(calm)]
    assert_same_batches(run_dir, calm)


def _values(line: dict[str, object]) -> dict[str, object]:
    """What a step computed, without how long it took and on whom."""
    return {name: value for name, value in line.items() if name not in (*TIMES, "layers", "ranks")}
