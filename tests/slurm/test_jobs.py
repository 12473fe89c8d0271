"""`olmo jobs`, `olmo logs` and `olmo cancel` against a real Slurm; the ranks are small programs that keep the trainer's formats."""

import sys
from pathlib import Path

import pytest

from launch import cancel, jobs, slurm
from launch.job_folder import add_slurm_id
from launch.status import ask_slurm, read_status
from olmo_train.attempt import log_path
from olmo_train.step_folder import list_steps
from tests.launch.folders import make_job, make_run
from tests.slurm.cluster import ROOT, Cluster, wait_until

pytestmark = pytest.mark.slurm

RANK = """
import json, os, pathlib, signal, sys, time
from olmo_train.attempt import EndKind, RankEnd, attempt_folder, node_name, write_end
run, rank, asked = pathlib.Path(sys.argv[1]), int(os.environ["SLURM_PROCID"]), []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
step = 0
while not asked:
    time.sleep(0.1)
    step += 1
    if rank == 0:
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "tokens": step, "loss": 1.5, "tokens_per_s": 10.0, "eta_s": 0.1}) + "\\n")
    print("step", step, flush=True)
if rank == 0:
    folder = run / "steps" / f"step{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
write_end(attempt_folder(), RankEnd(rank, node_name(), EndKind.STOPPED, 75, step))
"""


def start(run: Path, *options: str) -> tuple[Path, str]:
    """Submit two ranks; (folder of the job, id)."""
    job = make_job(run)
    (job / "rank.py").write_text(RANK)
    attempt = job / "attempts/0001"
    srun = f"srun --kill-on-bad-exit=1 --output={attempt}/rank-%5t.log {sys.executable} {job / 'rank.py'} {run}"
    (job / "job.sbatch").write_text(
        f"#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=1 --job-name={run.name}\necho the story begins\nmkdir -p {attempt}\n"
        f"OLMO_ATTEMPT_DIR={attempt} PYTHONPATH={ROOT} {srun}\n"
    )
    job_id = slurm.submit(job / "job.sbatch", [f"--output={job}/job-%j.log", *options])
    add_slurm_id(job, job_id, 0.0)
    return job, job_id


def state(run: Path) -> str:
    return read_status(run, ask_slurm([run])[0]).state


def wait_for_steps(run: Path) -> None:
    wait_until(lambda: (read_status(run, {}).step or 0) >= 3, "three steps are done")


def test_a_running_job_is_shown_and_cancelled_after_a_save(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, last_step=100_000)
    job, job_id = start(run)
    wait_for_steps(run)
    jobs.main(["first", "--runs", str(tmp_path)])
    out = capsys.readouterr().out
    assert "state    running" in out
    assert f"Slurm job {job_id}" in out
    assert f"nodes    {' '.join(sorted(cluster.nodes)[:2])}" in out
    assert "0001/0001  it goes on" in out
    cancel.main([str(run)])
    out = capsys.readouterr().out
    ((step, _),) = list_steps(run / "steps")
    assert f"step {step} is saved" in out
    assert f"job {job_id} has ended; step {step} is the newest saved" in out
    assert (job / "cancelled").exists()
    assert state(run) == "cancelled"
    assert log_path(job / "attempts/0001", 1).read_text().startswith("step 1\n")


def test_a_waiting_job_is_cancelled_before_it_starts_and_a_running_one_at_once(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_run(tmp_path, "first", 10**6), make_run(tmp_path, "second", 10**6)
    _, running = start(first, "--exclusive", "--nodes=4")
    wait_for_steps(first)
    _, waiting = start(second, "--exclusive")
    wait_until(lambda: read_status(second, ask_slurm([second])[0]).reason == "Resources", "it waits for nodes")
    jobs.main(["--runs", str(tmp_path)])
    out = capsys.readouterr().out
    assert "second  pending" in out
    assert "  Resources" in out
    cancel.main([str(second)])
    assert f"job {waiting} is cancelled, before it started; no step is saved" in capsys.readouterr().out
    assert state(second) == "cancelled"
    cancel.main([str(first), "--now"])
    assert f"job {running} is cancelled; no step is saved" in capsys.readouterr().out
    wait_until(lambda: state(first) == "cancelled", "the job has left the queue")
    assert list_steps(first / "steps") == []
