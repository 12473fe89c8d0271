"""The words of `olmo launch` to a checked request: the site, the job, the run. Everything that is wrong is one message."""

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from launch.cluster import cluster_problems, has_slurm, launch_problems, ranks_per_node, read_cluster, site_problems
from launch.config import ClusterConfig, LaunchConfig
from launch.slurm import SlurmError
from olmo_train.changes import changed_config
from olmo_train.config.train import Device, TrainConfig
from olmo_train.conversion import convert
from olmo_train.data.checks import find_data_problems
from olmo_train.errors import ConfigError
from olmo_train.model.memory import GIB, RESERVE, largest_micro_batch, predict
from olmo_train.model.shapes import vocab_rows
from olmo_train.problems import find_problems
from olmo_train.schema import CONFIG_DIR, load_config

LAUNCH_WORDS = {field.name: field for field in fields(LaunchConfig)}
TRAIN_WORDS = {field.name for field in fields(TrainConfig)} | {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}


@dataclass(frozen=True)
class Words:
    """The words of a command line, by whom they are for."""

    launch: dict[str, str]
    cluster: list[str]
    rest: list[str]
    problems: list[str]


@dataclass(frozen=True)
class Site:
    """What a job is asked of. Either is None where it could not be read, and `problems` says why."""

    launch: LaunchConfig | None
    cluster: ClusterConfig | None
    problems: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Request:
    """A checked launch of one run."""

    launch: LaunchConfig
    cluster: ClusterConfig
    run: TrainConfig
    node_counts: list[int]
    notes: list[str]

    @property
    def n_ranks(self) -> int:
        """Of the wanted number of nodes."""
        return self.launch.nodes * ranks_per_node(self.cluster)

    @property
    def run_dir(self) -> Path:
        """Absolute."""
        return Path(os.path.abspath(self.run.run_dir))


def split_words(words: list[str]) -> Words:
    """Words of `LaunchConfig` and `cluster.NAME=value` are the launch's, all others the run's."""
    launch: dict[str, str] = {}
    cluster: list[str] = []
    rest: list[str] = []
    problems: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        near = difflib.get_close_matches(name, [*LAUNCH_WORDS, *TRAIN_WORDS], n=1)
        if equals and name in LAUNCH_WORDS:
            launch[name] = value
        elif name.startswith("cluster."):
            cluster.append(word)
        elif equals and "." not in name and name not in TRAIN_WORDS and near and near[0] in LAUNCH_WORDS:
            problems.append(f"{name} is not a word of a launch (did you mean {near[0]}?); words: {', '.join(LAUNCH_WORDS)}")
        else:
            rest.append(word)
    return Words(launch, cluster, rest, problems)


def read_site(words: Words, used_as: Callable[[ClusterConfig], ClusterConfig] = lambda cluster: cluster) -> Site:
    """Read and check the launch's own words, the site's file, and both together; ask Slurm where it is installed.

    `used_as`: what of the site this job uses.
    """
    problems, notes = list(words.problems), list[str]()
    launch = _read_launch(words.launch, problems)
    cluster: ClusterConfig | None = None
    if words.launch.get("cluster"):
        try:
            cluster = used_as(read_cluster(words.launch["cluster"], words.cluster))
        except ConfigError as error:
            problems += error.problems
    if cluster is not None:
        own = cluster_problems(cluster)
        problems += own
        if launch is not None:
            problems += launch_problems(launch, cluster)
            if not own:
                problems += _ask_slurm(cluster, launch, notes)
    return Site(launch, cluster, problems, notes)


def _read_launch(words: dict[str, str], problems: list[str]) -> LaunchConfig | None:
    """Texts to the types of the fields; `null` is None."""
    values: dict[str, object] = {}
    for name, text in words.items():
        is_whole = "int" in str(LAUNCH_WORDS[name].type) and text.lstrip("-").isdigit()
        values[name] = None if text == "null" else int(text) if is_whole else text
    found: list[tuple[str, str]] = []
    launch = convert(values, LaunchConfig, "", found)
    problems += [problem for _, problem in found]
    return launch


def _ask_slurm(cluster: ClusterConfig, launch: LaunchConfig, notes: list[str]) -> list[str]:
    if not has_slurm():
        notes.append("Slurm's sinfo is not on this machine: partition, nodes, GPUs and limits are not checked")
        return []
    try:
        return site_problems(cluster, launch)
    except SlurmError as error:
        notes.append(f"partition, nodes, GPUs and limits are not checked: {error}")
        return []


