"""The supervisor on a real Slurm, with ranks that are quick to start: they count, save, and watch each other by files."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.attempts import history, newest_step
from launch.job_folder import Job, slurm_ids
from tests.slurm.cluster import ROOT, Cluster, wait_until

pytestmark = pytest.mark.slurm

RANK = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from olmo_train.attempt import EndKind, RankEnd, attempt_folder, node_name, write_end

run, last, act = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rank, size, folder = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), attempt_folder()
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
signal.signal(signal.SIGTERM, signal.SIG_IGN)


def saved():
    return max((int(path.name[4:]) for path in (run / "steps").glob("step*")), default=0)


def end(kind, message="", bad=()):
    write_end(folder, RankEnd(rank, node_name(), EndKind(kind), 1, saved(), message, bad_nodes=list(bad)))
    if message == "and stays":
        time.sleep(10_000)
    os._exit(kind not in ("complete", "stopped"))


print("rank", rank, "of", size, "on", node_name(), flush=True)
if act == "raise":
    while rank != 1 and not (folder / "rank-00001.end.json").exists():
        time.sleep(0.05)
    end("exception", f"rank {{rank}} raised") if rank == 1 else end("peer", "rank 1 is gone")
if act == "stay" and folder.name == "0001":
    before = {{1: None, 2: 1, 0: 2}}[rank]  # the first to go has srun end those that have not left their word yet
    while before is not None and not (folder / f"rank-{{before:05d}}.end.json").exists():
        time.sleep(0.05)
    end("hung", "and stays" if rank == 1 else "rank 1 hangs")
began = saved()
seen, used = {{}}, {{}}
while True:
    (folder / f"beat-{{rank}}").write_text(f"{{time.time()}} {{node_name()}}")
    for other in range(size):
        path = folder / f"beat-{{other}}"
        text = path.read_text() if path.exists() else ""
        if seen.get(other, ("", 0))[0] != text or not text:
            seen[other] = (text, time.monotonic())
        elif time.monotonic() - seen[other][1] > 5:
            end("peer", f"rank {{other}} gives no sign of life", [text.split()[-1]])
    if (folder / "stop").exists():
        end("stopped")
    if rank == 0 and all(seen[other][0] != used.get(other) for other in range(1, size)):  # a step needs all ranks
        used = {{other: seen[other][0] for other in seen}}
        step = saved() + 1
        (run / f"steps/step{{step:08d}}").mkdir(parents=True)
        (run / f"steps/step{{step:08d}}/manifest.json").touch()
        if asked:
            (folder / "stop").touch()
    if saved() >= last:
        end("complete")
    time.sleep(0.3)
"""
START = """#!/bin/bash
#SBATCH --nodes={nodes} --ntasks-per-node=1 --time=30 --signal=USR1@60 --no-kill {requeue}
#SBATCH --open-mode=append --output={folder}/job-%j.log
export PYTHONPATH={root} PYTHONSAFEPATH=1
exec {python} -m launch.supervise {folder}
"""


class Started:
    """A job of such ranks."""

    def __init__(
        self, cluster: Cluster, run_dir: Path, last: int, act: str, change: Callable[[Job], Job] = lambda job: job
    ) -> None:
        self.cluster, self.run_dir, self.folder = cluster, run_dir, run_dir / "jobs/0001"
        self.folder.mkdir(parents=True)
        (run_dir / "rank.py").write_text(RANK)
        command = [sys.executable, str(run_dir / "rank.py"), str(run_dir), str(last), act]
        job = change(Job(run_dir.name, str(run_dir), "train", command, node_counts=[3, 2], srun=["--mpi=none"], silent_s=6.0))
        job.write(self.folder)
        requeue = "--requeue" if job.requeue else "--no-requeue"
        script = START.format(nodes=3, requeue=requeue, folder=self.folder, root=ROOT, python=sys.executable)
        (self.folder / "job.sbatch").write_text(script)
        self.id = cluster.submit(str(self.folder / "job.sbatch"))

    def wait_for(self, words: str) -> None:
        """Wait until the story holds these words."""
        wait_until(lambda: words in self.story(), f"{words!r} is told", story=self.story)

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: newest_step(self.run_dir) >= step, f"step {step} is saved", story=self.story)

    def wait_for_guard(self) -> None:
        """Wait for the guard itself: its start alone the loss of a node would end."""
        wait_until(lambda: pythons("launch.supervise", self.folder, "--guard"), "a guard runs", story=self.story)

    def wait_for_end(self, state: str) -> dict[str, str]:
        wait_until(lambda: self.cluster.state(self.id) == state, f"job {self.id} is {state}", story=self.story)
        return self.cluster.job(self.id)

    def story(self) -> str:
        """All that the supervisor and its guard have told."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("job-*.log")))

    def actions(self) -> list[str]:
        return [attempt.action for attempt in history(self.folder)]


def pythons(*words: object) -> list[int]:
    """Process ids of Pythons with all these words on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if line[0] == sys.executable and set(map(str, words)) <= set(line):
            found.append(int(process.name))
    return found


