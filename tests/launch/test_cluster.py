"""What a bad description of a site is answered with, before anything is submitted."""

from pathlib import Path

import pytest

from launch.cluster import cluster_problems, launch_problems, ranks_per_node, read_cluster, site_problems
from launch.config import ClusterConfig, LaunchConfig
from launch.slurm import SlurmError
from olmo_train.errors import ConfigError
from olmo_train.schema import CONFIG_DIR
from tests.launch.sites import GPU_SITE, SITE, only_tools, put_tool, write_site


def problems_of(path: Path, *overrides: str) -> list[str]:
    """What is told of a site's file, whether it can be read or not."""
    try:
        return cluster_problems(read_cluster(str(path), list(overrides)))
    except ConfigError as error:
        return error.problems


def test_a_good_site_has_no_problems(tmp_path: Path) -> None:
    assert problems_of(write_site(tmp_path)) == []
    assert problems_of(write_site(tmp_path, GPU_SITE)) == []
    assert ranks_per_node(read_cluster(str(write_site(tmp_path, GPU_SITE)), [])) == 8


@pytest.mark.parametrize("text", ["gpus_per_node: [8\n", "gpus_per_node: 8\n\tcpus_per_rank: 1\n", "a: 1\na: 2\n"])
def test_broken_yaml_is_told_with_file_and_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path} cannot be read as YAML: ")
    assert f'in "{path}", line 2' in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (b"- 1\n- 2\n", "is not a list of `name: value` lines"),
        (b"5\n", "cannot be read as YAML: Invalid loaded object type: int"),
        (bytes(range(256)), "cannot be read as YAML: 'utf-8' codec can't decode"),
        (b"account: ${oc.env:NOT_SET_ANYWHERE}\n", "cannot be read as YAML: KeyError raised while resolving interpolation"),
    ],
)
def test_a_file_that_is_no_site_is_told(text: bytes, start: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(text)
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path} {start}")


def test_names_types_and_missing_values_are_told_at_once_with_the_file(tmp_path: Path) -> None:
    path = write_site(
        tmp_path, partion="main", cpus_per_rank="many", exclusive="1", network="[A]", account="???", environment="{kind: docker}"
    )
    found = problems_of(path)
    assert [problem.removeprefix(f"{path}: ") for problem in found if "partion" not in problem] == [
        "cluster.account is missing: give cluster.account=<str>",
        "cluster.cpus_per_rank='many' is a str, must be a int",
        "cluster.exclusive=1 is a int, must be a bool; write true or false",
        "cluster.environment.kind=docker is not one of venv, pyxis, apptainer, none",
        "cluster.network=['A'] is a list, must be a dict[str, str]",
    ]
    (unknown,) = [problem for problem in found if "partion" in problem]
    assert unknown.startswith(
        f"{path}: cluster.partion is not a field of ClusterConfig (did you mean partition?); fields: account, "
    )


def test_an_empty_file_says_what_a_site_needs(tmp_path: Path) -> None:
    path = write_site(tmp_path, {})
    assert [problem.removeprefix(f"{path}: ") for problem in problems_of(path)] == [
        "cluster.gpus_per_node is missing: give cluster.gpus_per_node=<int>",
        "cluster.cpus_per_rank is missing: give cluster.cpus_per_rank=<int>",
        "cluster.environment.kind is missing: give cluster.environment.kind=<venv|pyxis|apptainer|none>",
    ]


def test_a_time_that_yaml_takes_for_a_number_is_refused(tmp_path: Path) -> None:
    path = write_site(tmp_path, max_time="24:00:00")
    assert problems_of(path) == [f'{path}, line 5: YAML reads max_time: 24:00:00 as one number; write "24:00:00"']
    assert problems_of(write_site(tmp_path, max_time='"24:00:00"')) == []


def test_words_change_values_and_give_missing_ones(tmp_path: Path) -> None:
    path = write_site(tmp_path, account="???")
    cluster = read_cluster(str(path), ["cluster.account=me", "cluster.network.NCCL_DEBUG=INFO", "cluster.max_time=1-0"])
    assert (cluster.account, cluster.network, cluster.max_time) == ("me", {"NCCL_DEBUG": "INFO"}, "1-0")
    assert problems_of(path, "cluster.account=me", "cluster.nodes=2", "cluster.cpus_per_rank=x")[1] == (
        "cluster.cpus_per_rank='x' is a str, must be a int"
    )


