"""What a launch is told: the site (`ClusterConfig`, configs/cluster/) and the job (`LaunchConfig`)."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING


class Environment(StrEnum):
    """What Python and its packages come from on a compute node."""

    VENV = "venv"
    """A virtual environment on a shared file system."""
    PYXIS = "pyxis"
    """A container image, started by srun's plugin pyxis (enroot)."""
    APPTAINER = "apptainer"
    """A container image, started by apptainer (or singularity)."""
    NONE = "none"
    """Whatever `python` is found after `modules` and `setup`."""


@dataclass
class EnvironmentConfig:
    """Where the ranks' Python is."""

    kind: Environment = MISSING
    path: str | None = None
    """Of the virtual environment (its folder) or the container image (a file, or an image name for pyxis)."""
    mounts: list[str] = field(default_factory=list)
    """Folders that the container sees, `outside` or `outside:inside`; the job folder, the run and the current folder always."""
    modules: list[str] = field(default_factory=list)
    """`module load` each, before anything else."""
    setup: list[str] = field(default_factory=list)
    """Lines of bash, after the modules, on the batch node; what they export reaches the ranks."""
    python: str = "python"
    """The interpreter inside the environment."""


@dataclass
class ClusterConfig:
    """One site. What each value means to Slurm: sbatch(1)."""

    partition: str | None = None
    """None: the site's default."""
    account: str | None = None
    qos: str | None = None
    gpus_per_node: int = MISSING
    """0: ranks compute on CPUs."""
    ranks_per_node: int | None = None
    """None: one per GPU. Without GPUs it must be given."""
    gpu_memory_gib: float | None = None
    """Of one GPU, to check that the run fits; None: not checked."""
    cpus_per_rank: int = MISSING
    memory_gib_per_node: float | None = None
    """None: all of the node (`--mem=0`)."""
    gpu_request: str | None = "--gpus-per-node={gpus}"
    """How this site asks for GPUs, e.g. `--gres=gpu:h100:{gpus}`; None: nodes come whole."""
    exclusive: bool = True
    """No other jobs on the nodes."""
    max_nodes: int | None = None
    """Of one job at this site."""
    max_time: str | None = None
    """Longest time limit of this site, as Slurm writes it: minutes, hours:minutes:seconds, days-hours:minutes:seconds."""
    signal_before_s: int = 180
    """How long before the time limit ranks are asked to save and leave. Slurm may be up to 60 s early and 30 s late."""
    requeue: bool = True
    """The site allows `scontrol requeue`; False: a job that must go on is submitted anew, after this one."""
    environment: EnvironmentConfig = MISSING
    network: dict[str, str] = field(default_factory=dict)
    """Environment variables for NCCL, gloo and the fabric, e.g. NCCL_IB_HCA."""
    rendezvous_interface: str | None = None
    """Network interface whose address rank 0 announces; None: the node's name."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, e.g. `--constraint=h100`."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun for the ranks."""
    supervisor_python: str | None = None
    """Python 3.11 or newer of the batch node itself (not of the container); None: the one that runs `olmo launch`."""


@dataclass
class LaunchConfig:
    """One launch; words of the command line that are not here belong to the training run."""

    cluster: str = MISSING
    """A name of configs/cluster/, or the path of a YAML file of the same fields."""
    nodes: int = MISSING
    """Nodes that train."""
    min_nodes: int | None = None
    """Go on with as few as this when nodes are lost, wherever the global batch divides; None: always `nodes`."""
    spare_nodes: int = 0
    """Nodes allocated beyond `nodes` if the site has them free, idle until one is lost: nothing waits for the queue then."""
    time: str = MISSING
    """Time limit of one allocation; the job requeues itself until the run is complete."""
    max_failures: int = 3
    """Restarts in a row without a newer step saved, after which the job gives up."""
    max_parallel: int | None = None
    """Of a job array: tasks at a time; None: as many as the site gives."""
    dependency: str | None = None
    """As sbatch's --dependency, e.g. afterok:123."""
