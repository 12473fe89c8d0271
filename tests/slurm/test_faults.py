"""One fault each, on a real cluster: what it costs, what the log says of it, and that nothing of the run is lost."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.faults import fill
from tests.runs import losses, run_training
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.training import TrainingJob, assert_equal_runs, assert_same_batches, assert_whole, send, words

pytestmark = pytest.mark.slurm

N_STEPS = 60
OFTEN = ["checkpoint.save_every=20", "checkpoint.ephemeral_every=4"]


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on three ranks, undisturbed and without a cluster."""
    run_dir = tmp_path_factory.mktemp("calm") / "run"
    run_training(words(shards, run_dir, N_STEPS, "data.micro_batch_size=64", *OFTEN), 3)
    return run_dir


@pytest.fixture
def on_disk(any_cluster: Cluster) -> Iterator[Path]:
    """A folder on the small file system of the cluster."""
    if not any_cluster.has_disk:
        pytest.skip("no small file system can be mounted here")
    folder = any_cluster.disk / "faults"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def launched(cluster: Cluster, shards: Path, run_dir: Path, *options: str) -> TrainingJob:
    """The run of `calm` on three nodes, at its first saved step."""
    job = TrainingJob(cluster, run_dir, N_STEPS)
    job.launch(words(shards, run_dir, N_STEPS, "data.micro_batch_size=64", *OFTEN), "nodes=3", *options)
    job.wait_for_step(4)
    return job


def assert_ends_like(job: TrainingJob, calm: Path) -> None:
    """It completes, bit for bit."""
    job.wait_for_step(N_STEPS)
    assert job.wait_for_end() == "COMPLETED"
    assert_equal_runs(job.run_dir, calm, N_STEPS)


@pytest.mark.slow  # three attempts on four, three and two nodes
def test_a_run_that_loses_two_nodes_goes_on_with_three_then_two(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Each in the middle of a save. The batches are those of four nodes, and so is the loss, to rounding."""
    overrides = words(shards, tmp_path / "run", N_STEPS, "checkpoint.ephemeral_every=4")
    job = TrainingJob(cluster, tmp_path / "run", N_STEPS)
    job.launch(overrides, "nodes=4", "min_nodes=2")
    for left in (3, 2):
        job.wait_for_step(job.newest_step() + 4)
        batch = job.batch_node()
        ranks = job.freeze_in_save()
        node = max(rank.node for rank in ranks if rank.node != batch)
        send([rank for rank in ranks if rank.node != node], signal.SIGCONT)
        cluster.kill_node(node)  # its part of the save is as unfinished as it was
        wait_until(lambda left=left: f"{left} nodes instead of 4" in job.log(), f"it goes on with {left} nodes")
        assert len(job.wait_for_ranks(left)) == left
    job.wait_for_step(N_STEPS)
    assert job.wait_for_end() == "COMPLETED"
    run_training(words(shards, tmp_path / "calm", N_STEPS, "checkpoint.ephemeral_every=4"), 4)
    assert_whole(tmp_path / "run", N_STEPS)
    assert_same_batches(tmp_path / "run", tmp_path / "calm")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "calm"), rtol=1e-4)


def test_a_node_that_is_cut_off_is_replaced_and_does_no_harm_when_it_is_back(
    cables: Cluster, shards: Path, calm: Path, tmp_path: Path
) -> None:
    job = launched(cables, shards, tmp_path / "run", "spare_nodes=1")
    node = max(rank.node for rank in job.ranks() if rank.node != job.batch_node())
    at = job.newest_step()
    cables.cut_node(node)
    wait_until(
        lambda: any(rank.node not in (node, "") for rank in job.ranks()) and "attempt 2" in job.log(), "it goes on elsewhere"
    )
    job.wait_for_step(at + 8)
    cables.heal_node(node)
    assert node in job.log()
    assert_ends_like(job, calm)


@pytest.mark.slow  # a fault of the chaos test
def test_a_full_disk_delays_a_run(any_cluster: Cluster, shards: Path, calm: Path, on_disk: Path) -> None:
    job = launched(any_cluster, shards, on_disk / "run")
    fill(any_cluster.disk / "ballast")
    time.sleep(5)
    (any_cluster.disk / "ballast").unlink()
    assert_ends_like(job, calm)
    assert "No space left on device" in "".join(path.read_text() for path in job.folder.glob("attempts/*/rank-*.log")) + job.log()


@pytest.mark.slow  # a fault of the chaos test
def test_a_preempted_run_saves_first_and_comes_back(cluster: Cluster, shards: Path, calm: Path, tmp_path: Path) -> None:
    job = launched(cluster, shards, tmp_path / "run")
    cluster.preempt()
    wait_until(lambda: cluster.state(job.job_id) == "PENDING", "it gave way")
    (first,) = job.folder.glob("attempts/*")
    assert "stopped by a signal after step" in (first / "rank-00000.log").read_text()
    assert_ends_like(job, calm)
    assert cluster.n_restarts(job.job_id) == 1


@pytest.mark.slow  # a fault of the chaos test
def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(cluster: Cluster, shards: Path, calm: Path, tmp_path: Path) -> None:
    job = launched(cluster, shards, tmp_path / "run", "spare_nodes=1")
    victim = job.ranks()[1]
    send([victim], signal.SIGSTOP)
    wait_until(lambda: "attempt 2" in job.log(), "it starts again")
    first = min(job.folder.glob("attempts/*"))
    assert {f"rank-{rank:05d}.stacks.txt" for rank in (0, 2)} <= {path.name for path in first.iterdir()}
    assert victim.node in job.log()
    assert_ends_like(job, calm)
