"""Ranks started by a real srun: they meet without a port agreed before, are watched, and end together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from olmo_train.attempt import EndKind, RankEnd, read_ends
from tests.slurm.cluster import ROOT, Cluster

pytestmark = pytest.mark.slurm
RANKS = """
import os, signal, sys, threading
import torch, torch.distributed as dist
from olmo_train.attempt import EndKind, run_rank
from olmo_train.config.faults import FaultsConfig
from olmo_train.parallel.rendezvous import meet
from olmo_train.parallel.watchdog import Watchdog

def main(argv):
    rank, n_ranks, faults = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), FaultsConfig()
    meeting = meet(rank, n_ranks, {"code": "1 in /", "config": {}, "torch": "", "python": "", "number of ranks": n_ranks}, faults)
    with Watchdog(faults, meeting) as watchdog:
        dist.init_process_group("gloo", store=meeting.store, rank=rank, world_size=n_ranks)
        total = torch.tensor([rank])
        dist.all_reduce(total)
        assert total == 6, total
        watchdog.beat("end", 1)
        if argv == ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL) if rank == 2 else threading.Event().wait()
        watchdog.finish(EndKind.COMPLETE)

sys.exit(run_rank(main))
"""


def run(folder: Path, *words: str) -> tuple[int, list[RankEnd]]:
    (folder / "some_ranks.py").write_text(RANKS)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    environment |= {"OLMO_ATTEMPT_DIR": str(folder), "PYTHONPATH": f"{ROOT}:{folder}"}
    srun = ["srun", "-N4", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60", "--input=none"]
    rank = [sys.executable, "-m", "olmo_train.parallel.srun", "-m", "some_ranks", *words]
    done = subprocess.run([*srun, f"--output={folder}/rank-%5t.log", *rank], env=environment, capture_output=True, timeout=300)
    return done.returncode, read_ends(folder)


def test_four_tasks_on_four_nodes_meet_and_finish(cluster: Cluster, tmp_path: Path) -> None:
    status, ends = run(tmp_path)
    assert status == 0, (tmp_path / "rank-00000.log").read_text()
    assert [(end.kind, end.node) for end in ends] == [(EndKind.COMPLETE, node) for node in cluster.nodes]


@pytest.mark.slow  # a fault of the chaos test
def test_a_killed_task_ends_the_others_which_say_who_it_was(cluster: Cluster, tmp_path: Path) -> None:
    _, ends = run(tmp_path, "kill")
    told = {(end.kind, end.message) for end in ends}
    assert told == {(EndKind.PEER, f"rank 2 on {cluster.nodes[2]} ended without a word: killed, or out of memory")}
    assert 2 not in {end.rank for end in ends}
