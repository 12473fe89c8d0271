"""`olmo launch`: the whole request is checked first, then a folder holds all that the job needs, then Slurm has it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.job_folder import Job, slurm_ids
from launch.request import read_request, read_site, split_words
from launch.submit import main
from launch.write_job import alone
from olmo_train.code import code_sha256
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.schema import load_config, read_yaml, to_yaml
from tests.launch.sites import GPU_SITE, only_tools, put_tool, write_site
from tests.runs import small

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node whose sbatch answers with an id; what it was given is in the file `asked`."""
    folder = only_tools(tmp_path, monkeypatch)
    put_tool(folder, "sbatch", f'echo "$@" >>{tmp_path}/asked; echo 42')
    put_tool(folder, "sinfo", "printf 'main*|up|infinite|8|(null)|8000|4|1-infinite\\n'")
    put_tool(folder, "squeue", "true")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def words(shards: Path, tmp_path: Path, *more: str) -> list[str]:
    """A launch on two nodes; later words win."""
    site = write_site(tmp_path)
    own = [f"cluster={site}", "nodes=2", "time=60", *small(shards, Path("runs/first")), *more]
    return list({word.split("=", 1)[0]: word for word in own}.values())


def launch(*words: str) -> None:
    main(list(words))


def problems_of(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        main(list(words))
    return caught.value.problems


def test_no_torch_is_needed(shards: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from launch.submit import main; main(sys.argv[1:])"
    site = write_site(tmp_path)
    command = [sys.executable, "-c", code, "--dry-run", f"cluster={site}", "nodes=2", "time=60", *small(shards, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Nothing was written and nothing was submitted (--dry-run)." in done.stdout


def test_a_launch_leaves_a_folder_with_all_that_the_job_needs(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(shards, tmp_path, "min_nodes=1", "max_failures=5", "cluster.network.NCCL_DEBUG=INFO")
    launch(*asked)
    folder = Path("runs/first/jobs/0001").absolute()
    names = {path.name for path in folder.iterdir()}
    assert names == {"attempts", "code", "code.json", "config.yaml", "job.json", "job.sbatch", "repeat.sh", "slurm.json"}
    job = Job.read(folder)
    assert (job.run_name, job.run_dir, job.kind) == ("first", str(folder.parent.parent), "train")
    assert (job.node_counts, job.ranks_per_node, job.max_failures, job.silent_s, job.requeue) == ([2, 1], 1, 5, 60.0, True)
    ranks = ["-m", "olmo_train.parallel.srun", "-m", "olmo_train.train", "--from", f"{folder}/config.yaml"]
    assert job.command == [sys.executable, *ranks]
    assert [entry["id"] for entry in slurm_ids(folder)] == ["42"]
    assert (tmp_path / "asked").read_text().split() == ["--parsable", f"{folder}/job.sbatch"]
    assert read_yaml(folder / "config.yaml", TrainConfig) == load_config("train", TrainConfig, split_words(asked).rest)
    out = capsys.readouterr().out
    for line in ("submitted job 42: first", "2 nodes x 1 = 2 (CPU)", "2; if nodes are lost 1", "olmo logs first -f"):
        assert line in out
    assert "log              runs/first/jobs/0001/job-42.log" in out


def test_the_code_of_the_job_is_the_code_that_launched_it(shards: Path, tmp_path: Path, tools: Path) -> None:
    launch(*words(shards, tmp_path))
    folder = Path("runs/first/jobs/0001").absolute()
    told = json.loads((folder / "code.json").read_text())
    assert told["sha256"] == code_sha256() == code_sha256(folder / "code")
    where = "import olmo_train.code, launch.config; print(olmo_train.code.__file__); print(launch.config.__file__)"
    environment = {"PYTHONPATH": str(folder / "code"), "PYTHONSAFEPATH": "1"}
    out = subprocess.run([sys.executable, "-c", where], env=environment, capture_output=True, text=True, cwd=ROOT).stdout
    assert out.split() == [f"{folder}/code/olmo_train/code.py", f"{folder}/code/launch/config.py"]


def test_the_command_in_the_folder_launches_the_same_again(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(*words(shards, tmp_path, "data.repetition_mask={max_count: 4, max_period: 13}"))
    done = subprocess.run(["bash", "runs/first/jobs/0001/repeat.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = Path("runs/first/jobs/0001"), Path("runs/first/jobs/0002")
    assert (first / "config.yaml").read_bytes() == (second / "config.yaml").read_bytes()
    assert (first / "code.json").read_bytes() == (second / "code.json").read_bytes()


def test_a_dry_run_prints_all_of_it_and_writes_nothing(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(shards, tmp_path)
    launch("--dry-run", *asked)
    out = capsys.readouterr().out
    assert list(Path().iterdir()) == []
    assert not (tmp_path / "asked").exists()
    folder = Path("runs/first/jobs/0001").absolute()
    script = out.split("---- runs/first/jobs/0001/job.sbatch\n")[1].split("\n\n---- ")[0]
    ranks = out.split("---- command of the ranks\n")[1].splitlines()[0]
    assert "data.seq_len: 16  (was 256)" in out
    assert f"---- to launch it\n{shlex.join(['olmo', 'launch', *asked])}" in out
    launch(*asked)
    assert (folder / "job.sbatch").read_text().rstrip() == script
    assert ranks.endswith(shlex.join(Job.read(folder).command))


def test_everything_wrong_is_one_message_and_nothing_is_written(shards: Path, tmp_path: Path, tools: Path) -> None:
    wrong = [
        "data.global_batch_size=100",
        "optim.lrr=1",
        "data.sources.demo.select=c",
        "cluster.cpus_per_rank=8",
        "node=2",
        "time=never",
    ]
    found = problems_of(*words(shards, tmp_path, *wrong))
    starts = [
        "node is not a word of a launch (did you mean nodes?); words: cluster, nodes, ",
        "time=never is no time limit; write ",
        "cluster.cpus_per_rank=8 for 1 ranks is 8 CPUs, but the nodes of partition main have 4; at most 4 each",
        "optim.lrr is not a field of OptimConfig (did you mean lr?)",
        "data.global_batch_size=100 tokens is not a multiple of micro_batch_size * n_ranks = 64 * 2 = 128; nearest: 128",
        "data.sources.demo.select=c is not a source of ",
    ]
    assert len(found) == len(starts)
    for problem, start in zip(found, starts, strict=True):
        assert problem.startswith(start)
    assert list(Path().iterdir()) == []


def test_missing_words_of_the_launch_are_told_by_name(shards: Path, tmp_path: Path, tools: Path) -> None:
    found = problems_of(*small(shards, Path("runs/first")))
    assert found == [
        f"{name} is missing: give {name}=<{kind}>" for name, kind in (("cluster", "str"), ("nodes", "int"), ("time", "str"))
    ]
    assert problems_of(*words(shards, tmp_path, "nodes=two")) == ["nodes='two' is a str, must be a int"]
    # how many ranks there are is not known then, so nothing is said of what they divide
    assert problems_of(*words(shards, tmp_path, "nodes=two", "parallel.shard_size=2")) == ["nodes='two' is a str, must be a int"]


def test_a_run_that_does_not_fit_the_gpus_is_told_what_fits(tmp_path: Path, shards: Path, tools: Path) -> None:
    put_tool(tools, "sinfo", "printf 'main*|up|infinite|8|gpu:8|1024000|96|1-infinite\\n'")
    site = write_site(tmp_path, GPU_SITE)
    run = ["run_name=big", "experiment=olmoe_1b_7b", f"data.sources.olmoe_mix.path={shards}", "data.micro_batch_size=131072"]
    (problem,) = problems_of(f"cluster={site}", "nodes=2", "time=60", *run)
    assert problem.startswith("data.micro_batch_size=131072 needs ")
    assert "GiB of cluster.gpu_memory_gib=78 on 16 ranks; data.micro_batch_size=" in problem
    assert problem.endswith(" fits (`olmo size --ranks 16 ...` shows what of)")
    fits = problem.split("; data.micro_batch_size=")[1].split()[0]
    split = split_words(
        [f"cluster={site}", "nodes=2", "time=60", *run[:-1], f"data.micro_batch_size={fits}", "data.global_batch_size=4194304"]
    )
    assert not any("needs" in problem for problem in _problems(split))


def _problems(split: object) -> list[str]:
    try:
        read_request(split, read_site(split))  # type: ignore[arg-type]
    except ConfigError as error:
        return error.problems
    return []


def test_devices_and_site_must_agree(shards: Path, tmp_path: Path, tools: Path) -> None:
    assert problems_of(*words(shards, tmp_path, "parallel.device=cuda")) == [
        "parallel.device=cuda, but cluster.gpus_per_node=0; use parallel.device=auto"
    ]
    site = write_site(tmp_path, GPU_SITE, gpu_request="null", cpus_per_rank="1", gpus_per_node="2")
    asked = [word for word in words(shards, tmp_path, "parallel.device=cpu") if not word.startswith("cluster=")]
    write_site(tmp_path, GPU_SITE, gpu_request="null", cpus_per_rank="1", gpus_per_node="2")
    assert problems_of(f"cluster={site}", *asked) == [
        "parallel.device=cpu would leave 2 GPUs of each node idle; use parallel.device=auto"
    ]


def test_fewer_nodes_are_those_on_which_the_batch_divides(shards: Path, tmp_path: Path, tools: Path) -> None:
    launch(*words(shards, tmp_path, "nodes=4", "min_nodes=1"))
    assert Job.read(Path("runs/first/jobs/0001")).node_counts == [4, 2, 1]
    assert problems_of(*words(shards, tmp_path, "nodes=4", "min_nodes=3")) == [
        (
            "min_nodes=3: on none of 3 to 3 nodes of 1 ranks can this run go on: data.global_batch_size=256 must divide, and memory "
            "suffice; min_nodes=2 is the next that works, or leave min_nodes out"
        )
    ]


def test_a_second_job_of_a_run_is_refused_while_the_first_lives(shards: Path, tmp_path: Path, tools: Path) -> None:
    launch(*words(shards, tmp_path))
    row = "42|PENDING|Resources||0:00|60:00|main|0|N/A|first|"
    put_tool(tools, "squeue", f"echo '{row}'")
    assert problems_of(*words(shards, tmp_path)) == [
        f"run_dir={Path('runs/first').absolute()} has job 42 already, which is PENDING; wait for it, or end it with `olmo cancel first`"
    ]
    put_tool(tools, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    launch(*words(shards, tmp_path))
    assert Path("runs/first/jobs/0002/slurm.json").exists()


def test_two_launches_of_a_run_at_the_same_moment_make_one_job(shards: Path, tmp_path: Path, tools: Path) -> None:
    run_dir = Path("runs/first").absolute()
    with alone([run_dir]):  # the first has looked for jobs and not submitted its own
        launch("--dry-run", *words(shards, tmp_path))  # writes nothing, not even a lock
        with (
            pytest.raises(ConfigError, match="is launched by another `olmo launch` right now; see `olmo jobs`"),
            alone([run_dir]),
        ):
            raise AssertionError
    launch(*words(shards, tmp_path))
    assert [path.name for path in (run_dir / "jobs").iterdir()] == ["0001"]


def test_names_that_would_break_the_job_script_are_refused(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert problems_of(*words(shards, tmp_path, "run_name='a\"b'", "run_dir=runs/plain")) == [
        "run_name='a\"b' has '\"' in it, which sbatch takes for something else; give a name without it"
    ]
    (problem,) = problems_of(*words(shards, tmp_path, "run_dir=runs/a%j"))
    assert problem.endswith("runs/a%j' has '%' in it, which sbatch takes for something else; give a name without it")
    launch(*words(shards, tmp_path, "run_name=two words", "run_dir=runs/two words"))
    assert "olmo jobs 'two words'" in capsys.readouterr().out


def test_a_refused_submission_leaves_no_folder_but_one_without_answer_does(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tool(tools, "sbatch", 'echo "sbatch: error: Batch job submission failed: Invalid qos specification" >&2; exit 1')
    with pytest.raises(SystemExit) as caught:
        launch(*words(shards, tmp_path))
    assert caught.value.code == 1
    assert "error: sbatch --parsable " in capsys.readouterr().err
    assert list(Path("runs/first/jobs").iterdir()) == []
    put_tool(tools, "sbatch", "exec sleep 600")
    monkeypatch.setattr("launch.slurm.ask.__defaults__", (1.0, None))
    with pytest.raises(SystemExit):
        launch(*words(shards, tmp_path))
    assert "see with `squeue --me` if the job is there before you submit again" in capsys.readouterr().err
    assert Path("runs/first/jobs/0001/job.sbatch").exists()


def test_without_slurm_here_a_dry_run_says_what_was_not_checked(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tools / "sinfo").unlink()
    launch("--dry-run", *words(shards, tmp_path))
    assert (
        "note: Slurm's sinfo is not on this machine: partition, nodes, GPUs and limits are not checked" in capsys.readouterr().out
    )
    put_tool(tools, "sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    launch("--dry-run", *words(shards, tmp_path))
    assert "note: partition, nodes, GPUs and limits are not checked: sinfo " in capsys.readouterr().out


def test_a_run_folder_that_cannot_be_written_is_told(shards: Path, tmp_path: Path, tools: Path) -> None:
    (tmp_path / "file").write_text("")
    assert problems_of(*words(shards, tmp_path, f"run_dir={tmp_path}/file/run")) == [
        f"run_dir={tmp_path}/file/run: {tmp_path}/file is a file; give another run_dir"
    ]


def test_another_config_than_the_run_began_with_is_told_before_it_waits_for_nodes(
    shards: Path, tmp_path: Path, tools: Path
) -> None:
    run = Path("runs/first")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(load_config("train", TrainConfig, small(shards, run))))
    launch("--dry-run", *words(shards, tmp_path, "faults.silent_s=99"))
    (problem,) = problems_of(*words(shards, tmp_path, "optim.lr=3e-3"))
    assert problem.startswith(f"optim.lr=0.003, but {run.absolute()} began with 0.01; restore it, or start another run_name ")
    (run / "config.yaml").write_text("seed: [")
    assert problems_of(*words(shards, tmp_path))[0].startswith(f"{run.absolute()}/config.yaml cannot be read as YAML: ")
