"""What Slurm is given, for each kind of site; every script is read by bash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import ClusterConfig, Environment, EnvironmentConfig, LaunchConfig
from launch.script import Place, batch_script, in_environment, srun_options

RANKS = ["-m", "olmo_train.parallel.srun"]


def cluster(kind: Environment, **values: object) -> ClusterConfig:
    environment = {name: values.pop(name) for name in ("path", "mounts", "modules", "setup", "python") if name in values}
    fields = {"gpus_per_node": 8, "cpus_per_rank": 12, **values}
    return ClusterConfig(environment=EnvironmentConfig(kind=kind, **environment), **fields)  # type: ignore[arg-type]


def place(folder: Path) -> Place:
    return Place("first", folder, Path("/home/me/project"), (Path("/scratch/runs/first"),))


LAUNCH = LaunchConfig(cluster="x", nodes=4, spare_nodes=1, time="4:00:00", dependency="afterok:7")


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def bash(text: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script outside of Slurm; its supervisor is a program that prints what it was started with."""
    path = folder / "job.sbatch"
    path.write_text(text)
    return subprocess.run(["bash", str(path)], capture_output=True, text=True, env={**os.environ, **environment})


def test_a_job_asks_for_what_the_site_and_the_request_say(tmp_path: Path) -> None:
    site = cluster(
        Environment.NONE, partition="gpu", account="me", qos="long", memory_gib_per_node=480.5, requeue=False,
        sbatch=["--constraint=a100&80gb"], gpu_request="--gres=gpu:a100:{gpus}", signal_before_s=240,
    )  # fmt: skip
    assert options(batch_script(site, LAUNCH, place(tmp_path))) == [
        "--job-name=first", "--chdir=/home/me/project", f"--output={tmp_path}/job-%j.log", "--open-mode=append", "--nodes=4-5",
        "--cpus-per-task=96", "--time=4:00:00", "--partition=gpu", "--account=me", "--qos=long",
        "--gres=gpu:a100:8", "--mem=492032M", "--exclusive", "--dependency=afterok:7", "--signal=USR1@240", "--no-kill",
        "--no-requeue", "--constraint=a100&80gb",
    ]  # fmt: skip


def test_what_a_site_leaves_out_is_not_asked_for(tmp_path: Path) -> None:
    site = cluster(Environment.NONE, gpu_request=None, exclusive=True)
    found = options(batch_script(site, LaunchConfig(cluster="x", nodes=2, time="60"), place(tmp_path)))
    assert found[4:] == [
        "--nodes=2", "--ntasks-per-node=8", "--cpus-per-task=12", "--time=60", "--mem=0", "--exclusive", "--signal=USR1@180",
        "--no-kill", "--requeue",
    ]  # fmt: skip


def test_the_script_runs_the_supervisor_with_the_code_of_the_job(tmp_path: Path) -> None:
    folder = tmp_path / "a job"
    folder.mkdir()
    show = tmp_path / "python"
    show.write_text('#!/bin/bash\necho "$@"; env\n')
    show.chmod(0o755)
    site = cluster(
        Environment.NONE, supervisor_python=str(show), network={"NCCL_IB_HCA": "mlx5_0,mlx5_1"}, rendezvous_interface="ib0",
        setup=["export FROM_SETUP='a b'"],
    )  # fmt: skip
    done = bash(batch_script(site, LAUNCH, place(folder)), tmp_path, PYTHONPATH="/opt/site")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"-m launch.supervise {folder}"
    wanted = {
        f"PYTHONPATH={folder}/code:/opt/site", "PYTHONSAFEPATH=1", "NCCL_IB_HCA=mlx5_0,mlx5_1", "OLMO_RENDEZVOUS_INTERFACE=ib0",
        "FROM_SETUP=a b", "SLURM_EXPORT_ENV=ALL",
    }  # fmt: skip
    assert wanted <= set(lines)


