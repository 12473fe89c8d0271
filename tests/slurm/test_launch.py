"""`olmo launch` against a real Slurm: what it refuses, an array of runs, an array of data work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.work.claims import Claims
from launch import slurm
from launch.submit import main
from launch.tasks import main as launch_tasks
from olmo_train.errors import ConfigError
from olmo_train.step_folder import list_steps
from tests.corpora import write_corpus
from tests.data_tools.texts import write_lines
from tests.launch.sites import write_site
from tests.runs import small
from tests.slurm.cluster import ROOT, Cluster, wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def login(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to launch from, with a site's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return write_site(tmp_path, partition="main", memory_gib_per_node="2", exclusive="false", signal_before_s="20")


def is_over(job_id: str) -> bool:
    return not slurm.queue([job_id])


def test_what_slurm_cannot_give_is_told_before_anything_is_submitted(login: Path, shards: Path) -> None:
    asked = ["time=60", *small(shards, Path("runs/first"))]
    with pytest.raises(ConfigError) as caught:
        main([f"cluster={login}", "cluster.partition=mian", "nodes=2", *asked])
    assert caught.value.problems == ["cluster.partition=mian is not a partition here (did you mean main?); there are main, high"]
    with pytest.raises(ConfigError) as caught:
        main(
            [f"cluster={login}", "nodes=4", "spare_nodes=1", "cluster.cpus_per_rank=99", "cluster.memory_gib_per_node=99", *asked]
        )
    assert caught.value.problems == [
        "partition main gives a job at most 4 nodes, nodes + spare_nodes = 5; ask for fewer",
        "cluster.cpus_per_rank=99 for 1 ranks is 99 CPUs, but the nodes of partition main have 4; at most 4 each",
        "cluster.memory_gib_per_node=99 is more than the nodes of partition main have, 7.8; ask for less, or null for all of it",
    ]
    assert not Path("runs").exists()


def test_sbatch_has_the_last_word(login: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(
            [
                f"cluster={login}",
                "cluster.sbatch=['--licenses=none-of-these']",
                "nodes=1",
                "time=60",
                *small(shards, Path("runs/first")),
            ]
        )
    assert caught.value.code == 1
    assert "Invalid license specification" in capsys.readouterr().err
    assert list(Path("runs/first/jobs").iterdir()) == []


def test_a_sweep_trains_every_run_by_one_array(login: Path, shards: Path) -> None:
    words = small(shards, Path("runs/first"), "max_tokens=512", "optim.schedule.warmup_tokens=256", "optim.lr=1e-3,1e-2")
    words = [word for word in words if not word.startswith("run_dir=")]
    main([f"cluster={login}", "nodes=1", "time=60", "max_parallel=1", *words])
    runs = [Path("runs/first-lr_1e-3"), Path("runs/first-lr_1e-2")]
    ids = [json.loads((run / "jobs/0001/slurm.json").read_text())[0]["id"] for run in runs]
    assert ids == [f"{ids[0].split('_')[0]}_{number}" for number in range(2)]
    wait_until(lambda: all(is_over(job_id) for job_id in ids), "both tasks have ended", 300)
    for run, job_id in zip(runs, ids, strict=True):
        log = run / f"jobs/0001/job-{job_id}.log"
        assert [step for step, _ in list_steps(run / "steps")][-1] == 2, log.read_text()
        (start,) = json.loads((run / "provenance.json").read_text())["starts"]
        assert start["git"] == {
            name: json.loads((run / "jobs/0001/code.json").read_text())[name] for name in ("commit", "has_changes")
        }


def test_data_work_that_failed_is_run_again_alone(login: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in (0, 2):
        write_corpus(Path(f"shards/{task}"))
    launch_tasks([f"cluster={login}", "tasks=3", "time=60", "data", "verify", "shards/{task}"])
    job = Path("jobs/0001")
    (first,) = json.loads((job / "slurm.json").read_text())
    wait_until(lambda: is_over(first["id"]), "all tasks have ended", 120)
    assert {path.name for path in (job / "done").iterdir()} == {"0", "2"}, _logs(job)
    assert "shards/1/manifest.json does not exist" in (job / "tasks/00001.log").read_text()
    assert "job: task 1 failed with status 2" in (job / "tasks/00001.log").read_text()
    write_corpus(Path("shards/1"))
    again = [sys.executable, "-m", "olmo_train.cli", "launch", "tasks", "--again", "jobs/0001"]
    assert "1 of 3 tasks (1)" in subprocess.run(again, capture_output=True, text=True, check=True).stdout
    second = json.loads((job / "slurm.json").read_text())[1]
    wait_until(lambda: is_over(second["id"]), "the task has ended", 120)
    assert {path.name for path in (job / "done").iterdir()} == {"0", "1", "2"}, _logs(job)


@pytest.mark.slow
def test_tasks_share_a_data_stage_and_a_killed_one_is_run_again(
    login: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shared", "alone"):
        for number in range(6):
            documents = [{"id": f"{number}:{i}", "text": f"text {i % (number + 2)}", "source": "s"} for i in range(50)]
            write_lines(Path(name, f"documents/{number}.jsonl"), documents)
    words = ["data", "dedupe", "name=exact", "by=document"]
    parts = Path("shared/stages/dedupe-exact/parts/keys")
    parts.mkdir(parents=True)
    ours = Claims()
    assert ours.take(parts / "3.jsonl.claim")  # the tasks wait for this part
    launch_tasks([f"cluster={login}", "tasks=3", "time=60", *words, "documents=[shared]"])
    job = Path("jobs/0001")
    (first,) = json.loads((job / "slurm.json").read_text())
    wait_until(lambda: len(list(parts.glob("*.json"))) == 5, "the other parts are done", 60)
    wait_until(lambda: cluster.state(f"{first['id']}_1") == "RUNNING", "task 1 runs", 60)
    cluster.client("scancel", f"{first['id']}_1")
    wait_until(lambda: is_over(f"{first['id']}_1"), "task 1 is gone", 60)
    ours.release_all()
    wait_until(lambda: is_over(first["id"]), "the others have ended", 60)
    assert {path.name for path in (job / "done").iterdir()} == {"0", "2"}, _logs(job)
    launch_tasks(["--again", "jobs/0001"])
    assert "1 of 3 tasks (1)" in capsys.readouterr().out
    second = json.loads((job / "slurm.json").read_text())[1]
    wait_until(lambda: is_over(second["id"]), "the task has ended")
    assert {path.name for path in (job / "done").iterdir()} == {"0", "1", "2"}, _logs(job)
    subprocess.run([sys.executable, "-m", "olmo_train.cli", *words, "documents=[alone]"], check=True, capture_output=True)
    found = [{p.name: p.read_bytes() for p in Path(name, "attributes/exact").iterdir()} for name in ("shared", "alone")]
    assert found[0] == found[1]
    assert len(found[0]) == 6


def _logs(job: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((job / "tasks").iterdir()))
