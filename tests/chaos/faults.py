"""Faults that befall a training run on a cluster, each at a moment that nobody chose."""

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from olmo_train.step_folder import list_steps
from tests.slurm.cluster import DISK_MIB, Cluster, ClusterError, Process
from tests.slurm.training import TrainingJob, send

Undo = Callable[[], None]
"""What brings back the machine that a fault took, once the run goes on without it."""


@dataclass
class Scene:
    """A run that trains, where, the dice, and who is told."""

    cluster: Cluster
    job: TrainingJob
    rng: random.Random
    tell: Callable[[str], None]

    def some_rank(self) -> Process:
        """One of the living ranks, after a random moment."""
        time.sleep(self.rng.uniform(0, 0.5))
        ranks = self.job.ranks()
        if not ranks:
            raise ClusterError("no rank lives: the run ended meanwhile")
        return self.rng.choice(ranks)

    def some_node(self) -> str:
        """The node of one of the ranks, never that of the supervisor."""
        nodes = sorted({rank.node for rank in self.job.ranks()} - {self.job.batch_node()})
        if not nodes:
            raise ClusterError("no rank lives: the run ended meanwhile")
        return self.rng.choice(nodes)


Fault = Callable[[Scene], Undo | None]


def kill_a_rank(scene: Scene) -> Undo | None:
    """As the kernel does when memory runs out."""
    rank = scene.some_rank()
    scene.tell(f"kill -9 of rank {rank.rank} on {rank.node}")
    send([rank], signal.SIGKILL)
    return None


def kill_a_rank_in_a_save(scene: Scene) -> Undo | None:
    """While a step folder is half written."""
    ranks = scene.job.freeze_in_save()
    rank = scene.rng.choice(ranks)
    scene.tell(f"kill -9 of rank {rank.rank} on {rank.node} in the middle of a save")
    send([rank], signal.SIGKILL)
    send(ranks, signal.SIGCONT)
    return None


def stop_a_rank(scene: Scene) -> Undo | None:
    """The process is there, its connections are open, and it does nothing."""
    rank = scene.some_rank()
    scene.tell(f"SIGSTOP of rank {rank.rank} on {rank.node}")
    send([rank], signal.SIGSTOP)
    return None


def kill_a_node_in_a_save(scene: Scene) -> Undo | None:
    """Power loss of a node without the supervisor, while a step folder is half written."""
    node = scene.some_node()
    ranks = scene.job.freeze_in_save()
    send([rank for rank in ranks if rank.node != node], signal.SIGCONT)
    scene.tell(f"power loss of {node} in the middle of a save")
    scene.cluster.kill_node(node)  # its part of the save is as unfinished as it was
    return lambda: scene.cluster.start_node(node)


def reboot_a_node(scene: Scene) -> Undo | None:
    """Power loss that ends before Slurm notices."""
    node = scene.some_node()
    scene.tell(f"{node} reboots faster than Slurm notices")
    scene.cluster.kill_node(node)
    time.sleep(scene.rng.uniform(0.5, 3))
    scene.cluster.start_node(node)
    return None


def kill_the_supervisors_node(scene: Scene) -> Undo | None:
    """Power loss of the node on which the batch script runs: Slurm alone can go on from there."""
    node = scene.job.batch_node()
    scene.tell(f"power loss of {node}, where the supervisor runs")
    scene.cluster.kill_node(node)
    return lambda: scene.cluster.start_node(node)


def hang_a_node(scene: Scene) -> Undo | None:
    """Everything on a node stops and later wakes up, when others do its work."""
    node = scene.some_node()
    scene.tell(f"{node} hangs")
    scene.cluster.hang_node(node)
    return lambda: scene.cluster.resume_node(node)


def cut_a_node(scene: Scene) -> Undo | None:
    """The network of a node is gone, its processes and its file system are not."""
    node = scene.some_node()
    scene.tell(f"the network of {node} is cut")
    scene.cluster.cut_node(node)
    return lambda: scene.cluster.heal_node(node)


def preempt(scene: Scene) -> Undo | None:
    """Somebody more important needs all nodes for a moment."""
    scene.tell("preemption by a job of partition high")
    scene.cluster.preempt()
    return None


def ask_to_save(scene: Scene) -> Undo | None:
    """The signal that Slurm sends before a time limit."""
    scene.tell("SIGUSR1 to all ranks")
    scene.cluster.client("scancel", "--signal=USR1", scene.job.job_id)
    return None


def requeue(scene: Scene) -> Undo | None:
    """By an operator: SIGTERM to everything, SIGKILL 5 s later."""
    scene.tell("scontrol requeue")
    scene.cluster.client("scontrol", "requeue", scene.job.job_id)
    return None


def damage_the_newest_step(scene: Scene) -> Undo | None:
    """All ranks die, and the checkpoint that they would go on from is not what was written."""
    send(scene.job.ranks(), signal.SIGKILL)  # nobody may write a newer one
    if scene.job.is_complete():
        raise ClusterError("the run ended meanwhile")  # nobody would read what is damaged now
    folder = list_steps(scene.job.steps)[-1][1]
    file = scene.rng.choice(sorted(folder.iterdir()))
    how = scene.rng.choice(["cut short", "changed in one bit", "deleted"])
    scene.tell(f"all ranks killed, {folder.name}/{file.name} {how}")
    damage(file, how, scene.rng)
    return None


def damage(file: Path, how: str, rng: random.Random) -> None:
    """Do to a file what disks and interrupted copies do."""
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "cut short":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        at = rng.randrange(8 * len(content))
        content[at // 8] ^= 1 << at % 8
        file.write_bytes(content)


def fill_the_disk(scene: Scene) -> Undo | None:
    """The file system of the run has no byte left for a while."""
    seconds = scene.rng.uniform(1, 6)
    ballast = scene.cluster.disk / "ballast"
    scene.tell(f"the disk is full for {seconds:.1f} s")
    fill(ballast)
    time.sleep(seconds)
    ballast.unlink()
    return None


def fill(ballast: Path) -> None:
    """Leave no free byte on the small file system of `ballast`."""
    assert shutil.disk_usage(ballast.parent).total <= DISK_MIB * 2**20, f"{ballast.parent} is no small file system"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        size = 2**20
        while True:
            try:
                file.write(bytes(size))
            except OSError:
                if size == 1:
                    raise
                size //= 16


QUICK = [kill_a_rank, kill_a_rank_in_a_save, stop_a_rank, kill_a_node_in_a_save, ask_to_save, damage_the_newest_step]
"""Over in seconds."""
SLOW = [reboot_a_node, kill_the_supervisors_node, hang_a_node, preempt, requeue]
"""Slurm takes its time."""


def possible_faults(cluster: Cluster, with_slow: bool) -> list[Fault]:
    """What can be done to a run on the small disk of a cluster."""
    slow = [*SLOW, *([cut_a_node] if cluster.mode == "netns" else [])] if with_slow else []
    return [*QUICK, *([fill_the_disk] if cluster.has_disk else []), *slow]
