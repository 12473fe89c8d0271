"""Data work as a job array: each task its share, and what failed again, alone."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from data_tools.decontaminate.config import DecontaminateConfig
from data_tools.dedupe.config import DedupeConfig
from data_tools.ingest.config import IngestConfig
from data_tools.mix.config import MixConfig
from data_tools.tag.config import TagConfig
from data_tools.tokenize.command import TokenizeConfig
from data_tools.trace.config import IndexConfig
from launch.tasks import DIVIDE, main
from olmo_train.errors import ConfigError
from tests.launch.sites import put_tool, write_site
from tests.launch.test_submit import tools

__all__ = ["tools"]


def problems_of(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        main(list(words))
    return caught.value.problems


def submitted(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text().splitlines()


def run_task(tools: Path, task: int) -> subprocess.CompletedProcess[str]:
    """The script of jobs/0001 as Slurm would run it for one task."""
    environment = {"SLURM_ARRAY_TASK_ID": str(task), "PATH": str(tools)}
    return subprocess.run(["bash", "jobs/0001/job.sbatch"], env=environment, capture_output=True, text=True)


def test_each_task_gets_its_number_and_leaves_a_mark_when_it_is_done(
    tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = write_site(tmp_path, memory_gib_per_node="4", exclusive="false")
    main([f"cluster={site}", "tasks=3", "time=60", "max_parallel=2", "trace", "index", "shards=my shards", "memory_gib=2"])
    text = Path("jobs/0001/job.sbatch").read_text()
    for option in ("--array=0-2%2", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=4096M", "--requeue"):
        assert f"#SBATCH {option}\n" in text
    assert f"#SBATCH --output={Path('jobs/0001').absolute()}/tasks/%5a.log\n" in text
    put_tool(tools, "srun", 'printf "%s|" "${@: -8}"')
    done = run_task(tools, 1)
    assert done.returncode == 0
    assert done.stdout == "-m|olmo_train.cli|trace|index|shards=my shards|memory_gib=2|task=1|n_tasks=3|"
    assert [path.name for path in Path("jobs/0001/done").iterdir()] == ["1"]
    assert run_task(tools, 1).stdout == "task 1 is done already\n"
    put_tool(tools, "srun", "exit 7")
    failed = run_task(tools, 2)
    assert failed.returncode == 7
    assert "job: task 2 failed with status 7" in failed.stderr
    assert f"olmo launch tasks --again {Path('jobs/0001').absolute()}" in failed.stderr
    assert "submitted job array 42: 3 tasks of olmo trace index" in capsys.readouterr().out


def test_only_what_is_not_done_is_submitted_again(tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([f"cluster={write_site(tmp_path)}", "tasks=6", "time=60", "max_parallel=4", "trace", "index", "shards=x"])
    for task in (1, 5):
        Path("jobs/0001/done", str(task)).touch()
    row = "42_3|RUNNING|None|n1|0:00|60:00|main|0|N/A|x|"
    put_tool(tools, "squeue", f"echo '{row}'")
    main(["--again", "jobs/0001"])
    assert submitted(tmp_path)[-1] == f"--parsable --array=0,2,4%4 {Path('jobs/0001').absolute()}/job.sbatch"
    assert "3 of 6 tasks (0,2,4); 1 others wait or run" in capsys.readouterr().out
    assert [entry["id"] for entry in json.loads(Path("jobs/0001/slurm.json").read_text())] == ["42", "42"]
    for task in (0, 2, 4):
        Path("jobs/0001/done", str(task)).touch()
    assert problems_of("--again=jobs/0001") == [
        f"--again {Path('jobs/0001').absolute()}: the 1 tasks that are not done wait or run; wait for them"
    ]
    Path("jobs/0001/done/3").touch()
    main(["--again", "jobs/0001"])
    assert f"all 6 tasks of {Path('jobs/0001').absolute()} are done" in capsys.readouterr().out


def test_words_with_a_place_for_the_number_serve_any_verb(tmp_path: Path, tools: Path) -> None:
    main([f"cluster={write_site(tmp_path)}", "tasks=2", "time=60", "data", "verify", "shards/a b-{task}-of-{n_tasks}"])
    put_tool(tools, "srun", 'printf "%s|" "${@: -3}"')
    assert run_task(tools, 0).stdout == "data|verify|shards/a b-0-of-2|"


def test_a_task_uses_no_gpu_and_all_cpus_of_a_whole_node(tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = f"{{kind: none, python: {sys.executable}}}"
    site = write_site(tmp_path, {"gpus_per_node": "4", "cpus_per_rank": "1", "environment": environment})
    main(["--dry-run", f"cluster={site}", "tasks=2", "time=60", "trace", "index", "shards=x"])
    out = capsys.readouterr().out
    assert "#SBATCH --cpus-per-task=4\n" in out
    assert "#SBATCH --exclusive\n#SBATCH --array=0-1\n#SBATCH --mem=0\n" in out
    assert "gpus" not in out
    assert not Path("jobs").exists()


def test_everything_wrong_is_one_message(tmp_path: Path, tools: Path) -> None:
    site = write_site(tmp_path)
    found = problems_of(f"cluster={site}", "tasks=none", "nodes=2", "foo=1", "time=x", "data", "manifest", "task=3")
    assert found == [
        "time=x is no time limit; write minutes, hours:minutes:seconds or days-hours:minutes:seconds, e.g. 1-12:00:00",
        (
            "foo=1 is not a word of `olmo launch tasks`; words: tasks, cluster, nodes, min_nodes, spare_nodes, time, max_failures, "
            "max_parallel, dependency"
        ),
        "nodes: a task has one node; leave it out",
        "tasks=none must be a number of at least 1",
        "task=3: each task gets its own number; leave it out, or write {task} and {n_tasks}",
        (
            "olmo data manifest does not divide its work, so all tasks would do the same; write {task} into the words that differ, "
            "e.g. documents=corpus/part-{task}.jsonl.gz"
        ),
    ]
    assert problems_of(f"cluster={site}", "time=60", "trce", "index") == [
        "tasks is missing: give tasks=<int>",
        (
            "trce index is no verb (did you mean trace index?); after the words of the launch comes what each task runs, e.g. trace index "
            "shards=shards/demo"
        ),
    ]
    assert problems_of(f"cluster={site}", "time=60", "tasks=1")[0].startswith(
        "the verb is missing; after the words of the launch"
    )
    assert list(Path().iterdir()) == []


def test_again_wants_the_folder_of_an_array(tmp_path: Path, tools: Path) -> None:
    assert problems_of("--again") == ["--again needs the folder of an array of tasks and nothing else, e.g. --again jobs/0001"]
    assert problems_of("--again", "nowhere")[0].startswith(f"{Path('nowhere').absolute()}/job.json is not a job: ")


def test_verbs_that_divide_their_work_take_the_numbers() -> None:
    configs = {
        "trace index": IndexConfig, "data ingest": IngestConfig, "data tag": TagConfig, "data dedupe": DedupeConfig,
        "data decontaminate": DecontaminateConfig, "data mix": MixConfig, "data tokenize": TokenizeConfig,
    }  # fmt: skip
    assert set(DIVIDE) == set(configs)
    assert all({"task", "n_tasks"} <= {field.name for field in fields(config)} for config in configs.values())
