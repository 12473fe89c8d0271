"""Check every suite on every checkpoint, then run what is not known yet, one model at a time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from checkpoints.evaluate import harness, heldout, tasks
from checkpoints.evaluate.harness import HarnessTask
from checkpoints.evaluate.heldout import HeldoutShelf
from checkpoints.evaluate.request import DTYPES, Request
from checkpoints.evaluate.results import Results
from checkpoints.evaluate.subjects import Subject
from checkpoints.load import load_model
from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import Device, ParallelConfig
from olmo_train.downstream import TaskEvaluator
from olmo_train.errors import ConfigError
from olmo_train.parallel.mesh import Layout, init_distributed


def evaluate(subjects: list[Subject], request: Request, results: Results) -> Results:
    """Fill `results`. New ones are in the run's folder as soon as their suite is done on a checkpoint.

    Raises:
        ConfigError: anything that stands against any suite on any checkpoint, found before a model is loaded.
    """
    bench = Bench(request, results)
    bench.check(subjects)
    jobs = [bench.job(subject) for subject in subjects]
    if any(job.heldout or job.tasks for job in jobs):
        with one_rank(request.device.type) as layout:
            shelf = tasks.TaskShelf(layout)
            evaluators = [shelf.get(job.subject, request, job.tasks) if job.tasks else None for job in jobs]
            for job, evaluator in zip(jobs, evaluators, strict=True):
                bench.run_heldout_and_tasks(job, evaluator, layout)
    for job in jobs:
        bench.run_harness(job)
    return results


@dataclass(frozen=True)
class Job:
    """What is left to evaluate of one checkpoint."""

    subject: Subject
    heldout: bool
    tasks: tuple[str, ...]
    harness: list[HarnessTask]


@dataclass
class Bench:
    """The suites, with what they share between checkpoints."""

    request: Request
    results: Results
    shards: HeldoutShelf = field(default_factory=HeldoutShelf)
    harness_tasks: list[HarnessTask] = field(default_factory=list)
    manager: Any = None
    """lm-eval's task manager."""

    def check(self, subjects: list[Subject]) -> None:
        """Raises:
        ConfigError: every problem of every suite and checkpoint; only that a task of ai2-olmo-eval cannot be built comes later.
        """
        request = self.request
        problems = tasks.find_label_problems(request.tasks)
        for subject in subjects:
            problems += self.shards.find_problems(subject, request) if request.heldout else []
            problems += [f"--tasks: {p}" for p in tasks.find_tokenizer_problems(subject, request)] if request.tasks else []
            problems += harness.find_export_problems(subject, request) if request.lm_eval else []
        if request.lm_eval:
            try:
                self.manager, self.harness_tasks = harness.find_tasks(request)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))

    def job(self, subject: Subject) -> Job:
        """What is asked for, without what the run has with the same settings."""
        request, known = self.request, self.results.take_known
        has_heldout = request.heldout and bool(known(subject, heldout.SUITE, self.shards.settings(subject, request)))
        labels = request.tasks
        if labels:
            found = known(subject, tasks.SUITE, tasks.task_settings(subject, request), labels)
            labels = tuple(label for label in labels if label not in found)
        left = self.harness_tasks
        if left:
            names = tuple(name for task in left for name in task.recorded)
            found = known(subject, harness.SUITE, harness.harness_settings(subject, request), names)
            left = [task for task in left if not found.issuperset(task.recorded)]
        return Job(subject, request.heldout and not has_heldout, labels, left)

    def run_heldout_and_tasks(self, job: Job, evaluator: TaskEvaluator | None, layout: Layout) -> None:
        """Both on one load of the weights."""
        if not (job.heldout or evaluator):
            return
        subject, request = job.subject, self.request
        with_documents = request.data_of(subject).document_masking
        model = load_model(subject.checkpoint, request.device, DTYPES[request.dtype_of(subject)], with_documents)
        if job.heldout:
            found = self.shards.run(subject, request, model, layout)
            self.results.add(subject, heldout.SUITE, found, self.shards.settings(subject, request))
        if evaluator is not None:
            self.results.add(subject, tasks.SUITE, evaluator.run(model), tasks.task_settings(subject, request))
        del model
        gc.collect()  # modules refer to each other; the next model shall not stand beside this one

    def run_harness(self, job: Job) -> None:
        """Each task is kept as soon as it is done."""
        if job.harness:
            settings = harness.harness_settings(job.subject, self.request)
            for name, metrics in harness.run_harness(job.subject, self.request, self.manager, job.harness):
                self.results.add(job.subject, harness.SUITE, {name: metrics}, settings)


@contextmanager
def one_rank(device: str) -> Iterator[Layout]:
    """A process group of this process alone, as the trainer's evaluators want one; without a port."""
    layout = init_distributed(ParallelConfig(device=Device(device), compute_dtype=FloatType.FLOAT32))
    try:
        yield layout
    finally:
        dist.destroy_process_group()
