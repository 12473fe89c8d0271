"""A site as its YAML file tells it, checked: by itself, with what is asked of it, and with what Slurm says of itself."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from launch.config import ClusterConfig, Environment, EnvironmentConfig, LaunchConfig
from launch.slurm import Partition, partitions, seconds
from olmo_train.conversion import nearest
from olmo_train.errors import ConfigError
from olmo_train.schema import CONFIG_DIR, load_saved

OURS = {
    "--job-name": "run_name", "-J": "run_name", "--nodes": "nodes", "-N": "nodes", "--time": "time", "-t": "time",
    "--partition": "cluster.partition", "-p": "cluster.partition", "--account": "cluster.account", "-A": "cluster.account",
    "--qos": "cluster.qos", "-q": "cluster.qos", "--ntasks": "cluster.ranks_per_node", "-n": "cluster.ranks_per_node",
    "--ntasks-per-node": "cluster.ranks_per_node", "--cpus-per-task": "cluster.cpus_per_rank", "-c": "cluster.cpus_per_rank",
    "--mem": "cluster.memory_gib_per_node", "--exclusive": "cluster.exclusive", "--signal": "cluster.signal_before_s",
    "--requeue": "cluster.requeue", "--no-requeue": "cluster.requeue", "--dependency": "dependency", "-d": "dependency",
    "--array": "max_parallel", "-a": "max_parallel", "--container-image": "cluster.environment", "--container-mounts":
    "cluster.environment.mounts", "--output": "nothing: logs are in the job folder", "-o": "nothing: logs are in the job folder",
    "--open-mode": "nothing: logs are appended to", "--chdir": "nothing: the job runs where it was launched", "-D":
    "nothing: the job runs where it was launched", "--kill-on-bad-exit": "nothing: it is always set", "--wait":
    "nothing: it is always set",
}  # fmt: skip
"""Options that the job script sets itself, and what sets them."""
OUR_VARIABLES = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "OLMO_ATTEMPT_DIR", "SLURM_EXPORT_ENV", "SLURM_CONF", "PATH")
"""Without their values the job would run other code, or none; `environment.setup` may extend PATH."""
SITE_TIME = "minutes, hours:minutes:seconds or days-hours:minutes:seconds, e.g. 1-12:00:00"


@dataclass
class _Site:
    """So that every message and every word of the command line calls the fields cluster.NAME."""

    cluster: ClusterConfig = MISSING


def read_cluster(name_or_path: str, overrides: list[str]) -> ClusterConfig:
    """Read configs/cluster/NAME.yaml, or a file by its path, with words `cluster.NAME=value` applied.

    Raises:
        ConfigError: there is no such file, or it is no YAML, has unknown names, wrong types or missing values: all at once.
    """
    path = _find(name_or_path)
    return load_saved(path, _Site, overrides, lambda _: list(_times_read_as_numbers(path)), section="cluster").cluster


def _find(name_or_path: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"cluster={name_or_path} is not a file; give a YAML file, or a name of configs/cluster/")
        return path
    path = CONFIG_DIR / "cluster" / f"{name_or_path}.yaml"
    if not path.is_file():
        options = sorted(option.stem for option in path.parent.glob("*.yaml"))
        raise ConfigError(
            f"cluster={name_or_path}: configs/cluster/ has no {name_or_path!r}{nearest(name_or_path, options)}; "
            f"options: {', '.join(options)}; or give the path of a YAML file"
        )
    return path


def _times_read_as_numbers(path: Path) -> Iterator[str]:
    """YAML 1.1 takes 24:00:00 without quotes for a number to the base 60, and Slurm would take that for minutes."""
    whole = yaml.compose(path.read_text())
    for key, value in whole.value if isinstance(whole, yaml.MappingNode) else []:
        if isinstance(value, yaml.ScalarNode) and value.tag.endswith(":int") and ":" in value.value:
            where = f"{path}, line {value.start_mark.line + 1}"
            yield f'{where}: YAML reads {key.value}: {value.value} as one number; write "{value.value}"'


# ---- the site by itself, and with what is asked of it ------------------------------------------------------------------------


def ranks_per_node(cluster: ClusterConfig) -> int:
    """Processes on one node: one per GPU, or as many as are asked for."""
    return cluster.ranks_per_node or cluster.gpus_per_node


def cluster_problems(cluster: ClusterConfig) -> list[str]:
    """What is wrong with a site before anything is asked of it, each as: dotted name, value, rule, remedy."""
    found = [*_texts(asdict(cluster), "cluster"), *_ranges(cluster), *_ranks(cluster), *_environment(cluster.environment)]
    return [*found, *_options(cluster)]


def _texts(values: Any, name: str) -> Iterator[str]:
    """A line break would end a line of the job script in the middle, and what follows it would be run as bash."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(value, f"{name}.{key}")
    elif isinstance(values, list) and not name.endswith(".setup"):
        for value in values:
            yield from _texts(value, name)
    elif isinstance(values, str) and not values.isprintable():
        yield f"{name}={values!r} has a line break or another character that cannot be printed; leave it out"


