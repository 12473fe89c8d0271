"""Data work as a job array: `olmo launch tasks cluster=NAME tasks=N time=T [max_parallel=M] VERB words...`

Each task runs `olmo VERB words... task=I n_tasks=N` on one node; or, where a word holds {task} or {n_tasks}, the words with the
numbers put in, for verbs that do not divide their work themselves. What failed is run again, alone, by
`olmo launch tasks --again FOLDER`.
"""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from launch.cluster import ranks_per_node
from launch.config import ClusterConfig
from launch.job_folder import Job, add_slurm_id, new_folder, next_folder, slurm_ids
from launch.request import LAUNCH_WORDS, Site, Words, read_site, split_words
from launch.script import Place, in_environment, queue_options, script, srun_options
from launch.slurm import queue, submit, told
from launch.snapshot import take_snapshot
from launch.write_job import give_to_slurm, write_repeat
from olmo_train.cli import VERBS
from olmo_train.conversion import nearest
from olmo_train.errors import ConfigError, run_command
from olmo_train.files import write_atomic

DIVIDE = (
    "trace index", "data ingest", "data tag", "data dedupe", "data decontaminate", "data mix", "data tokenize",
)  # fmt: skip
"""Verbs that take task= and n_tasks= and do their share."""


@dataclass(frozen=True)
class Tasks:
    """A checked request."""

    site: Site
    n_tasks: int
    verb: str
    words: list[str]
    """Of each task, with {task} and {n_tasks} for the numbers."""


