"""A run that meets one random fault after another ends with the bits of the run that met none.

pytest tests/chaos -m slurm                                       short: what CI runs
pytest tests/chaos -m slurm --chaos-seed 7 --chaos-minutes 10     other dice, for minutes, and faults that take Slurm its time
"""

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.chaos.faults import Fault, Scene, possible_faults
from tests.runs import run_training
from tests.slurm.cluster import Cluster, ClusterError
from tests.slurm.training import TrainingJob, assert_equal_runs, words

N_RANKS = 3
N_STEPS = 160
LAST_FAULT = N_STEPS - 20
"""Later ones might come when all is over."""
SEED = 155
"""Of the short form: a node lost in a save, a full disk, a damaged checkpoint and a rank that stands still."""
SHORT_FAULTS = 4
LONG_FAULTS = 8
"""Per run."""
WORDS = ["data.micro_batch_size=64"]
"""One micro-step on 3 ranks: many steps and saves in a short time."""
PROGRESS_S = 600.0
"""Within which a run must have saved a newer step after a fault, on a machine that does other things too."""


@pytest.fixture(scope="session")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, undisturbed and without a cluster."""
    run_dir = tmp_path_factory.mktemp("calm") / "run"
    run_training(words(shards, run_dir, N_STEPS, *WORDS), N_RANKS)
    return run_dir


@pytest.fixture
def storm(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster to be hurt: nodes with cables where this machine can have them."""
    cluster: Cluster = request.getfixturevalue("any_cluster")
    yield cluster
    shutil.rmtree(cluster.disk / "chaos", ignore_errors=True)


def torment(scene: Scene, faults: Sequence[Fault]) -> int:
    """Let faults befall the run, each after some progress, and see it progress again; return how many did."""
    for i, fault in enumerate(faults):
        at = scene.job.newest_step() + scene.rng.randint(2, 12)
        scene.job.wait_for_step(at, PROGRESS_S)
        if scene.job.newest_step() > LAST_FAULT:
            return i
        began = time.monotonic()
        try:
            undo = fault(scene)
        except ClusterError:
            if scene.job.is_complete():  # it was quicker than the fault
                return i
            raise
        scene.job.wait_for_step(max(scene.job.newest_step(), at) + 1, PROGRESS_S)
        scene.tell(f"    step {scene.job.newest_step()} is saved {time.monotonic() - began:.1f} s after it began")
        if undo is not None:
            undo()
    return len(faults)


def survive(scene: Scene, shards: Path, calm: Path, faults: Sequence[Fault]) -> int:
    """Launch a run, hurt it, and compare what comes out; return how many faults it met."""
    job = scene.job
    job.launch(words(shards, job.run_dir, N_STEPS, *WORDS), f"nodes={N_RANKS}", "spare_nodes=1", "max_failures=5")
    try:
        met = torment(scene, faults)
        job.wait_for_step(N_STEPS, PROGRESS_S)
        assert job.wait_for_end() == "COMPLETED"
        assert_equal_runs(job.run_dir, calm, N_STEPS)
    except Exception:
        print(job.last_words())
        raise
    return met


@pytest.mark.slow  # `make chaos`; each kind of fault has a test of its own in tests/slurm and tests/olmo_train/test_faults.py
@pytest.mark.slurm
def test_random_faults_cost_time_and_nothing_else(
    storm: Cluster, shards: Path, calm: Path, tmp_path: Path, pytestconfig: pytest.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = pytestconfig.getoption("--chaos-seed", default=None)
    seed = SEED if asked is None else asked
    minutes = pytestconfig.getoption("--chaos-minutes", default=None)
    rng, began, round_, met = random.Random(seed), time.monotonic(), 0, 0

    def tell(text: str) -> None:
        with capfd.disabled():
            print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    tell(f"seed {seed}, {storm.mode}, {'one short run' if minutes is None else f'{minutes:g} minutes'}")
    possible = possible_faults(storm, with_slow=minutes is not None)
    while round_ == 0 or (minutes is not None and time.monotonic() - began < 60 * minutes):
        job = TrainingJob(storm, storm.disk / f"chaos/run{round_}", N_STEPS)
        faults = random.Random(f"{seed}/{round_}").sample(possible, SHORT_FAULTS if minutes is None else LONG_FAULTS)
        tell(f"run {round_}: {N_STEPS} steps on {N_RANKS} nodes of 4, and {', '.join(fault.__name__ for fault in faults)}")
        met += survive(Scene(storm, job, rng, tell), shards, calm, faults)
        (tmp_path / f"run{round_}.log").write_text(job.log())
        tell(
            f"run {round_} ended with the bits of the undisturbed one; {met} faults so far; its story: {tmp_path}/run{round_}.log"
        )
        shutil.rmtree(job.run_dir)
        storm.heal()
        round_ += 1
    assert met > 0


@pytest.mark.slow
@pytest.mark.slurm  # together with the long run that it needs
def test_a_run_that_met_damage_is_told_from_one_that_did_not(calm: Path, tmp_path: Path) -> None:
    """The comparison itself: one changed bit, one line twice, one missing."""
    shutil.copytree(calm, tmp_path / "run")
    assert_equal_runs(tmp_path / "run", calm, N_STEPS)
    for name, change in {
        "metrics.jsonl": lambda text: text + text.splitlines(keepends=True)[-1],
        "data.jsonl": lambda text: "".join(text.splitlines(keepends=True)[1:]),
    }.items():
        text = (tmp_path / "run" / name).read_text()
        (tmp_path / "run" / name).write_text(change(text))
        with pytest.raises(AssertionError):
            assert_equal_runs(tmp_path / "run", calm, N_STEPS)
        (tmp_path / "run" / name).write_text(text)
    file = next((tmp_path / f"run/steps/step{N_STEPS:08d}").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError):
        assert_equal_runs(tmp_path / "run", calm, N_STEPS)
