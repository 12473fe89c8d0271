"""Ranks that meet and are watched, and do what a test says in place of training."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from olmo_train.attempt import RankEnd, read_ends
from olmo_train.config.faults import FaultsConfig
from olmo_train.parallel.rendezvous import Meeting, meet
from olmo_train.parallel.watchdog import Watchdog
from tests.distributed import collect, start

FAULTS = FaultsConfig(hang_s=3.0, hang_at_start_s=120.0, silent_s=2.0)
FACTS = {"code": "1 in /", "config": {}, "torch": "2", "python": "3", "number of ranks": 0}
PATIENCE_S = 120.0


def become(folder: Path, is_by_file: bool = True) -> tuple[int, int]:
    """Take on the environment of a rank that a launcher started; return rank and number of ranks."""
    os.environ["OLMO_ATTEMPT_DIR"] = str(folder)
    rank = int(os.environ["RANK"])
    os.environ["SLURMD_NODENAME"] = f"n{rank}"
    if is_by_file:
        os.environ.pop("MASTER_ADDR")
    return rank, int(os.environ["WORLD_SIZE"])


def watched(
    folder: Path,
    act: Callable[[int, Watchdog, Meeting], None],
    is_by_file: bool = True,
    faults: FaultsConfig = FAULTS,
    **facts: Any,
) -> float:
    """Meet, train three steps in a moment, call `act`, wait for all in a collective; return the seconds `act` and the end took."""
    rank, n_ranks = become(folder, is_by_file)
    meeting = meet(rank, n_ranks, FACTS | facts, faults)
    with Watchdog(faults, meeting) as watchdog:
        dist.init_process_group("gloo", store=meeting.store, rank=rank, world_size=n_ranks)
        for step in range(1, 6):
            watchdog.beat("step", step)
            time.sleep(0.3)  # a heartbeat sees each
            dist.all_reduce(torch.ones(1))
        act(rank, watchdog, meeting)
        dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    return 0.0


def run(
    folder: Path,
    act: Callable[[int, Watchdog, Meeting], None],
    n_ranks: int = 3,
    stuck: int | None = None,
    faults: FaultsConfig = FAULTS,
) -> tuple[list[Any], dict[int, RankEnd]]:
    """Run `act` on watched ranks; return what each returned, and the ends they left.

    `stuck` is a rank that nothing but SIGKILL ends; as launchers do, it gets it when all others have ended.
    """
    ranks = start(watched, n_ranks, folder, act, True, faults)
    for i, rank in enumerate(ranks):
        if i != stuck:
            rank.process.join(PATIENCE_S)
            assert not rank.process.is_alive(), f"rank {i} did not end"
    if stuck is not None:
        ranks[stuck].process.kill()
    return collect(ranks), {end.rank: end for end in read_ends(folder)}
