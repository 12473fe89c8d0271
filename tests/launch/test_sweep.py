"""Words with several values: one run of each combination, one job array."""

import subprocess
from pathlib import Path

import pytest

from launch.job_folder import Job, slurm_ids
from launch.submit import main
from launch.sweep import combinations, swept
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.schema import read_yaml
from tests.launch.sites import put_tool
from tests.launch.test_submit import tools, words

__all__ = ["tools"]


def test_words_with_several_values_are_found() -> None:
    found = swept(
        ["optim.lr=1e-4,3e-4", "seed=range(1,4)", "data.x=[1,2]", "model=a,b", "not an override", "run_name=x", "a.b=[1],[2,3]"]
    )
    assert found == {"optim.lr": ["1e-4", "3e-4"], "seed": ["1", "2", "3"], "model": ["a", "b"], "a.b": ["[1]", "[2,3]"]}


def test_every_combination_has_its_own_readable_label() -> None:
    found = combinations(["run_name=x", "optim.lr=1e-4,3e-4", "optim.muon.lr=0.1,0.2", "data.sources.web.path=/a/b,/a/c"])
    assert [one.label for one in found][:3] == [
        "optim.lr_1e-4-muon.lr_0.1-path_a_b", "optim.lr_1e-4-muon.lr_0.1-path_a_c", "optim.lr_1e-4-muon.lr_0.2-path_a_b",
    ]  # fmt: skip
    assert found[0].words == ["run_name=x", "optim.lr=1e-4", "optim.muon.lr=0.1", "data.sources.web.path=/a/b"]
    assert len({one.label for one in found}) == len(found) == 8
    assert len({one.label for one in combinations(["a='x y','x_y'"])}) == 2


def test_a_sweep_is_one_array_of_whole_job_folders(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(shards, tmp_path, "optim.lr=1e-3,1e-2", "seed=1,2", "max_parallel=3", "run_dir=out/first"))
    names = ["lr_1e-3-seed_1", "lr_1e-3-seed_2", "lr_1e-2-seed_1", "lr_1e-2-seed_2"]
    array = Path("jobs/0001").absolute()
    folders = [Path(f"out/first-{name}/jobs/0001").absolute() for name in names]
    assert (array / "folders").read_text().split() == [str(folder) for folder in folders]
    text = (array / "array.sbatch").read_text()
    assert "#SBATCH --array=0-3%3\n" in text
    assert "#SBATCH --job-name=first\n" in text
    assert (tmp_path / "asked").read_text().split() == ["--parsable", f"{array}/array.sbatch"]
    for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
        assert (Job.read(folder).run_name, [entry["id"] for entry in slurm_ids(folder)]) == (f"first-{name}", [f"42_{number}"])
        run = read_yaml(folder / "config.yaml", TrainConfig)
        assert (run.optim.lr, run.seed, run.run_dir) == (float(name[3:7]), int(name[-1]), f"out/first-{name}")
        assert "exec bash" not in (folder / "job.sbatch").read_text()
        assert f"seed={name[-1]}" in (folder / "repeat.sh").read_text()
        assert "1e-3,1e-2" not in (folder / "repeat.sh").read_text()
    assert "42_3  first-lr_1e-2-seed_2" in capsys.readouterr().out


def test_a_task_of_the_array_becomes_the_job_of_its_folder(shards: Path, tmp_path: Path, tools: Path) -> None:
    main(words(shards, tmp_path, "optim.lr=1e-3,1e-2"))
    folder = Path("runs/first-lr_1e-2/jobs/0001").absolute()
    (folder / "job.sbatch").write_text("echo this is $0\n")
    environment = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "42", "SLURM_JOB_ID": "42", "PATH": str(tools)}
    subprocess.run(["bash", "jobs/0001/array.sbatch"], env=environment, check=True)
    assert (folder / "job-42_1.log").read_text() == f"this is {folder}/job.sbatch\n"


def test_problems_name_the_combinations_that_have_them(shards: Path, tmp_path: Path, tools: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main(words(shards, tmp_path, "optim.lr=-1,1e-2", "foo=1"))
    assert [problem.split("; fields")[0] for problem in caught.value.problems] == [
        "foo is not a field of TrainConfig",
        "optim.lr=-1.0 must be positive (in lr_-1)",
    ]
    assert list(Path().iterdir()) == []


def test_a_refused_array_leaves_nothing(shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_tool(tools, "sbatch", "echo 'Batch job submission failed: Invalid job array specification' >&2; exit 1")
    with pytest.raises(SystemExit):
        main(words(shards, tmp_path, "optim.lr=1e-3,1e-2"))
    assert "Invalid job array specification" in capsys.readouterr().err
    assert list(Path("jobs").iterdir()) == list(Path("runs/first-lr_1e-3/jobs").iterdir()) == []


def test_a_dry_run_of_a_sweep_lists_its_runs(
    shards: Path, tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--dry-run", *words(shards, tmp_path, "optim.lr=1e-3,1e-2")])
    out = capsys.readouterr().out
    assert f"first-lr_1e-2  {Path('runs/first-lr_1e-2').absolute()}" in out
    assert "#SBATCH --array=0-1\n" in out
    assert list(Path().iterdir()) == []