def read_request(words: Words, site: Site) -> Request:
    """Compose the run of `words.rest` and check it for this site.

    Raises:
        ConfigError: all problems of the words, the site, the config, the data and the memory.
    """
    launch, cluster = site.launch, site.cluster
    counts: list[int] = []
    sure = launch is not None and cluster is not None and not cluster_problems(cluster) and launch.nodes >= 1

    def check(run: TrainConfig) -> list[str]:
        problems = find_data_problems(run.data, vocab_rows(run.model), run.eval.needs_heldout)
        if launch is None or cluster is None or not sure:
            unshared = replace(run, parallel=replace(run.parallel, shard_size=None))  # nobody knows how many ranks there are
            return find_problems(unshared, n_ranks=1) + problems
        problems = [*run_problems(run, launch.nodes, cluster), *_folder_problems(run), *problems]
        if not problems:
            counts.extend(node_counts(run, launch, cluster))
            problems += _counts_problems(run, launch, cluster, counts)
        return problems

    problems = list(site.problems)
    run: TrainConfig | None = None
    try:
        run = load_config("train", TrainConfig, words.rest, check)
    except ConfigError as error:
        problems += error.problems
    if problems or run is None or launch is None or cluster is None:
        raise ConfigError(problems)
    return Request(launch, cluster, run, counts, [*site.notes, *_notes(run)])


def run_problems(run: TrainConfig, nodes: int, cluster: ClusterConfig) -> list[str]:
    """What speaks against training this run on so many nodes of the site; reads no data."""
    n_ranks = nodes * ranks_per_node(cluster)
    problems = find_problems(run, n_ranks)
    return [*problems, *_device_problems(run, cluster), *([] if problems else _memory_problems(run, n_ranks, cluster))]


def node_counts(run: TrainConfig, launch: LaunchConfig, cluster: ClusterConfig) -> list[int]:
    """Numbers of nodes on which the run is the same run: the wanted one, then smaller ones down to `min_nodes`."""
    fewer = range(launch.nodes - 1, (launch.min_nodes or launch.nodes) - 1, -1)
    return [launch.nodes, *(nodes for nodes in fewer if not run_problems(run, nodes, cluster))]


def _counts_problems(run: TrainConfig, launch: LaunchConfig, cluster: ClusterConfig, counts: list[int]) -> Iterator[str]:
    if launch.min_nodes is None or launch.min_nodes == launch.nodes or len(counts) > 1:
        return
    lower = [nodes for nodes in range(launch.min_nodes - 1, 0, -1) if not run_problems(run, nodes, cluster)]
    other = f"min_nodes={lower[0]} is the next that works" if lower else "no smaller number works"
    yield (
        f"min_nodes={launch.min_nodes}: on none of {launch.min_nodes} to {launch.nodes - 1} nodes of {ranks_per_node(cluster)} "
        f"ranks can this run go on: data.global_batch_size={run.data.global_batch_size} must divide, and memory suffice; "
        f"{other}, or leave min_nodes out"
    )


def _device_problems(run: TrainConfig, cluster: ClusterConfig) -> Iterator[str]:
    if run.parallel.device == Device.CUDA and cluster.gpus_per_node == 0:
        yield "parallel.device=cuda, but cluster.gpus_per_node=0; use parallel.device=auto"
    if run.parallel.device == Device.CPU and cluster.gpus_per_node > 0:
        yield f"parallel.device=cpu would leave {cluster.gpus_per_node} GPUs of each node idle; use parallel.device=auto"


def _memory_problems(run: TrainConfig, n_ranks: int, cluster: ClusterConfig) -> Iterator[str]:
    if cluster.gpu_memory_gib is None or cluster.gpus_per_node == 0:
        return
    capacity = int(cluster.gpu_memory_gib * GIB)
    needed = predict(run, n_ranks).peak + RESERVE
    if needed > capacity:
        fits = largest_micro_batch(run, n_ranks, capacity - RESERVE)
        remedy = (
            f"data.micro_batch_size={fits} fits" if fits else "not one sequence fits: use more nodes or parallel.recompute=full"
        )
        yield (
            f"data.micro_batch_size={run.data.micro_batch_size} needs {needed / GIB:.1f} GiB of cluster.gpu_memory_gib="
            f"{cluster.gpu_memory_gib:g} on {n_ranks} ranks; {remedy} (`olmo size --ranks {n_ranks} ...` shows what of)"
        )


def _folder_problems(run: TrainConfig) -> Iterator[str]:
    """Whether the run folder can be made, or holds this run."""
    path = Path(os.path.abspath(run.run_dir))
    for name, value, wrong in (
        ("run_name", run.run_name, "\"'\\"),
        ("run_dir", str(path), "\"'\\%"),
        ("folder", os.getcwd(), "\"'\\%"),
    ):
        if bad := next((character for character in value if character in wrong or not character.isprintable()), None):
            yield f"{name}={value!r} has {bad!r} in it, which sbatch takes for something else; give a name without it"
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        yield f"run_dir={run.run_dir}: {there} is a file; give another run_dir"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"run_dir={run.run_dir}: {there} cannot be written; give another run_dir"
    elif (path / "config.yaml").exists():  # ranks would refuse it too, after the job has waited for its nodes
        try:
            yield from changed_config(run, path / "config.yaml")
        except ConfigError as error:
            yield from error.problems


def _notes(run: TrainConfig) -> list[str]:
    path = os.path.abspath(run.run_dir)
    if path.startswith(("/tmp/", "/dev/shm/", "/var/tmp/")):
        return [f"run_dir={run.run_dir} is below /{path.split('/')[1]}, which nodes rarely share; all of them must see it"]
    return []