def test_a_supervisor_that_is_killed_is_started_again_and_one_that_ends_is_not(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\necho x >>"$COUNT"; (( $(wc -l <"$COUNT") > 2 )) && exit 75; kill -9 $$\n')
    fake.chmod(0o755)
    site = cluster(Environment.NONE, supervisor_python=str(fake))
    done = bash(batch_script(site, LAUNCH, place(tmp_path)), tmp_path, COUNT=str(tmp_path / "count"))
    assert done.returncode == 75
    assert done.stdout.count("the supervisor was ended by signal 9, and is started again") == 2


def test_a_module_that_does_not_load_ends_the_job(tmp_path: Path) -> None:
    text = batch_script(cluster(Environment.NONE, modules=["cuda/12.8"]), LAUNCH, place(tmp_path))
    function = "module() { [[ $2 == other ]]; }; export -f module; "
    (tmp_path / "job.sbatch").write_text(text)
    done = subprocess.run(["bash", "-c", f"{function} bash {tmp_path}/job.sbatch"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "job: module load cuda/12.8 failed; `module avail cuda/12.8` shows what there is\n"


def test_a_line_of_setup_that_fails_ends_the_job(tmp_path: Path) -> None:
    text = batch_script(cluster(Environment.NONE, setup=["true", "source /nowhere/env.sh"]), LAUNCH, place(tmp_path))
    done = bash(text, tmp_path)
    assert done.returncode == 2
    assert "job: cluster.environment.setup failed with status 1: source /nowhere/env.sh" in done.stderr


def test_a_virtual_environment_is_activated_and_its_python_runs_the_ranks(tmp_path: Path) -> None:
    site = cluster(Environment.VENV, path=str(tmp_path / "venv"), supervisor_python=sys.executable)
    assert in_environment(site, place(tmp_path), RANKS) == [f"{tmp_path}/venv/bin/python", *RANKS]
    text = batch_script(site, LAUNCH, place(tmp_path))
    done = bash(text, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "job: cannot activate cluster.environment.path on this node"
    assert text.index("bin/activate") < text.index("export PYTHONPATH=")


def test_pyxis_mounts_the_job_and_keeps_our_variables(tmp_path: Path) -> None:
    site = cluster(
        Environment.PYXIS, path="nvcr.io#nvidia/pytorch:25.01-py3", mounts=["/data", "/a:/b"], network={"NCCL_DEBUG": "INFO"}
    )
    assert srun_options(site, place(Path("/home/me/project/runs/first/jobs/0001"))) == [
        "--cpus-per-task=12", "--mpi=none", "--distribution=block", "--export=ALL",
        "--container-image=nvcr.io#nvidia/pytorch:25.01-py3",
        "--container-mounts=/home/me/project:/home/me/project,/scratch/runs/first:/scratch/runs/first,/data:/data,/a:/b",
        "--container-workdir=/home/me/project",
        "--container-env=PYTHONPATH,PYTHONSAFEPATH,PYTHONUNBUFFERED,OLMO_ATTEMPT_DIR,OLMO_RENDEZVOUS_INTERFACE,NCCL_DEBUG",
    ]  # fmt: skip
    assert in_environment(site, place(tmp_path), RANKS) == ["python", *RANKS]


def test_apptainer_stands_before_the_command_and_variables_with_commas_reach_it(tmp_path: Path) -> None:
    site = cluster(Environment.APPTAINER, path="/images/olmo.sif", mounts=["/data:/data:ro"], network={"NCCL_IB_HCA": "a,b"})
    command = in_environment(site, place(Path("/home/me/project/runs/first/jobs/0001")), RANKS)
    assert command == [
        "apptainer", "exec", "--nv", "--pwd", "/home/me/project", "--bind", "/home/me/project", "--bind", "/scratch/runs/first", "--bind",
        "/data:/data:ro", "/images/olmo.sif", "python", *RANKS,
    ]  # fmt: skip
    text = batch_script(site, LAUNCH, place(tmp_path))
    assert 'export APPTAINERENV_NCCL_IB_HCA="$NCCL_IB_HCA" SINGULARITYENV_NCCL_IB_HCA="$NCCL_IB_HCA"' in text
    assert "container" not in " ".join(srun_options(site, place(tmp_path)))


def test_a_site_without_gpus_asks_for_none(tmp_path: Path) -> None:
    site = cluster(Environment.APPTAINER, path="/images/olmo.sif", gpus_per_node=0, ranks_per_node=2)
    assert not [
        option for option in options(batch_script(site, LAUNCH, place(tmp_path))) if option.startswith(("--gpu", "--gres"))
    ]
    assert "--nv" not in in_environment(site, place(tmp_path), RANKS)


@pytest.mark.parametrize("kind", [Environment.NONE, Environment.APPTAINER, Environment.PYXIS])
def test_paths_with_spaces_stay_whole(kind: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "0001"
    text = batch_script(cluster(kind, path="/images/olmo.sif", supervisor_python="true"), LAUNCH, place(folder))
    assert f'#SBATCH --output="{folder}/job-%j.log"' in text
    path = tmp_path / "check.sh"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