def _ranges(cluster: ClusterConfig) -> Iterator[str]:
    for name in ("ranks_per_node", "gpu_memory_gib", "cpus_per_rank", "memory_gib_per_node", "max_nodes", "signal_before_s"):
        value = getattr(cluster, name)
        if value is not None and not 0 < value < math.inf:
            yield f"cluster.{name}={value} must be positive{'' if value <= 0 else ' and finite'}"
    memory = cluster.memory_gib_per_node
    if memory is not None and 0 < memory * 1024 < 1:
        yield f"cluster.memory_gib_per_node={memory} is less than a MiB; give more, or null for all of the node"
    if cluster.gpus_per_node < 0:
        yield f"cluster.gpus_per_node={cluster.gpus_per_node} must not be negative; 0 is a site without GPUs"
    if cluster.signal_before_s > 65535:
        yield f"cluster.signal_before_s={cluster.signal_before_s} is more than Slurm's 65535; 180 suits most runs"
    if cluster.max_time is not None and seconds(cluster.max_time) is None:
        yield f"cluster.max_time={cluster.max_time} is no time limit; write {SITE_TIME}"
    for name in ("partition", "account", "qos"):
        value = getattr(cluster, name)
        if value is not None and not re.fullmatch(r"[^\s,=]+(,[^\s,=]+)*", value):
            yield f"cluster.{name}={value!r} is no name that Slurm could have; write one, or null for the site's default"


def _ranks(cluster: ClusterConfig) -> Iterator[str]:
    gpus, ranks = cluster.gpus_per_node, cluster.ranks_per_node
    if gpus == 0 and ranks is None:
        yield "cluster.ranks_per_node=null with cluster.gpus_per_node=0; give the number of ranks on a node"
    if gpus > 0 and ranks is not None and ranks != gpus:
        yield f"cluster.ranks_per_node={ranks} with cluster.gpus_per_node={gpus}: a rank has one GPU; leave ranks_per_node out"
    if gpus == 0 and cluster.gpu_memory_gib is not None:
        yield f"cluster.gpu_memory_gib={cluster.gpu_memory_gib:g} with cluster.gpus_per_node=0; leave it out"
    request = cluster.gpu_request
    if gpus > 0 and request is not None and ("{gpus}" not in request or not request.startswith("--")):
        yield (
            f"cluster.gpu_request={request!r} must be an option of sbatch with {{gpus}} in it, e.g. --gres=gpu:h100:{{gpus}}; "
            "null where nodes come whole"
        )
    if gpus > 0 and request is None and not cluster.exclusive:
        yield "cluster.gpu_request=null with cluster.exclusive=false: nothing asks for GPUs; give one of the two"


def _environment(environment: EnvironmentConfig) -> Iterator[str]:
    path, here = environment.path, "cluster.environment"
    match environment.kind:
        case Environment.NONE:
            if path is not None:
                yield f"{here}.path={path} with {here}.kind=none; leave it out, or say what it is: kind=venv, pyxis or apptainer"
            if not (environment.modules or environment.setup) and shutil.which(environment.python) is None:
                yield (
                    f"{here}.python={environment.python} is not found here, and no modules or setup lead to it; give the path "
                    "of a Python that compute nodes have too"
                )
        case Environment.VENV:
            yield from _venv(path, environment.python)
        case Environment.PYXIS | Environment.APPTAINER:
            if path is None:
                yield f"{here}.path=null with {here}.kind={environment.kind}; give the image"
            elif is_file_path(path) and not Path(path).expanduser().exists():
                yield f"{here}.path={path} does not exist; give the image's file{_or_name(environment.kind)}"
    if not environment.python.strip():
        yield f"{here}.python is empty; write python"
    for mount in environment.mounts:
        outside = mount.split(":", 1)[0]
        if environment.kind not in (Environment.PYXIS, Environment.APPTAINER):
            yield f"{here}.mounts has {mount}, but {here}.kind={environment.kind} is no container; leave it out"
        elif not outside.startswith("/"):
            yield f"{here}.mounts: {mount} is no absolute path; write /outside or /outside:/inside"
        elif not Path(outside).exists():
            yield f"{here}.mounts: {outside} does not exist here; mount folders that login and compute nodes share"
    for module in environment.modules:
        if not re.fullmatch(r"[^\s;|&<>$`'\"()\\]+", module):
            yield f"{here}.modules: {module!r} is no module's name; one name each, lines of bash go into {here}.setup"
    yield from _setup_problems(environment.setup)


