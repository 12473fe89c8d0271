"""What every stage of data work is told, beside its own settings."""

import os
from dataclasses import dataclass, field


@dataclass
class StageConfig:
    """Fields that decide how a stage runs; none of them changes what it writes."""

    processes: int | None = None
    """Parts that are worked on at once; None: one per core."""
    memory_mb: int = 300
    """Of each process. What a stage holds at once follows from it, never from the size of the corpus."""
    task: int | None = None
    """Of a job array: this task's number, from 0; None: alone. Tasks share the parts out among themselves as they go."""
    n_tasks: int = 1
    """Of a job array."""
    max_rejected_frac: float = 0.001
    """Of all lines read: the stage fails if more were no documents. All of them lie in `quarantine/`, with place and reason."""
    max_damaged_files: int = 0
    """Files that end too early or are damaged: the stage fails if there are more, because nobody knows how much they lack."""


@dataclass
class DocumentsConfig(StageConfig):
    """A stage that reads documents."""

    documents: list[str] = field(default_factory=list)
    """Dolma documents: folders of datasets (with `documents/` in them), other folders, files, globs."""


def stage_problems(config: StageConfig) -> list[str]:
    """What is wrong with these fields."""
    problems = []
    if config.processes is not None and config.processes < 1:
        problems.append(f"processes={config.processes} must be positive; null takes one per core")
    if config.memory_mb < 100:
        problems.append(f"memory_mb={config.memory_mb} must be at least 100")
    if config.n_tasks < 1:
        problems.append(f"n_tasks={config.n_tasks} must be positive")
    elif config.task is not None and not 0 <= config.task < config.n_tasks:
        problems.append(f"task={config.task} is not in 0 .. {config.n_tasks - 1}; n_tasks={config.n_tasks}")
    elif config.task is None and config.n_tasks > 1:
        problems.append(f"n_tasks={config.n_tasks} needs task, the number of this one")
    if not 0 <= config.max_rejected_frac <= 1:
        problems.append(f"max_rejected_frac={config.max_rejected_frac} is not in [0, 1]")
    if config.max_damaged_files < 0:
        problems.append(f"max_damaged_files={config.max_damaged_files} must not be negative")
    if isinstance(config, DocumentsConfig) and not config.documents:
        problems.append("documents is empty; give files, folders or globs of Dolma documents")
    return problems


def n_processes(config: StageConfig) -> int:
    """Processes of this machine."""
    return config.processes or len(os.sched_getaffinity(0))