def test_a_site_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=r"^cluster=locall: configs/cluster/ has no 'locall' \(did you mean local\?\); options: .*local"
    ):
        read_cluster("locall", [])
    with pytest.raises(
        ConfigError, match="^cluster=sites/x.yaml is not a file; give a YAML file, or a name of configs/cluster/$"
    ):
        read_cluster("sites/x.yaml", [])


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "cluster").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sites_of_this_project_are_whole_but_for_what_only_a_user_knows(path: Path) -> None:
    found = [problem for problem in problems_of(path) if "cluster.environment.python=python is not found here" not in problem]
    missing = [f"{path}: {name} is missing: give {name}=<str>" for name in ("cluster.account", "cluster.environment.path")]
    assert found == [problem for problem in missing if f"{problem.split()[1].split('.')[-1]}: ???" in path.read_text()]


@pytest.mark.parametrize(
    ("base", "values", "problem"),
    [
        (SITE, {"cpus_per_rank": "0"}, "cluster.cpus_per_rank=0 must be positive"),
        (SITE, {"max_nodes": "-1"}, "cluster.max_nodes=-1 must be positive"),
        (SITE, {"memory_gib_per_node": "0"}, "cluster.memory_gib_per_node=0.0 must be positive"),
        (SITE, {"gpus_per_node": "-1"}, "cluster.gpus_per_node=-1 must not be negative; 0 is a site without GPUs"),
        (SITE, {"signal_before_s": "70000"}, "cluster.signal_before_s=70000 is more than Slurm's 65535; 180 suits most runs"),
        (
            SITE,
            {"max_time": "1day"},
            ("cluster.max_time=1day is no time limit; write minutes, hours:minutes:seconds or days-hours:minutes:seconds, "
            "e.g. 1-12:00:00"),
        ),
        (
            SITE,
            {"partition": "'a b'"},
            "cluster.partition='a b' is no name that Slurm could have; write one, or null for the site's default",
        ),
        (
            SITE,
            {"ranks_per_node": None},
            "cluster.ranks_per_node=null with cluster.gpus_per_node=0; give the number of ranks on a node",
        ),
        (
            GPU_SITE,
            {"ranks_per_node": "4"},
            "cluster.ranks_per_node=4 with cluster.gpus_per_node=8: a rank has one GPU; leave ranks_per_node out",
        ),
        (SITE, {"gpu_memory_gib": "78"}, "cluster.gpu_memory_gib=78 with cluster.gpus_per_node=0; leave it out"),
        (
            GPU_SITE,
            {"gpu_request": "'--gres=gpu:8'"},
            ("cluster.gpu_request='--gres=gpu:8' must be an option of sbatch with {gpus} in it, e.g. --gres=gpu:h100:{gpus}; "
            "null where nodes come whole"),
        ),
        (
            GPU_SITE,
            {"gpu_request": "null", "exclusive": "false"},
            "cluster.gpu_request=null with cluster.exclusive=false: nothing asks for GPUs; give one of the two",
        ),
        (
            SITE,
            {"environment": "{kind: venv}"},
            "cluster.environment.path=null with cluster.environment.kind=venv; give the virtual environment's folder",
        ),
        (
            SITE,
            {"environment": "{kind: venv, path: /nowhere/.venv}"},
            "cluster.environment.path=/nowhere/.venv does not exist; make it with `python -m venv /nowhere/.venv`, or give the folder of one",
        ),
        (
            SITE,
            {"environment": "{kind: venv, path: /usr}"},
            "cluster.environment.path=/usr is not a virtual environment: it has no bin/activate; give the folder that has",
        ),
        (
            SITE,
            {"environment": "{kind: pyxis, path: /nowhere/olmo.sqsh}"},
            ("cluster.environment.path=/nowhere/olmo.sqsh does not exist; give the image's file, or an image's name as enroot writes it: "
            "nvcr.io#nvidia/pytorch:25.01-py3"),
        ),
        (
            SITE,
            {"environment": "{kind: apptainer, path: olmo.sif}"},
            "cluster.environment.path=olmo.sif does not exist; give the image's file",
        ),
        (
            SITE,
            {"environment": "{kind: apptainer}"},
            "cluster.environment.path=null with cluster.environment.kind=apptainer; give the image",
        ),
        (
            SITE,
            {"environment": "{kind: none, path: /x, python: /bin/sh}"},
            "cluster.environment.path=/x with cluster.environment.kind=none; leave it out, or say what it is: kind=venv, pyxis or apptainer",
        ),
        (
            SITE,
            {"environment": "{kind: none, python: python9}"},
            ("cluster.environment.python=python9 is not found here, and no modules or setup lead to it; give the path of a Python that "
            "compute nodes have too"),
        ),
        (
            SITE,
            {"environment": "{kind: none, python: /bin/sh, mounts: [/data]}"},
            "cluster.environment.mounts has /data, but cluster.environment.kind=none is no container; leave it out",
        ),
        (
            SITE,
            {"environment": "{kind: pyxis, path: nvcr.io#x, mounts: [data]}"},
            "cluster.environment.mounts: data is no absolute path; write /outside or /outside:/inside",
        ),
        (
            SITE,
            {"environment": "{kind: pyxis, path: nvcr.io#x, mounts: ['/nowhere/data:/data']}"},
            "cluster.environment.mounts: /nowhere/data does not exist here; mount folders that login and compute nodes share",
        ),
        (
            SITE,
            {"environment": "{kind: none, python: /bin/sh, modules: ['load python']}"},
            "cluster.environment.modules: 'load python' is no module's name; one name each, lines of bash go into cluster.environment.setup",
        ),
        (SITE, {"network": "{NCCL-DEBUG: INFO}"}, "cluster.network: 'NCCL-DEBUG' is no name of an environment variable"),
        (
            SITE,
            {"sbatch": "[constraint=h100]"},
            "cluster.sbatch: 'constraint=h100' is no option; write one whole option each, e.g. --constraint=h100",
        ),
        (SITE, {"sbatch": "[--time=60]"}, "cluster.sbatch: --time=60 is set by time; leave it out"),
        (SITE, {"srun": "['-n 4']"}, "cluster.srun: -n 4 is set by cluster.ranks_per_node; leave it out"),
        (
            SITE,
            {"rendezvous_interface": "'a name with spaces'"},
            "cluster.rendezvous_interface='a name with spaces' is no network interface; `ip -brief address` on a node shows them",
        ),
        (
            SITE,
            {"supervisor_python": "/nowhere/python3"},
            "cluster.supervisor_python=/nowhere/python3 does not exist here; give a Python 3.11 or newer that compute nodes have too",
        ),
        (
            SITE,
            {"supervisor_python": "/bin/ls"},
            "cluster.supervisor_python=/bin/ls is no Python 3.11 or newer; give one that compute nodes have too",
        ),
        (
            SITE,
            {"sbatch": '["--comment=a\\nrm -rf x"]'},
            "cluster.sbatch='--comment=a\\nrm -rf x' has a line break or another character that cannot be printed; leave it out",
        ),
        (
            SITE,
            {"network": '{NCCL_DEBUG: "a\\0"}'},
            "cluster.network.NCCL_DEBUG='a\\x00' has a line break or another character that cannot be printed; leave it out",
        ),
        (SITE, {"network": "{PYTHONPATH: /x}"}, "cluster.network: PYTHONPATH is set by the job itself; leave it out"),
        (SITE, {"memory_gib_per_node": ".inf"}, "cluster.memory_gib_per_node=inf must be positive and finite"),
        (
            SITE,
            {"memory_gib_per_node": "0.0001"},
            "cluster.memory_gib_per_node=0.0001 is less than a MiB; give more, or null for all of the node",
        ),
        (GPU_SITE, {"gpu_memory_gib": ".nan"}, "cluster.gpu_memory_gib=nan must be positive and finite"),
        (
            SITE,
            {"environment": "{kind: none, python: python, setup: ['if true; then']}"},
            ("cluster.environment.setup is not bash: line 2: syntax error: unexpected end of file; mend it, one or more whole "
            "lines each"),
        ),
    ],
)  # fmt: skip
def test_each_wrong_value_is_told(base: dict[str, str], values: dict[str, str | None], problem: str, tmp_path: Path) -> None:
    assert problems_of(write_site(tmp_path, base, **values)) == [problem]