@pytest.mark.slow
def test_a_lost_node_costs_seconds_and_no_queue(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 40, "count")
    job.wait_for_step(3)
    lost = cluster.nodes_of(job.id)[-1]
    cluster.kill_node(lost)
    job.wait_for_end("COMPLETED")
    first, second = history(job.folder)
    assert (first.action, second.action) == ("again", "finished")
    assert first.bad_nodes == [lost]
    assert second.nodes == [node for node in first.nodes if node != lost]
    assert second.step_before == first.step_after >= 3
    assert cluster.n_restarts(job.id) == 0
    assert f"rank 2 ({lost})" in job.story()
    assert "2 nodes instead of 3: same batches, fewer ranks, slower" in job.story()


def test_the_loss_of_the_node_of_the_batch_script_is_taken_over(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 60, "count")
    job.wait_for_step(3)
    job.wait_for_guard()
    lost = cluster.nodes_of(job.id)[0]
    cluster.kill_node(lost)
    job.wait_for("nothing, all is done")
    assert f"the supervisor on {lost} has given no sign of life" in job.story()
    assert job.actions() == ["again", "finished"]
    assert lost not in history(job.folder)[1].nodes
    job.wait_for_end("CANCELLED")  # its batch script is lost: nothing else can end it
    assert newest_step(job.run_dir) == 60


def test_ranks_that_went_without_a_word_are_not_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 40, "count")
    job.wait_for_step(3)
    job.wait_for_guard()
    lost = cluster.nodes_of(job.id)[0]
    cluster.hang_node(lost)  # so that srun ends nobody
    ranks = pythons(job.run_dir / "rank.py")
    assert len(ranks) == 3
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    cluster.kill_node(lost)
    job.wait_for("nothing, all is done")
    assert f"{lost} does not answer, and no rank has told of it for " in job.story()
    assert "the ranks went with their supervisor, and left no word" in job.story()
    assert job.actions() == ["again", "finished"]
    assert lost not in history(job.folder)[1].nodes
    job.wait_for_end("CANCELLED")


def test_a_rank_that_left_its_word_and_stays_is_ended(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 4, "stay")
    job.wait_for_end("COMPLETED")
    assert job.actions() == ["again", "finished"]
    assert "all ranks have ended; what is left of them is killed" in job.story()
    log = (job.folder / "attempts/0002/rank-00002.log").read_text()
    assert log.startswith("rank 2 of 3 on ")


def test_where_requeue_is_not_allowed_the_job_is_submitted_anew(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 30, "count", lambda job: replace(job, requeue=False))
    job.wait_for_step(3)
    cluster.client("scancel", "--signal=USR1", job.id)
    first = job.wait_for_end("FAILED")
    assert first["ExitCode"] == "75:0"
    (entry,) = slurm_ids(job.folder)
    assert f"submitted anew as job {entry['id']}" in job.story()
    job.id = str(entry["id"])
    job.wait_for_end("COMPLETED")
    assert job.actions() == ["requeue", "finished"]


def test_a_signal_sends_the_job_back_into_the_queue_and_cancelled_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 10_000, "count")
    job.wait_for_step(2)
    cluster.client("scancel", "--signal=USR1", job.id)
    wait_until(lambda: len(history(job.folder)) == 2, "it runs again")
    assert cluster.n_restarts(job.id) == 1
    step = newest_step(job.run_dir)
    job.wait_for_step(step + 3)
    (job.folder / "cancelled").touch()
    cluster.client("scancel", "--signal=USR1", job.id)
    assert job.wait_for_end("FAILED")["ExitCode"] == "75:0"
    assert job.actions() == ["requeue", "end"]


def test_a_run_that_always_fails_gives_up(cluster: Cluster, tmp_path: Path) -> None:
    job = Started(cluster, tmp_path / "run", 10, "raise", lambda job: replace(job, max_failures=1))
    assert job.wait_for_end("FAILED")["ExitCode"] == "1:0"
    assert job.actions() == ["again", "end"]
    assert "FIRST ERROR: rank 1 on " in job.story()
    assert "2 attempts in a row failed and saved no newer step; max_failures=1 restarts are allowed" in job.story()
    assert json.loads((job.folder / "attempts/0001/attempt.json").read_text())["failures"] == 1
