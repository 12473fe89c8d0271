"""Tasks of lm-eval on a checkpoint, through its Hugging Face folder (extra `lm_eval`)."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from checkpoints.convert.hf_folder import write_hf
from checkpoints.evaluate.request import Request
from checkpoints.evaluate.subjects import Subject
from checkpoints.evaluate.tasks import find_tokenizer_problems, nearest
from checkpoints.hf_names import hf_model_type
from olmo_train.errors import ConfigError

SUITE = "lm_eval"
PACKAGES = ("lm_eval", "transformers")


@dataclass(frozen=True)
class HarnessTask:
    """One name that was asked for."""

    label: str
    recorded: tuple[str, ...]
    """Under which names results come: its own, or those of its members where it has no number of its own."""


def find_tasks(request: Request) -> tuple[Any, list[HarnessTask]]:
    """(lm-eval's task manager, the tasks asked for), each built once, so that its data is here.

    Raises:
        ConfigError: the package is missing, the path does not exist, a name is not known, or a task cannot be built; lists
        every problem.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401 - needs more than lm_eval itself
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"--lm-eval needs lm-eval[hf], which is not installed ({error}); pip install 'olmo-train[lm_eval]'"
        ) from None
    path = request.lm_eval_path
    if path is not None and not path.is_dir():
        raise ConfigError(f"--lm-eval-path={path} is not a folder; give the one with the tasks' YAML files")
    if path is not None:  # first without the package's own 14,000, which take seconds to list
        manager = TaskManager(include_path=path, include_defaults=False)
        tasks, problems = _build_all(manager, request.lm_eval)
        if not problems:
            return manager, tasks
    manager = TaskManager(include_path=path)
    tasks, problems = _build_all(manager, request.lm_eval)
    if problems:
        raise ConfigError(problems)
    return manager, tasks


def _build_all(manager: Any, labels: tuple[str, ...]) -> tuple[list[HarnessTask], list[str]]:
    """(tasks, problems)."""
    tasks, problems = [], []
    for label in labels:
        if label not in manager.all_tasks:
            problems.append(f"--lm-eval: {label} is no task of lm-eval; {nearest(label, manager.all_tasks)}")
            continue
        try:
            tasks.append(_build(manager, label))
        except Exception as error:  # loaders of datasets raise many kinds
            problems.append(
                f"--lm-eval: {label} cannot be built: {error!r}; its data must be in the cache of `datasets` or on a reachable "
                "hub: leave it out, or give a task with local data by --lm-eval-path"
            )
    return tasks, problems


def _build(manager: Any, label: str) -> HarnessTask:
    built = manager.load([label])
    group = built.get("groups", {}).get(label)
    has_number = label in built["tasks"] or (group is not None and group.aggregate_metric_list)
    return HarnessTask(label, (label,) if has_number else tuple(built["tasks"]))


def find_export_problems(subject: Subject, request: Request) -> list[str]:
    """What stands against the Hugging Face folder: no class computes the model, or no tokenizer."""
    problems = find_tokenizer_problems(subject, request)
    try:
        hf_model_type(subject.checkpoint.model)
    except ConfigError as error:
        problems += error.problems
    return [f"--lm-eval: {problem}" for problem in problems]


def harness_settings(subject: Subject, request: Request) -> dict[str, Any]:
    """What the numbers depend on; the package's own tasks by its version, the user's by what is in their files."""
    digest = hashlib.sha256()
    for file in sorted(request.lm_eval_path.rglob("*")) if request.lm_eval_path is not None else []:
        if file.suffix in (".yaml", ".yml", ".py"):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    tasks = None if request.lm_eval_path is None else digest.hexdigest()
    return {"limit": request.limit, "tasks_sha256": tasks, **request.settings_of(subject, PACKAGES)}


def run_harness(
    subject: Subject, request: Request, manager: Any, tasks: list[HarnessTask]
) -> Iterator[tuple[str, dict[str, float | None]]]:
    """(name, metrics) as each task is done. The folder is a temporary one and takes the disk space of the weights."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _hf_folder(subject, request) as folder:
        model = HFLM(
            pretrained=str(folder), dtype=str(request.dtype_of(subject)), device=str(request.device),
            max_length=subject.checkpoint.seq_len, batch_size=request.rows_of(subject),
        )  # fmt: skip
        for task in tasks:
            found = simple_evaluate(
                model, tasks=[task.label], task_manager=manager, limit=request.limit, bootstrap_iters=0, log_samples=False
            )
            assert found is not None  # of rank 0, the only one
            for name in task.recorded:
                yield name, _numbers(found["results"][name])


@contextmanager
def _hf_folder(subject: Subject, request: Request) -> Iterator[Path]:
    """The checkpoint itself if it is a whole Hugging Face folder, else one made of it."""
    checkpoint = subject.checkpoint
    if checkpoint.is_hf and request.tokenizer is None and (checkpoint.folder / "tokenizer_config.json").exists():
        yield checkpoint.folder
        return
    with TemporaryDirectory(prefix="olmo-evaluate-") as folder:
        write_hf(replace(checkpoint, tokenizer=request.tokenizer or checkpoint.tokenizer), Path(folder) / "hf")
        yield Path(folder) / "hf"


def _numbers(values: dict[str, Any]) -> dict[str, float | None]:
    """Their metrics (`acc,none` is accuracy without a filter); errors that were not estimated are left out."""
    return {
        name.removesuffix(",none"): float(value) if math.isfinite(value) else None
        for name, value in values.items()
        if isinstance(value, int | float) and "_stderr" not in name and name != "sample_len"
    }