@pytest.mark.parametrize(
    ("request_of", "site", "problem"),
    [
        ({"nodes": 0}, {}, "nodes=0 must be positive"),
        ({"max_failures": 0}, {}, "max_failures=0 must be positive"),
        ({"max_parallel": 0}, {}, "max_parallel=0 must be positive"),
        ({"spare_nodes": -1}, {}, "spare_nodes=-1 must not be negative"),
        ({"dependency": "afterok:1\nx"}, {}, "dependency='afterok:1\\nx' is no dependency of sbatch; write it as afterok:123"),
        ({"min_nodes": 5}, {}, "min_nodes=5 is not between 1 and nodes=4"),
        ({"spare_nodes": 1}, {"max_nodes": 4}, "nodes=4 + spare_nodes=1 is more than cluster.max_nodes=4; ask for fewer"),
        (
            {"time": "soon"},
            {},
            "time=soon is no time limit; write minutes, hours:minutes:seconds or days-hours:minutes:seconds, e.g. 1-12:00:00",
        ),
        (
            {"time": "0:30"},
            {},
            ("time=0:30 is less than a minute, Slurm's unit; write minutes, hours:minutes:seconds or days-hours:minutes:seconds, "
            "e.g. 1-12:00:00"),
        ),
        (
            {"time": "3"},
            {},
            "time=3 is not longer than cluster.signal_before_s=180: ranks would be asked to leave as they start; ask for more time",
        ),
        (
            {"time": "3:00:00"},
            {"max_time": "60"},
            "time=3:00:00 is longer than cluster.max_time=60; ask for less: the job requeues itself until the run is complete",
        ),
    ],
)  # fmt: skip
def test_a_request_beyond_the_sites_limits_is_told(request_of: dict[str, int], site: dict[str, object], problem: str) -> None:
    cluster = ClusterConfig(gpus_per_node=0, ranks_per_node=1, cpus_per_rank=1)
    for name, value in site.items():
        setattr(cluster, name, value)
    launch = LaunchConfig(**{"cluster": "x", "nodes": 4, "time": "60", **request_of})
    assert launch_problems(launch, cluster) == [problem]


