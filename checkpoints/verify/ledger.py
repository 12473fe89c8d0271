"""Whether metrics.jsonl and data.jsonl tell of every step, once and in order; a line is held at a time."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST = 10
"""Problems told of one file; the rest is a number."""


@dataclass
class Ledger:
    """What was found in a file of JSON lines with a step each."""

    last_step: int = 0
    problems: list[str] = field(default_factory=list)
    """Without the file's name."""
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The lines of the steps that were asked for."""
    skipped: set[int] = field(default_factory=set)
    """Steps that changed no weights."""


def read_ledger(
    lines: Iterable[bytes], expected: Callable[[int], Mapping[str, int]], keep: Callable[[int], bool] = lambda step: False
) -> Ledger:
    """Read lines whose steps must be 1, 2, 3, ... (a line of step 0 may come first), with the `expected` values at each step.

    `keep` says which lines to return.
    """
    ledger = Ledger()
    problems = ledger.problems
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            step = line["step"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"line {number} is not a JSON object with a step")
            continue
        problems += _order(step, ledger.last_step, is_first=number == 1)
        problems += [
            f"step {step} has {name}={line.get(name)}, must be {value}"
            for name, value in expected(step).items()
            if step > 0 and line.get(name) != value
        ]
        if line.get("skipped"):
            ledger.skipped.add(step)
        if keep(step):
            ledger.kept[step] = line
        ledger.last_step = max(ledger.last_step, step)
    if len(problems) > MOST:
        problems[MOST:] = [f"and {len(problems) - MOST} more of the kind"]
    return ledger


def _order(step: int, last: int, is_first: bool) -> list[str]:
    if step == last + 1 or (step == 0 and is_first):
        return []
    if step <= last:
        return [f"step {step} stands after step {last}"]
    return [f"step {last + 1} is missing" if step == last + 2 else f"steps {last + 1} to {step - 1} are missing"]


def metrics_values(batch: int) -> Callable[[int], Mapping[str, int]]:
    """What a line of metrics.jsonl must say at a step of `batch` tokens."""
    return lambda step: {"tokens": step * batch}


def data_values(rows: int) -> Callable[[int], Mapping[str, int]]:
    """What a line of data.jsonl must say at a step of `rows` instances."""
    return lambda step: {"position": (step - 1) * rows, "rows": rows}