def _setup_problems(setup: list[str]) -> Iterator[str]:
    """What bash does not understand ends the job after it has waited for its nodes."""
    bash = shutil.which("bash")
    if not setup or bash is None:
        return
    done = subprocess.run([bash, "-n"], input="\n".join(setup) + "\n", capture_output=True, text=True, timeout=30)
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix(f"{bash}: ")
        yield f"cluster.environment.setup is not bash: {said}; mend it, one or more whole lines each"


def _venv(path: str | None, python: str) -> Iterator[str]:
    here = "cluster.environment.path"
    if path is None:
        yield f"{here}=null with cluster.environment.kind=venv; give the virtual environment's folder"
        return
    folder = Path(path).expanduser()
    if not folder.is_dir():
        yield f"{here}={path} does not exist; make it with `python -m venv {path}`, or give the folder of one"
    elif not (folder / "bin" / "activate").is_file():
        yield f"{here}={path} is not a virtual environment: it has no bin/activate; give the folder that has"
    elif not os.access(folder / "bin" / python, os.X_OK):
        yield f"{here}={path} has no bin/{python}; its Python is gone or has another name (cluster.environment.python)"


def is_file_path(image: str) -> bool:
    """Whether an image is a file, not a name in a registry (docker://, nvcr.io#nvidia/pytorch:25.01, library://)."""
    return image.startswith(("/", "./", "../", "~")) or image.endswith((".sif", ".sqsh", ".img"))


def _or_name(kind: Environment) -> str:
    return ", or an image's name as enroot writes it: nvcr.io#nvidia/pytorch:25.01-py3" if kind == Environment.PYXIS else ""


def _options(cluster: ClusterConfig) -> Iterator[str]:
    for name in cluster.network:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"cluster.network: {name!r} is no name of an environment variable"
        elif name in OUR_VARIABLES:
            yield f"cluster.network: {name} is set by the job itself; leave it out"
    for field in ("sbatch", "srun"):
        for option in getattr(cluster, field):
            word = re.split(r"[=\s]", option, maxsplit=1)[0]
            if not option.startswith("-"):
                yield f"cluster.{field}: {option!r} is no option; write one whole option each, e.g. --constraint=h100"
            elif word in OURS:
                yield f"cluster.{field}: {option} is set by {OURS[word]}; leave it out"
    interface = cluster.rendezvous_interface
    if interface is not None and not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}", interface):
        yield f"cluster.rendezvous_interface={interface!r} is no network interface; `ip -brief address` on a node shows them"
    yield from _supervisor_python(cluster)