SINFO = (
    "gpu*|up|2-00:00:00|16|gpu:h100:8(S:0-1)|1024000|96|1-infinite\\n"
    "cpu|up|infinite|100|(null)|256000|64|1-infinite\\nold|down|60|8|gpu:4|256000|32|1-4\\n"
)


@pytest.mark.parametrize(
    ("site", "nodes", "problem"),
    [
        ({"partition": "gqu"}, 4, "cluster.partition=gqu is not a partition here (did you mean gpu?); there are gpu, cpu, old"),
        ({}, 17, "partition gpu gives a job at most 16 nodes, nodes + spare_nodes = 17; ask for fewer"),
        ({"partition": "cpu", "cpus_per_rank": 8}, 4, ("cluster.gpus_per_node=8, but Slurm knows of no GPUs in partition cpu; give another as "
         "cluster.partition, or cluster.gpu_request=null where they come with the node")),
        ({"cpus_per_rank": 16}, 4, ("cluster.cpus_per_rank=16 for 8 ranks is 128 CPUs, but the nodes of partition gpu have 96; "
         "at most 12 each")),
        ({"memory_gib_per_node": 2000.0}, 4, ("cluster.memory_gib_per_node=2000 is more than the nodes of partition gpu have, 1000.0; "
         "ask for less, or null for all of it")),
        ({"gpus_per_node": 16, "cpus_per_rank": 6}, 4, "cluster.gpus_per_node=16, but the nodes of partition gpu have 8; give 8 or fewer"),
        ({"gpu_request": "--gres=gpu:a100:{gpus}"}, 4, ("cluster.gpu_request=--gres=gpu:a100:{gpus} asks for a100, but the GPUs of "
         "partition gpu are h100 (did you mean h100?)")),
        ({"partition": "gpu", "time": "3-0"}, 4, "time=3-0 is longer than partition gpu allows, 2880 minutes; ask for less"),
        ({"partition": "old", "gpus_per_node": 4, "cpus_per_rank": 8}, 2, ("partition old takes no jobs now (`sinfo -p old`); give "
         "another as cluster.partition")),
    ],
)  # fmt: skip
def test_what_slurm_would_refuse_or_never_start_is_told(
    site: dict[str, object], nodes: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sinfo", f"printf '{SINFO}'")
    launch = LaunchConfig(cluster="x", nodes=nodes, time=str(site.pop("time", "60")))
    cluster = ClusterConfig(gpus_per_node=8, cpus_per_rank=12)
    assert site_problems(cluster, LaunchConfig(cluster="x", nodes=4, time="60")) == []
    for name, value in site.items():
        setattr(cluster, name, value)
    assert site_problems(cluster, launch) == [problem]


def test_a_site_without_a_default_partition_must_be_told_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tool(only_tools(tmp_path, monkeypatch), "sinfo", f"printf '{SINFO.replace('gpu*', 'gpu')}'")
    cluster = ClusterConfig(gpus_per_node=8, cpus_per_rank=12)
    launch = LaunchConfig(cluster="x", nodes=4, time="60")
    assert site_problems(cluster, launch) == ["cluster.partition=null, but this site has no default; give one of gpu, cpu, old"]
    put_tool(tmp_path / "tools", "sinfo", "exit 1")
    with pytest.raises(SlurmError, match=r"sinfo .* failed \(1\): nothing was printed"):
        site_problems(cluster, launch)
