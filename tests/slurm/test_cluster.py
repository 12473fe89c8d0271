"""The cluster of the tests does to its nodes what real ones suffer."""

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, free_ports, rank_processes, wait_until

pytestmark = pytest.mark.slurm

# A job that ends by itself on the signal of a preemption counts as failed and is not requeued: this one ends by KILL alone.
SLEEP = """#!/bin/bash
#SBATCH --job-name=sleep --open-mode=append --requeue
trap '' TERM
srun --wait=5 --kill-on-bad-exit=1 bash -c 'trap "" TERM; echo $SLURM_PROCID $SLURMD_NODENAME >> {folder}/ranks; exec sleep 600'
"""


def start_sleeping(cluster: Cluster, folder: Path, *words: str, nodes: int = 3) -> str:
    """A job of `nodes` sleeping ranks; returns its id when all of them run."""
    script = folder / "sleep.sbatch"
    script.write_text(SLEEP.format(folder=folder))
    job = cluster.submit(f"--nodes={nodes}", "--ntasks-per-node=1", f"--output={folder}/out", *words, str(script))
    wait_until(lambda: (folder / "ranks").exists() and len((folder / "ranks").read_text().split()) == 2 * nodes, "all ranks run")
    return job


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def pids_of(cluster: Cluster, node: str) -> list[int]:
    return [int(word) for word in cluster.script("tree", node).split()]


@pytest.mark.slow
def test_a_killed_node_is_gone_and_its_job_starts_again_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    job = start_sleeping(cluster, tmp_path)
    *_, last = cluster.nodes_of(job)
    assert pids_of(cluster, last)
    cluster.kill_node(last)
    assert pids_of(cluster, last) == []
    wait_until(lambda: cluster.n_restarts(job) == 1 and cluster.state(job) == "RUNNING", "the job runs again")
    assert last not in cluster.nodes_of(job)
    assert cluster.node_states()[last].startswith("down")


def test_a_hung_node_stands_still_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    job = start_sleeping(cluster, tmp_path)
    node = cluster.nodes_of(job)[-1]
    cluster.hang_node(node)
    assert all(is_stopped(pid) for pid in pids_of(cluster, node))
    cluster.resume_node(node)
    assert not any(is_stopped(pid) for pid in pids_of(cluster, node))
    assert cluster.state(job) == "RUNNING"


@pytest.mark.slow
def test_a_cut_node_lives_and_hears_nothing(cables: Cluster, tmp_path: Path) -> None:
    job = start_sleeping(cables, tmp_path, "--no-kill")
    node = cables.nodes_of(job)[-1]
    cables.cut_node(node)
    assert pids_of(cables, node)
    wait_until(lambda: cables.node_states()[node].endswith("*"), "Slurm misses the node")
    cables.heal_node(node)
    wait_until(lambda: not cables.node_states()[node].endswith("*"), "Slurm finds the node again")


@pytest.mark.slow
def test_the_better_partition_preempts(cluster: Cluster, tmp_path: Path) -> None:
    job = start_sleeping(cluster, tmp_path)
    other = cluster.preempt()
    wait_until(lambda: cluster.state(other) == "COMPLETED" and cluster.state(job) == "RUNNING", "both had their turn")
    assert cluster.n_restarts(job) == 1


def test_ranks_are_found_by_their_run(tmp_path: Path) -> None:
    script = tmp_path / "python3"
    script.symlink_to("/bin/bash")  # a process of this name and these words, without what it costs to import torch
    environment = {"OLMO_ATTEMPT_DIR": f"{tmp_path}/jobs/0001/attempts/0001", "RANK": "3", "SLURMD_NODENAME": "n7"}
    pid = os.posix_spawn(script, [str(script), "-c", "read -t 60 <> <(:)", "olmo_train.train"], environment)
    try:
        wait_until(lambda: rank_processes(tmp_path), "it is there")
        (found,) = rank_processes(tmp_path)
        assert (found.pid, found.rank, found.node) == (pid, 3, "n7")
        assert rank_processes(tmp_path / "other") == []
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_ports_are_free_and_differ() -> None:
    first = {free_ports(6) for _ in range(20)}
    assert len(first) > 1
    assert all(18_000 <= port <= 30_000 for port in first)
