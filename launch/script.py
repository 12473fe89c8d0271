"""What Slurm is given: job.sbatch, the options of srun, and the command of one rank."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster import is_file_path, ranks_per_node
from launch.config import ClusterConfig, Environment, LaunchConfig

PASSED = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "OLMO_ATTEMPT_DIR", "OLMO_RENDEZVOUS_INTERFACE")
"""Variables of ours that an image's own values must not replace."""
MODULES = "/etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /usr/share/lmod/lmod/init/bash"
"""Where sites define the shell function `module`, if a batch script does not have it."""


SUPERVISE = """\
trap 'told_to_end=1' TERM
killed=0 told_to_end=
while {}; status=$?; (( status > 128 && ++killed <= 20 )) && [[ -z $told_to_end ]]; do
  node=${{SLURMD_NODENAME:-$HOSTNAME}}
  echo "$(date '+%F %T') $node: the supervisor was ended by signal $((status - 128)), and is started again"
  sleep 1
done
exit $status
"""


@dataclass(frozen=True)
class Place:
    """Where a job is: paths are absolute."""

    name: str
    """Of the job in the queue."""
    folder: Path
    cwd: Path
    """Where it was launched and runs, so that relative paths of the config mean the same."""
    inside: tuple[Path, ...] = ()
    """Further folders that ranks write to; containers see them."""


def batch_script(cluster: ClusterConfig, launch: LaunchConfig, place: Place) -> str:
    """The text of job.sbatch: resources, environment, and then the supervisor, again if it is killed: its ranks outlive it."""
    python = cluster.supervisor_python or sys.executable
    body = SUPERVISE.format(f"{shlex.quote(python)} -m launch.supervise {shlex.quote(str(place.folder))}")
    lines = [*_resources(cluster, launch), "--signal=USR1@" + str(cluster.signal_before_s), "--no-kill"]
    lines += ["--requeue" if cluster.requeue else "--no-requeue"]
    return script(lines, cluster, place, f"{place.folder}/job-%j.log", body)


def script(options: Sequence[str], cluster: ClusterConfig, place: Place, log: str, body: str) -> str:
    """A batch script: options of sbatch, then modules, setup, environment and `body`."""
    head = [
        f"--job-name={place.name}",
        f"--chdir={place.cwd}",
        f"--output={log}",
        "--open-mode=append",
        *options,
        *cluster.sbatch,
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# Written by `olmo launch`. To submit it again: sbatch {shlex.quote(str(place.folder / 'job.sbatch'))}",
            *(f"#SBATCH {_quoted(option)}" for option in head),
            "",
            *_modules(cluster),
            *_setup(cluster),
            *_exports(cluster, place.folder),
            "",
            body,
        ]
    )


def _quoted(option: str) -> str:
    """As sbatch reads a line of options: a value with spaces in quotes."""
    name, equals, value = option.partition("=")
    return f'{name}{equals}"{value}"' if " " in value and '"' not in value else option


def _resources(cluster: ClusterConfig, launch: LaunchConfig) -> list[str]:
    """Options of sbatch that say what the job needs."""
    options = [*_nodes(cluster, launch), f"--time={launch.time}", *queue_options(cluster)]
    if cluster.gpus_per_node and cluster.gpu_request is not None:
        options.append(cluster.gpu_request.replace("{gpus}", str(cluster.gpus_per_node)))
    memory = cluster.memory_gib_per_node
    options.append("--mem=0" if memory is None else f"--mem={int(memory * 1024)}M")
    if cluster.exclusive:
        options.append("--exclusive")
    if launch.dependency is not None:
        options.append(f"--dependency={launch.dependency}")
    return options


def _nodes(cluster: ClusterConfig, launch: LaunchConfig) -> list[str]:
    """A spare makes a range: while a node of the site is lost for long, a job that insists on its spare would wait as long."""
    ranks, cpus = ranks_per_node(cluster), cluster.cpus_per_rank
    if not launch.spare_nodes:
        return [f"--nodes={launch.nodes}", f"--ntasks-per-node={ranks}", f"--cpus-per-task={cpus}"]
    # With a number of tasks, Slurm 22.05 gives the fewest nodes; so each node is one task that has the CPUs of its ranks.
    return [f"--nodes={launch.nodes}-{launch.nodes + launch.spare_nodes}", f"--cpus-per-task={ranks * cpus}"]


