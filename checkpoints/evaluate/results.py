"""Results of evaluations: what is there already, what becomes of new ones, and the table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.evaluate.subjects import Subject
from checkpoints.inspect.tables import columns, value
from checkpoints.run_files import Evaluation, add_evaluation, read_evaluations
from olmo_train.errors import ConfigError
from olmo_train.files import write_atomic

_FIRST = ("loss", "bits_per_byte", "acc_norm", "acc", "len_norm_v2", "acc_v2", "pmi_dc_v2", "f1_v2", "ce_loss_v2")
"""The metrics worth a column, where a label has them; of any other label the first one it has."""
_SUITES = ("heldout", "olmo_eval", "lm_eval")
_PAIRS = {"loss": "bits_per_byte"}
"""Both are shown."""


@dataclass(frozen=True)
class Result:
    """One label on one checkpoint."""

    checkpoint: str
    step: int | None
    suite: str
    label: str
    metrics: dict[str, float | None]
    settings: dict[str, Any]


@dataclass
class Results:
    """Of all checkpoints, old and new. New ones are written to the run as soon as they are there."""

    again: bool = False
    """Evaluate even what was evaluated with the same settings."""
    rows: list[Result] = field(default_factory=list)
    _known: dict[Path, list[Evaluation]] = field(default_factory=dict)

    def take_known(
        self, subject: Subject, suite: str, settings: Mapping[str, Any], labels: tuple[str, ...] | None = None
    ) -> set[str]:
        """Which of `labels` (None: any) the run has with these settings; they go into the table."""
        if subject.run is None or self.again:
            return set()
        if subject.run not in self._known:
            self._known[subject.run] = read_evaluations(subject.run)
        same = json.loads(json.dumps(settings))  # as the file gives them back
        found = [
            known
            for known in self._known[subject.run]
            if (known.step, known.suite, known.settings) == (subject.checkpoint.step, suite, same)
            and (labels is None or known.label in labels)
        ]
        self.rows += [Result(subject.name, known.step, suite, known.label, known.metrics, known.settings) for known in found]
        return {known.label for known in found}

    def add(self, subject: Subject, suite: str, found: Mapping[str, Mapping[str, Any]], settings: dict[str, Any]) -> None:
        """Take new metrics by label, and write them to the run if the checkpoint is of one.

        Raises:
            ConfigError: the run's folder cannot be written; the message has the result.
        """
        step = subject.checkpoint.step
        for label, metrics in found.items():
            finite = {name: None if number is None or not math.isfinite(number) else number for name, number in metrics.items()}
            self.rows.append(Result(subject.name, step, suite, label, finite, settings))
            if subject.run is not None and step is not None:
                add_evaluation(subject.run, Evaluation(step, suite, label, finite, settings))

    def write(self, path: Path) -> None:
        """All of them as a JSON list.

        Raises:
            ConfigError: the file system refused.
        """
        try:
            write_atomic(path, (json.dumps([asdict(row) for row in self.rows], indent=1) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"--output={path}: {error.strerror}; give a file that can be written") from error

    def table(self, names: Sequence[str]) -> list[str]:
        """A row for each of the named checkpoints, a column per label and metric: `all` last of its suite."""
        heads = {(row.suite, row.label, metric): None for row in self.rows for metric in shown(row.metrics)}
        order = sorted(heads, key=lambda head: (_SUITES.index(head[0]), head[1] == "all"))
        cells = {(r.checkpoint, r.suite, r.label, metric): number for r in self.rows for metric, number in r.metrics.items()}
        lines = [["", *(label for _, label, _ in order)], ["checkpoint", *(metric for *_, metric in order)]]
        return columns([*lines, *([name, *(value(cells.get((name, *head))) for head in order)] for name in names)])


def shown(metrics: Mapping[str, Any]) -> Sequence[str]:
    """The metrics of a label that get a column."""
    first = next((name for name in _FIRST if name in metrics), next(iter(metrics), None))
    if first is None:
        return ()
    second = _PAIRS.get(first)
    return (first, second) if second in metrics and second is not None else (first,)
