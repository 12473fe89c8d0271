"""What a run wrote about itself, read for inspection: metrics, and evaluations made during and after training.

`metrics.jsonl` belongs to the trainer. `evaluations.jsonl` is ours: one JSON object per line, appended, never rewritten; of two
with the same step, suite and label the later one counts.
"""

import fcntl
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from olmo_train.errors import CheckpointError, ConfigError

EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What one suite said of one checkpoint."""

    step: int
    suite: str
    """heldout, olmo_eval or lm_eval."""
    label: str
    """Source (heldout: `all` for all of them) or task."""
    metrics: dict[str, float | None]
    """e.g. loss (nats per token), bits_per_byte, acc; None: not finite, or unknown."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the numbers depend on: limits, versions, number format, device."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file of JSON lines: none if it is not there, and what was cut, within a character even, is left out."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def read_evaluations(run: Path) -> list[Evaluation]:
    """All evaluations of a run by step, suite and label: those of training, then those made later, which replace them.

    Raises:
        CheckpointError: a line of those made later lacks a field, or has one that is unknown.
    """
    found: dict[tuple[int, str, str], Evaluation] = {}
    for line in read_lines(run / "metrics.jsonl"):
        for ours, suite in (("heldout", "heldout"), ("tasks", "olmo_eval")):
            for label, metrics in line.get("eval", {}).get(ours, {}).items():
                found[line["step"], suite, label] = Evaluation(line["step"], suite, label, metrics, {"during": "training"})
    for line in read_lines(run / EVALUATIONS):
        line.pop("time", None)
        try:
            entry = Evaluation(**line)
        except TypeError as error:
            raise CheckpointError(f"{run / EVALUATIONS} has a line that is no evaluation ({error}): {str(line)[:200]}") from None
        found[entry.step, entry.suite, entry.label] = entry
    return [found[key] for key in sorted(found)]


def add_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Append one evaluation; safe beside other processes that do the same.

    Raises:
        ConfigError: the run's folder cannot be written.
    """
    text = json.dumps({**asdict(evaluation), "time": time.time()}) + "\n"
    try:
        with open(run / EVALUATIONS, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{run / EVALUATIONS}: {error.strerror}; the result was: {text}") from error
