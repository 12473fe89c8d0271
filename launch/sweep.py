"""Several runs from one command line: every combination of the words with several values, as one job array."""

import functools
import itertools
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from launch.config import LaunchConfig
from launch.job_folder import add_slurm_id, new_folder, next_folder
from launch.report import facts
from launch.request import Request, Site, Words, read_request, read_site, split_words
from launch.script import batch_script
from launch.slurm import SlurmError, SlurmSilentError, submit
from launch.write_job import alone, place_of, refuse_second, write_job
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic


@dataclass(frozen=True)
class Combination:
    """One run of a sweep."""

    label: str
    """What it has of its own, e.g. lr_1e-4-seed_2: fit for a folder's name."""
    words: list[str]


def swept(words: Sequence[str]) -> dict[str, list[str]]:
    """Names with several values among the words of a run, and the values as they were typed."""
    found = {}
    for word in words:
        values = _values(word)
        if values:
            found[word.split("=", 1)[0].lstrip("+")] = values
    return found


@functools.cache
def _values(word: str) -> list[str]:
    """Of one word; empty if it has one value, or is no override at all (which is told later)."""
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override():
            return []
        values = list(override.sweep_string_iterator())
    except HydraException:
        return []
    typed = word.split("=", 1)[1].split(",")
    return typed if len(typed) == len(values) and not re.search(r"[\[\](){}'\"\\]", word) else values


def combinations(words: Sequence[str]) -> list[Combination]:
    """Every combination, the last word changing fastest."""
    several = swept(words)
    short = _short_names(list(several))
    found: list[Combination] = []
    for values in itertools.product(*several.values()):
        chosen = dict(zip(several, values, strict=True))
        label = "-".join(f"{short[name]}_{re.sub(r'[^A-Za-z0-9.+-]+', '_', value).strip('_')}" for name, value in chosen.items())
        if any(other.label == label for other in found):
            label += f"-{len(found)}"
        found.append(Combination(label, [_with_value(word, chosen) for word in words]))
    return found


def _short_names(names: list[str]) -> dict[str, str]:
    """The last parts of dotted names, as many as tell them apart."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        short[name] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1 or end == name)
    return short


def _with_value(word: str, chosen: dict[str, str]) -> str:
    name = word.split("=", 1)[0]
    return f"{name}={chosen[name.lstrip('+')]}" if name.lstrip("+") in chosen else word


def launch_sweep(words: list[str], dry_run: bool) -> None:
    """Check all runs, write a job folder for each, submit them as one array.

    Raises:
        ConfigError: everything that speaks against any of them. SlurmError: sbatch refused the array.
    """
    split = split_words(words)
    site = read_site(split)
    requests = _read_all(split, site)
    first, run_dirs = requests[0], [request.run_dir for request in requests]
    if dry_run:
        refuse_second(run_dirs)
        print(_dry_text(requests))
        return
    with alone(run_dirs):
        job_id, folders = _write_and_submit(words, split, requests)
    print(f"submitted job array {job_id}: {len(requests)} runs, each of")
    print("\n".join(facts(first)[:-1]))
    for number, (request, folder) in enumerate(zip(requests, folders, strict=True)):
        print(f"{job_id}_{number}  {request.run.run_name}  {folder}")
    print("see              olmo jobs\nstop one         olmo cancel NAME")
    for note in first.notes:
        print(f"note: {note}", file=sys.stderr)


def _write_and_submit(words: list[str], split: Words, requests: list[Request]) -> tuple[str, list[Path]]:
    folders: list[Path] = []
    for request in requests:
        folders.append(write_job(request, _own_words(words, split, request), folders[0] if folders else None))
    array = new_folder(Path("jobs").absolute())
    write_atomic(array / "folders", "".join(f"{folder}\n" for folder in folders).encode())
    write_atomic(array / "array.sbatch", array_script(requests[0], array, len(folders)).encode())
    repeat = f"#!/bin/bash\n# The command that made this array\ncd {shlex.quote(str(Path.cwd()))} || exit 2\n"
    write_atomic(
        array / "repeat.sh", f"{repeat}exec {shlex.quote(sys.executable)} -m olmo_train.cli launch {shlex.join(words)}\n".encode()
    )
    return _submit(array, folders), folders


def _submit(array: Path, folders: list[Path]) -> str:
    began = time.time()
    try:
        job_id = submit(array / "array.sbatch")
    except SlurmSilentError:
        raise
    except SlurmError:
        for folder in (array, *folders):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for number, folder in enumerate(folders):
        add_slurm_id(folder, f"{job_id}_{number}", began)
    return job_id


def _read_all(split: Words, site: Site) -> list[Request]:
    """Each combination as a request of its own name and folder; problems that all have are told once."""
    requests, problems = [], dict[str, list[str]]()
    name = next((word.split("=", 1)[1] for word in split.rest if word.startswith("run_name=")), None)
    for combination in combinations(split.rest):
        renamed = [_renamed(word, combination.label) for word in combination.words]
        try:
            requests.append(read_request(Words(split.launch, split.cluster, renamed, split.problems), site))
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(combination.label)
    if name is None:
        problems.setdefault("run_name is missing: give run_name=<str>", [])
    n_all = len(combinations(split.rest))
    if problems:
        raise ConfigError([text if len(who) in (0, n_all) else f"{text} (in {', '.join(who)})" for text, who in problems.items()])
    return requests


def _renamed(word: str, label: str) -> str:
    """run_name and run_dir, where it is given, are each run's own."""
    name, equals, value = word.partition("=")
    return f"{name}={value.rstrip('/')}-{label}" if equals and name in ("run_name", "run_dir") else word


def _own_words(words: list[str], split: Words, request: Request) -> list[str]:
    """The command line of one run of the sweep alone."""
    chosen = dict(swept(split.rest))
    match = next(c for c in combinations(split.rest) if request.run.run_name.endswith(f"-{c.label}"))
    mine = iter(_renamed(word, match.label) for word in match.words)
    rest = set(split.rest) if chosen else set()
    return [next(mine) if word in rest else word for word in words]


def array_script(request: Request, array: Path, count: int) -> str:
    """The batch script of the array: each task becomes the job of its own folder."""
    launch: LaunchConfig = request.launch
    most = f"%{launch.max_parallel}" if launch.max_parallel else ""
    script = batch_script(request.cluster, launch, place_of(request, array))
    head = [line for line in script.splitlines() if line.startswith("#SBATCH") and "--output=" not in line]
    head = [f"#SBATCH --job-name={request.run.run_name.split('-')[0]}" if "--job-name=" in line else line for line in head]
    lines = ["#!/bin/bash", "# Written by `olmo launch`: task N is the job of line N + 1 of `folders`", *head]
    lines += [f"#SBATCH --array=0-{count - 1}{most}", f"#SBATCH --output={array}/slurm-%A_%a.log", ""]
    lines += [f'folder=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(array / "folders"))})']
    lines += ['exec bash "$folder/job.sbatch" >>"$folder/job-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.log" 2>&1', ""]
    return "\n".join(lines)


def _dry_text(requests: list[Request]) -> str:
    array = next_folder(Path("jobs").absolute())
    lines = ["---- checked, each of", *facts(requests[0])[:-1], "", f"---- {len(requests)} runs"]
    lines += [f"{request.run.run_name}  {request.run_dir}" for request in requests]
    lines += ["", f"---- {array}/array.sbatch", array_script(requests[0], array, len(requests))]
    lines += [f"note: {note}" for note in requests[0].notes]
    return "\n".join([*lines, "Nothing was written and nothing was submitted (--dry-run)."])