def _supervisor_python(cluster: ClusterConfig) -> Iterator[str]:
    python, led_to = cluster.supervisor_python, cluster.environment.modules or cluster.environment.setup
    if python is None or (led_to and "/" not in python):
        return
    found = shutil.which(python)
    if found is None:
        yield f"cluster.supervisor_python={python} does not exist here; give a Python 3.11 or newer that compute nodes have too"
        return
    try:
        is_new = subprocess.run(
            [found, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        is_new = None
    if is_new is None or is_new.returncode:
        yield f"cluster.supervisor_python={python} is no Python 3.11 or newer; give one that compute nodes have too"


def launch_problems(launch: LaunchConfig, cluster: ClusterConfig) -> list[str]:
    """What is wrong with the request, by itself and within the limits that the site's file states."""
    problems = [f"{name}={value} must be positive" for name in ("nodes", "max_failures") if (value := getattr(launch, name)) < 1]
    if launch.max_parallel is not None and launch.max_parallel < 1:
        problems.append(f"max_parallel={launch.max_parallel} must be positive")
    if launch.spare_nodes < 0:
        problems.append(f"spare_nodes={launch.spare_nodes} must not be negative")
    if launch.min_nodes is not None and not 1 <= launch.min_nodes <= launch.nodes:
        problems.append(f"min_nodes={launch.min_nodes} is not between 1 and nodes={launch.nodes}")
    total = launch.nodes + launch.spare_nodes
    if cluster.max_nodes is not None and total > cluster.max_nodes:
        spare = f" + spare_nodes={launch.spare_nodes}" if launch.spare_nodes else ""
        problems.append(f"nodes={launch.nodes}{spare} is more than cluster.max_nodes={cluster.max_nodes}; ask for fewer")
    if launch.dependency is not None and not re.fullmatch(r"[\w:,?+-]+", launch.dependency):
        problems.append(f"dependency={launch.dependency!r} is no dependency of sbatch; write it as afterok:123")
    return problems + list(_time_problems(launch, cluster))


def _time_problems(launch: LaunchConfig, cluster: ClusterConfig) -> Iterator[str]:
    asked, longest = seconds(launch.time), seconds(cluster.max_time or "")
    if asked is None:
        yield f"time={launch.time} is no time limit; write {SITE_TIME}"
        return
    if asked < 60:
        yield f"time={launch.time} is less than a minute, Slurm's unit; write {SITE_TIME}"
    elif asked <= cluster.signal_before_s:
        yield (
            f"time={launch.time} is not longer than cluster.signal_before_s={cluster.signal_before_s}: ranks would be asked to "
            "leave as they start; ask for more time"
        )
    if longest is not None and asked > longest:
        yield (
            f"time={launch.time} is longer than cluster.max_time={cluster.max_time}; ask for less: the job requeues itself until "
            "the run is complete"
        )


# ---- what Slurm says ---------------------------------------------------------------------------------------------------------


def has_slurm() -> bool:
    """Whether Slurm's tools are on this machine."""
    return shutil.which("sinfo") is not None


def site_problems(cluster: ClusterConfig, launch: LaunchConfig) -> list[str]:
    """What Slurm itself would refuse, or accept and never start (sbatch takes a job of more nodes than there are).

    Raises:
        SlurmError: sinfo does not answer.
    """
    known = {partition.name: partition for partition in partitions()}
    if cluster.partition is None:
        chosen = [partition for partition in known.values() if partition.is_default]
        if not chosen:
            return [f"cluster.partition=null, but this site has no default; give one of {', '.join(known)}"]
    else:
        names = cluster.partition.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            options = ", ".join(known)
            return [
                f"cluster.partition={unknown[0]} is not a partition here{nearest(unknown[0], list(known))}; there are {options}"
            ]
        chosen = [known[name] for name in names]
    return [problem for partition in chosen for problem in _partition_problems(partition, cluster, launch)]


def _partition_problems(partition: Partition, cluster: ClusterConfig, launch: LaunchConfig) -> Iterator[str]:
    here, total = f"partition {partition.name}", launch.nodes + launch.spare_nodes
    if not partition.is_up:
        yield f"{here} takes no jobs now (`sinfo -p {partition.name}`); give another as cluster.partition"
    if total > partition.max_nodes:
        yield f"{here} gives a job at most {partition.max_nodes} nodes, nodes + spare_nodes = {total}; ask for fewer"
    asked = seconds(launch.time)
    if asked is not None and partition.max_time_s is not None and asked > partition.max_time_s:
        yield f"time={launch.time} is longer than {here} allows, {partition.max_time_s // 60} minutes; ask for less"
    ranks = ranks_per_node(cluster)
    if ranks * cluster.cpus_per_rank > partition.cpus:
        most = partition.cpus // ranks
        remedy = f"at most {most} each" if most else "give another as cluster.partition"
        yield (
            f"cluster.cpus_per_rank={cluster.cpus_per_rank} for {ranks} ranks is {ranks * cluster.cpus_per_rank} CPUs, but the "
            f"nodes of {here} have {partition.cpus}; {remedy}"
        )
    if cluster.memory_gib_per_node is not None and cluster.memory_gib_per_node * 1024 > partition.memory_mib:
        yield (
            f"cluster.memory_gib_per_node={cluster.memory_gib_per_node:g} is more than the nodes of {here} have, "
            f"{partition.memory_mib / 1024:.1f}; ask for less, or null for all of it"
        )
    if cluster.gpus_per_node > 0 and cluster.gpu_request is not None:
        yield from _gpu_problems(partition, cluster.gpus_per_node, cluster.gpu_request)


def _gpu_problems(partition: Partition, gpus: int, request: str) -> Iterator[str]:
    """`gres` as Slurm writes it: gpu:8 or gpu:h100:8."""
    found = [words.split(":") for words in partition.gres if words.startswith("gpu")]
    if not found:
        yield (
            f"cluster.gpus_per_node={gpus}, but Slurm knows of no GPUs in partition {partition.name}; give another as "
            "cluster.partition, or cluster.gpu_request=null where they come with the node"
        )
        return
    match = re.search(r"(?:gpu:|--gpus-per-node=)([A-Za-z][\w.-]*):\{gpus\}", request)
    kinds = sorted({words[1] for words in found if len(words) == 3})
    if match and kinds and match[1] not in kinds:
        yield (
            f"cluster.gpu_request={request} asks for {match[1]}, but the GPUs of partition {partition.name} are "
            f"{', '.join(kinds)}{nearest(match[1], kinds)}"
        )
        return
    most = max(int(words[-1]) for words in found if words[-1].isdigit() and (not match or len(words) < 3 or words[1] == match[1]))
    if gpus > most:
        yield f"cluster.gpus_per_node={gpus}, but the nodes of partition {partition.name} have {most}; give {most} or fewer"
