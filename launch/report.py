"""What `olmo launch` says: of a dry run everything, of a submission where things are."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import ranks_per_node
from launch.job_folder import next_folder
from launch.request import Request
from launch.script import batch_script
from launch.snapshot import describe_code
from launch.write_job import job_of, place_of
from olmo_train.config.train import TrainConfig
from olmo_train.conversion import by_dotted_name
from olmo_train.errors import ConfigError
from olmo_train.model.memory import GIB, RESERVE, predict
from olmo_train.model.size import count_params
from olmo_train.schema import load_config, to_plain


def dry_run_text(request: Request, words: Sequence[str], train_words: Sequence[str]) -> str:
    """All that a launch would write and submit."""
    place = place_of(request, next_folder(request.run_dir / "jobs"))
    job, code = job_of(request, place), describe_code()
    script = batch_script(request.cluster, request.launch, place)
    of = "outside git" if code.commit is None else f"commit {code.commit}{', with changes' if code.has_changes else ''}"
    nodes = ["--nodes=" + str(request.launch.nodes), f"--ntasks-per-node={job.ranks_per_node}"]
    sections = {
        "checked": "\n".join(facts(request)),
        "config, where it differs from configs/train.yaml": "\n".join(differences(request.run, train_words)),
        "code": f"{of}; sha256 {code.sha256[:16]}",
        f"{_near(place.folder)}/job.sbatch": script,
        "command of the ranks": shlex.join(["srun", *nodes, *job.srun, *job.command]),
        "to launch it": shlex.join(["olmo", "launch", *words]),
    }
    notes = "".join(f"\nnote: {note}" for note in request.notes)
    text = "\n\n".join(f"---- {title}\n{body.rstrip()}" for title, body in sections.items())
    return f"{text}{notes}\n\nNothing was written and nothing was submitted (--dry-run)."


def submitted_text(request: Request, folder: Path, job_id: str) -> str:
    """Where things are, and what to do next."""
    name = request.run.run_name
    return "\n".join(
        [
            f"submitted job {job_id}: {name}",
            *facts(request),
            f"job folder       {_near(folder)}",
            f"log              {_near(folder)}/job-{job_id}.log, the ranks' in attempts/ beside it",
            f"see              olmo jobs {shlex.quote(name)}",
            f"read             olmo logs {shlex.quote(name)} -f",
            f"stop             olmo cancel {shlex.quote(name)}",
            f"launch it again  bash {shlex.quote(f'{_near(folder)}/repeat.sh')}",
        ]
    )


def facts(request: Request) -> list[str]:
    """The numbers of a run on this site, a line each."""
    run, launch, cluster, data = request.run, request.launch, request.cluster, request.run.data
    ranks, params = request.n_ranks, count_params(run.model)
    kind = "one GPU each" if cluster.gpus_per_node else "CPU"
    spare = f", {launch.spare_nodes} more in reserve" if launch.spare_nodes else ""
    micro = data.global_batch_size // (data.micro_batch_size * ranks)
    layout = f"{ranks} ranks x {micro} micro-steps of {data.micro_batch_size:,}"
    lines = [
        f"ranks            {launch.nodes} nodes x {ranks_per_node(cluster)} = {ranks} ({kind}){spare}",
        f"nodes it can use {_counts(request)}",
        f"model            {params.total:,} parameters, {params.active:,} active per token",
        f"steps            {run.max_tokens // data.global_batch_size:,} of {data.global_batch_size:,} tokens: {layout}",
    ]
    if cluster.gpus_per_node:
        peak = (predict(run, ranks).peak + RESERVE) / GIB
        of = (
            f" of {cluster.gpu_memory_gib:g} GiB"
            if cluster.gpu_memory_gib
            else "; cluster.gpu_memory_gib is not given, so not checked"
        )
        lines.append(f"memory of a GPU  {peak:.1f} GiB predicted{of}")
    lines.append(f"run folder       {_near(request.run_dir)}")
    return lines


def _counts(request: Request) -> str:
    first, *fewer = request.node_counts
    return f"{first}; if nodes are lost {', '.join(map(str, fewer))}" if fewer else f"{first}, no fewer (min_nodes)"


def differences(run: TrainConfig, words: Sequence[str]) -> list[str]:
    """`name: value (was default)` of each value that the words changed."""
    try:
        plain = load_config("train", TrainConfig, [word for word in words if word.startswith(("run_name=", "+run_name="))])
    except ConfigError:
        return [word for word in words if not word.startswith("-")]
    before, now = by_dotted_name(to_plain(plain)), by_dotted_name(to_plain(run))
    changed = [name for name in now if before.get(name, "") != now[name]]
    lines = [f"{name}: {now[name]}" + (f"  (was {before[name]})" if name in before else "") for name in changed]
    return [*lines, *(f"{name}: none  (was {before[name]})" for name in before if name not in now)] or ["nothing"]


def _near(path: Path) -> str:
    """Relative to the current folder where it lies in it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