def queue_options(cluster: ClusterConfig) -> list[str]:
    """Options of sbatch that say where the job waits and who pays."""
    values = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _modules(cluster: ClusterConfig) -> list[str]:
    if not cluster.environment.modules:
        return []
    find = f"type module >/dev/null 2>&1 || for file in {MODULES}; do [[ -r $file ]] && . $file && break; done"
    fails = "{{ echo 'job: module load {0} failed; `module avail {0}` shows what there is' >&2; exit 2; }}"
    names = [(shlex.quote(name), name) for name in cluster.environment.modules]
    return [find, *(f"module load {quoted} || {fails.format(name)}" for quoted, name in names)]


def _setup(cluster: ClusterConfig) -> list[str]:
    """A line that fails ends the job: what it should have set up would be missing in every rank."""
    if not cluster.environment.setup:
        return []
    trap = "trap 'echo \"job: cluster.environment.setup failed with status $?: $BASH_COMMAND\" >&2; exit 2' ERR"
    return [trap, *cluster.environment.setup, "trap - ERR"]


def _exports(cluster: ClusterConfig, folder: Path) -> list[str]:
    """The code of the job comes before any other, and the current folder is no place to import from."""
    lines = []
    if cluster.environment.kind == Environment.VENV and cluster.environment.path is not None:
        activate = shlex.quote(str(absolute(cluster.environment.path) / "bin" / "activate"))
        lines.append(f". {activate} || {{ echo 'job: cannot activate cluster.environment.path on this node' >&2; exit 2; }}")
    lines += [f"export PYTHONPATH={shlex.quote(str(folder / 'code'))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    lines += ["export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 SLURM_EXPORT_ENV=ALL"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.network.items()]
    if cluster.rendezvous_interface is not None:
        lines.append(f"export OLMO_RENDEZVOUS_INTERFACE={shlex.quote(cluster.rendezvous_interface)}")
    if cluster.environment.kind == Environment.APPTAINER:
        # an image's own values win over plain variables, and --env takes a comma in a value for the next variable
        names = ["PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", *cluster.network]
        lines += [f'export APPTAINERENV_{name}="${name}" SINGULARITYENV_{name}="${name}"' for name in names]
    return lines


# ---- ranks -------------------------------------------------------------------------------------------------------------------


def srun_options(cluster: ClusterConfig, place: Place) -> list[str]:
    """Options of srun for the ranks, beyond which nodes and where they write."""
    # Without --cpus-per-task a step has one CPU per rank (Slurm 22.05 and newer); PMI is nothing to torch.
    options = [f"--cpus-per-task={cluster.cpus_per_rank}", "--mpi=none", "--distribution=block", "--export=ALL"]
    environment = cluster.environment
    if environment.kind == Environment.PYXIS:
        assert environment.path is not None  # cluster_problems
        image = str(absolute(environment.path)) if is_file_path(environment.path) else environment.path
        mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in _mounts(cluster, place)]
        names = ",".join([*PASSED, *cluster.network])
        options += [f"--container-image={image}", f"--container-mounts={','.join(mounts)}", f"--container-workdir={place.cwd}"]
        options += [f"--container-env={names}"]
    return [*options, *cluster.srun]


def in_environment(cluster: ClusterConfig, place: Place, words: Sequence[str]) -> list[str]:
    """A Python command line (without `python`) as one process of a node runs it; no shell stands between srun and it."""
    environment = cluster.environment
    if environment.kind == Environment.VENV:
        assert environment.path is not None  # cluster_problems
        return [str(absolute(environment.path) / "bin" / environment.python), *words]
    if environment.kind != Environment.APPTAINER:
        return [environment.python, *words]
    assert environment.path is not None
    image = str(absolute(environment.path)) if is_file_path(environment.path) else environment.path
    tool = "singularity" if shutil.which("singularity") and not shutil.which("apptainer") else "apptainer"
    command = [tool, "exec", *(["--nv"] if cluster.gpus_per_node else []), "--pwd", str(place.cwd)]
    for mount in _mounts(cluster, place):
        command += ["--bind", mount]
    return [*command, image, environment.python, *words]


def _mounts(cluster: ClusterConfig, place: Place) -> list[str]:
    """What a container sees beside itself; a folder within another needs no mount of its own."""
    wanted = [str(path) for path in (place.cwd, place.folder, *place.inside)]
    folders = [path for path in dict.fromkeys(wanted) if not any(path.startswith(f"{other}/") for other in wanted)]
    return list(dict.fromkeys([*folders, *cluster.environment.mounts]))


def absolute(path: str) -> Path:
    """A path of the site's file as compute nodes find it."""
    return Path(os.path.abspath(Path(path).expanduser()))