def main(argv: list[str]) -> None:
    """Check, write a job folder below jobs/, submit; or submit again what is not done."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: olmo launch tasks [--dry-run | --again FOLDER] words...\n\n{__doc__}")
        return
    with told():
        if argv[0].split("=", 1)[0] == "--again":
            words = [*argv[0].split("=", 1), *argv[1:]]
            if len(words) != 2 or not words[1]:
                raise ConfigError("--again needs the folder of an array of tasks and nothing else, e.g. --again jobs/0001")
            print(submit_again(Path(words[1])))
        else:
            launch_tasks(argv)


def launch_tasks(argv: list[str]) -> None:
    """Raises:
    ConfigError: everything that speaks against it. SlurmError: sbatch refused it.
    """
    own = list(takewhile(lambda word: "=" in word or word == "--dry-run", argv))
    dry_run = "--dry-run" in own  # after the verb it would be the command's
    words = [word for word in own if word != "--dry-run"] + argv[len(own) :]
    tasks = read_tasks(words)
    assert tasks.site.cluster is not None  # read_tasks
    jobs = Path("jobs").absolute()
    if dry_run:
        print(f"---- {next_folder(jobs)}/job.sbatch\n{tasks_script(tasks, next_folder(jobs))}")
        for note in tasks.site.notes:
            print(f"note: {note}")
        print("Nothing was written and nothing was submitted (--dry-run).")
        return
    folder = new_folder(jobs)
    _write(tasks, folder, words)
    print(_submitted_text(tasks, folder, give_to_slurm(folder)))


def read_tasks(words: Sequence[str]) -> Tasks:
    """The words up to the verb are the launch's, all after it the command's.

    Raises:
        ConfigError: all problems at once.
    """
    end = next((i for i, word in enumerate(words) if "=" not in word), len(words))
    split = split_words([word for word in words[:end] if not word.startswith("tasks=")])
    counts = [word.split("=", 1)[1] for word in words[:end] if word.startswith("tasks=")]
    known = ", ".join(["tasks", *LAUNCH_WORDS])
    problems = [f"{word} is not a word of `olmo launch tasks`; words: {known}" for word in split.rest]
    given = [name for name in ("nodes", "min_nodes", "spare_nodes") if name in split.launch]
    problems += [f"{name}: a task has one node; leave it out" for name in given]
    n_tasks = int(counts[-1]) if counts and counts[-1].isdigit() else 0
    if not counts:
        problems.append("tasks is missing: give tasks=<int>")
    elif n_tasks < 1:
        problems.append(f"tasks={counts[-1]} must be a number of at least 1")
    site = read_site(Words({**split.launch, "nodes": "1"}, split.cluster, [], split.problems), _one_task)
    verb, command = _verb(list(words[end:]), problems)
    if problems or site.problems:
        raise ConfigError([*site.problems, *problems])
    return Tasks(site, n_tasks, verb, command)


def _one_task(cluster: ClusterConfig) -> ClusterConfig:
    """What one task uses of a site: no GPU; of a whole node all CPUs that ranks would have, else those of one rank."""
    whole = max(ranks_per_node(cluster), 1) if cluster.exclusive else 1
    return replace(cluster, gpus_per_node=0, gpu_memory_gib=None, ranks_per_node=1, cpus_per_rank=cluster.cpus_per_rank * whole)


def _verb(words: list[str], problems: list[str]) -> tuple[str, list[str]]:
    """The verb and its words, with {task} in them."""
    for n in (2, 1):
        verb, rest = " ".join(words[:n]), words[n:]
        if verb in VERBS and len(words) >= n and not verb.startswith("launch"):
            break
    else:
        said = " ".join(words[:2])
        hint = f"{said} is no verb{nearest(said, list(VERBS))}" if said else "the verb is missing"
        problems.append(f"{hint}; after the words of the launch comes what each task runs, e.g. trace index shards=shards/demo")
        return "", []
    if any("{task}" in word for word in rest):
        return verb, rest
    given = [word for word in rest if word.split("=", 1)[0] in ("task", "n_tasks")]
    if given:
        problems.append(f"{given[0]}: each task gets its own number; leave it out, or write {{task}} and {{n_tasks}}")
    if verb not in DIVIDE:
        problems.append(
            f"olmo {verb} does not divide its work, so all tasks would do the same; write {{task}} into the words that differ, "
            "e.g. documents=corpus/part-{task}.jsonl.gz"
        )
    return verb, [*rest, "task={task}", "n_tasks={n_tasks}"]


def tasks_script(tasks: Tasks, folder: Path) -> str:
    """The batch script of the array. A task that succeeded leaves a file in done/, and is not run twice."""
    cluster, launch = tasks.site.cluster, tasks.site.launch
    assert cluster is not None  # read_tasks
    assert launch is not None
    place = _place(tasks, folder)
    memory = cluster.memory_gib_per_node
    options = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={cluster.cpus_per_rank}", f"--time={launch.time}"]
    options += [
        *queue_options(cluster),
        "--requeue" if cluster.requeue else "--no-requeue",
        *(["--exclusive"] if cluster.exclusive else []),
    ]
    options += [f"--array=0-{tasks.n_tasks - 1}" + (f"%{launch.max_parallel}" if launch.max_parallel else "")]
    if memory is not None or cluster.exclusive:
        options.append("--mem=0" if memory is None else f"--mem={int(memory * 1024)}M")
    if launch.dependency is not None:
        options.append(f"--dependency={launch.dependency}")
    command = ["srun", "--nodes=1", "--ntasks=1", "--kill-on-bad-exit=1", "--input=none", *srun_options(cluster, place)]
    command += in_environment(cluster, place, ["-m", "olmo_train.cli", *tasks.verb.split(), *tasks.words])
    done = shlex.quote(f"{folder}/done/") + "$task"
    body = [
        f"task=$SLURM_ARRAY_TASK_ID n_tasks={tasks.n_tasks}",
        f'if [[ -e {done} ]]; then echo "task $task is done already"; exit 0; fi',
        " ".join(_with_numbers(word) for word in command),
        "status=$?",
        f"if [[ $status == 0 ]]; then : >{done}; exit 0; fi",
        'echo "job: task $task failed with status $status; when all tasks have ended, run again what failed:" >&2',
        f"echo {shlex.quote(f'  olmo launch tasks --again {folder}')} >&2",
        "exit $status\n",
    ]
    return script(options, cluster, place, f"{folder}/tasks/%5a.log", "\n".join(body))


def _with_numbers(word: str) -> str:
    """A word for bash, with $task and $n_tasks outside of the quotes (a word with braces is always quoted)."""
    return shlex.quote(word).replace("{task}", "'\"$task\"'").replace("{n_tasks}", "'\"$n_tasks\"'")


def _place(tasks: Tasks, folder: Path) -> Place:
    return Place(f"olmo-{tasks.verb.replace(' ', '-')}", folder, Path.cwd())


def _write(tasks: Tasks, folder: Path, words: Sequence[str]) -> None:
    assert tasks.site.cluster is not None  # read_tasks
    place = _place(tasks, folder)
    take_snapshot(folder)
    command = in_environment(tasks.site.cluster, place, ["-m", "olmo_train.cli", *tasks.verb.split(), *tasks.words])
    srun = srun_options(tasks.site.cluster, place)
    Job(place.name, str(folder), "tasks", command, srun=srun, requeue=tasks.site.cluster.requeue).write(folder)
    most = tasks.site.launch.max_parallel if tasks.site.launch else None
    write_atomic(folder / "tasks.json", json.dumps({"n_tasks": tasks.n_tasks, "max_parallel": most}).encode())
    write_atomic(folder / "job.sbatch", tasks_script(tasks, folder).encode())
    write_repeat(folder, "launch tasks", words)
    for name in ("tasks", "done"):
        (folder / name).mkdir()


def _submitted_text(tasks: Tasks, folder: Path, job_id: str) -> str:
    return "\n".join(
        [
            f"submitted job array {job_id}: {tasks.n_tasks} tasks of olmo {tasks.verb}",
            f"job folder  {folder}",
            f"logs        {folder}/tasks/00000.log and so on",
            f"see         squeue -j {job_id}; a task that succeeded leaves a file in {folder}/done",
            f"stop        scancel {job_id}",
            f"run again what failed  olmo launch tasks --again {folder}",
            *(f"note: {note}" for note in tasks.site.notes),
        ]
    )


def submit_again(folder: Path) -> str:
    """Submit the tasks that have no marker in done/ and do not wait or run; returns what was done.

    Raises:
        ConfigError: the folder is none of an array of tasks, or the rest still runs.
        SlurmError: sbatch refused it.
    """
    folder = folder.absolute()
    job = Job.read(folder)
    if job.kind != "tasks":
        raise ConfigError(f"--again {folder} is the job of a run, not an array of tasks; {folder}/repeat.sh launches it again")
    told_of = json.loads((folder / "tasks.json").read_text())
    done = {int(path.name) for path in (folder / "done").iterdir() if path.name.isdigit()}
    missing = [task for task in range(told_of["n_tasks"]) if task not in done]
    if not missing:
        return f"all {told_of['n_tasks']} tasks of {folder} are done"
    live = {int(entry.id.split("_")[1]) for entry in queue([entry["id"] for entry in slurm_ids(folder)]) if "_" in entry.id}
    wanted = [task for task in missing if task not in live]
    if not wanted:
        raise ConfigError(f"--again {folder}: the {len(missing)} tasks that are not done wait or run; wait for them")
    most = f"%{told_of['max_parallel']}" if told_of["max_parallel"] else ""
    began = time.time()
    job_id = submit(folder / "job.sbatch", [f"--array={_ranges(wanted)}{most}"])
    add_slurm_id(folder, job_id, began)
    waiting = f"; {len(missing) - len(wanted)} others wait or run" if len(missing) > len(wanted) else ""
    return f"submitted job array {job_id}: {len(wanted)} of {told_of['n_tasks']} tasks ({_ranges(wanted)}){waiting}"


def _ranges(numbers: Sequence[int]) -> str:
    """1,2,3,7 -> 1-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
