"""Train from one published checkpoint to the next and compare: a series whose training can be repeated is what it says it is."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.opening import Checkpoint
from checkpoints.publish.facts import effective_starts
from checkpoints.release import TRAINING
from checkpoints.verify.compare import (
    Difference,
    Losses,
    Moments,
    compare_losses,
    compare_moments,
    compare_weights,
    other_data,
    other_machine,
)
from checkpoints.verify.replay_run import Replay, last_start, train_again
from checkpoints.weights import StepWeights
from olmo_train.checkpoint import read_manifest
from olmo_train.errors import CheckpointError
from olmo_train.step_folder import MANIFEST, step_name

TOLERANCE = 1e-2
"""Difference over update up to which another machine counts as the same training; docs/verify.md argues for it."""


@dataclass(frozen=True)
class End:
    """One end of a replay, on this machine."""

    name: str
    checkpoint: Checkpoint
    has_optimizer: bool

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        assert self.checkpoint.step is not None
        return self.checkpoint.step

    @property
    def records(self) -> Path:
        """The folder with metrics.jsonl, data.jsonl and provenance.json up to this step at least."""
        folder = self.checkpoint.folder
        return folder / TRAINING if self.checkpoint.is_hf else folder.parent.parent

    def moments(self) -> Moments:
        """The optimizer's state."""
        folder = self.checkpoint.folder
        if not self.checkpoint.is_hf:
            return Moments(folder, read_manifest(folder))
        return Moments(folder / TRAINING, json.loads((folder / TRAINING / "step.json").read_text()))


@dataclass(frozen=True)
class Manner:
    """How to replay."""

    last_step: int
    ranks: int | None
    """None: as many as then."""
    shards: Mapping[str, Path]
    """By source, where its shards lie now."""
    tolerance: float


@dataclass
class Verdict:
    """What a replay showed."""

    start: str
    end: str
    steps: int
    reaches: bool
    """The replay ended at the step of `end`; otherwise before it, and only losses could be compared."""
    other_data: list[str]
    losses: Losses
    weights: Difference | None
    optimizer: Difference | None
    """None: not published, or `end` was not reached."""
    machines: list[str]
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Everything that could be compared is equal, bit for bit."""
        if self.other_data or self.losses.n_equal < self.losses.n:
            return False
        return all(found is None or found.is_equal for found in (self.weights, self.optimizer))

    @property
    def is_good(self) -> bool:
        """Reproduced, exactly or within the tolerance."""
        far = self.losses.max_relative if self.weights is None else self.weights.of_update
        return not self.other_data and (self.is_exact or far <= self.tolerance)

    def lines(self) -> Iterator[str]:
        """For people, the verdict first."""
        yield f"replay of {self.steps} steps from {self.start}, against {self.end}: {self._verdict()}"
        yield from (f"  {problem}" for problem in self.other_data[:5])
        n, equal = self.losses.n, self.losses.n_equal
        yield f"  loss: {equal} of {n} steps equal, largest difference {self.losses.max_relative:.3g} of the loss"
        for name, found in (("weights", self.weights), ("optimizer state", self.optimizer)):
            if found is not None:
                yield f"  {name}: {_describe(found)}"
        yield from (f"  not as then: {difference}" for difference in self.machines)

    def _verdict(self) -> str:
        if self.other_data:
            return "NOT reproduced, the steps were fed other data: the shards are not those of the run; fetch them again"
        if self.is_exact:
            return "reproduced bit for bit" if self.reaches else f"losses reproduced exactly; {self.end} was not reached"
        what = "largest difference / loss" if self.weights is None else "difference / update"
        far = self.losses.max_relative if self.weights is None else self.weights.of_update
        numbers = f"{what} is {far:.3g}, tolerance {self.tolerance:g}"
        if self.is_good:
            return f"reproduced within tolerance, not bit for bit: {numbers}"
        wrong = "one of the two is not what the run had, or the code changed"
        if self.machines:
            return (
                f"NOT reproduced: {numbers}; the data were the same, so {wrong}, or rounding grew so far on another machine "
                "(docs/verify.md): replay fewer steps, or as then"
            )
        return f"NOT reproduced: {numbers}; the data were the same and nothing is known to differ between the machines: {wrong}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        values = {name: value for name, value in vars(self).items() if name not in ("losses", "weights", "optimizer")}
        values |= {"is_exact": self.is_exact, "is_good": self.is_good, "losses": asdict(self.losses)}
        for name, found in (("weights", self.weights), ("optimizer", self.optimizer)):
            numbers = found and {
                "is_equal": found.is_equal,
                "max_abs": found.max_abs,
                "rms": found.rms,
                "of_update": found.of_update,
            }
            values[name] = numbers
        return values


def _describe(found: Difference) -> str:
    if found.is_equal:
        return f"equal bit for bit, {found.n:,} numbers"
    at = f"largest difference {found.max_abs:.3g} in {found.where}, " if found.where else ""
    return f"{at}RMS {found.rms:.3g}, {found.of_update:.3g} of the update between the two checkpoints"


def replay(start: End, end: End, manner: Manner, work: Path) -> Verdict:
    """Train from `start` to `manner.last_step`, at most the step of `end`, and compare; `work` takes what is written.

    Raises:
        ConfigError: the shards do not fit, or the trainer refused. CheckpointError: training failed, or records are missing.
    """
    state, then = start.checkpoint.state, start_of(end, start.step + 1)
    ranks = manner.ranks or state["n_ranks"]
    piece = Replay(start.checkpoint, manner.last_step, ranks, then.get("threads_per_rank"), manner.shards)
    steps = range(start.step + 1, manner.last_step + 1)
    published = {name: read_lines(end.records / name, steps) for name in ("metrics.jsonl", "data.jsonl")}
    folder = train_again(piece, work)
    replayed = {name: read_lines(folder / name, steps) for name in published}
    reaches, weights, optimizer = manner.last_step == end.step, None, None
    if reaches:
        last = folder / "steps" / step_name(end.step)
        weights = compare_weights(start.checkpoint.weights, end.checkpoint.weights, StepWeights(last))
        if end.has_optimizer:
            optimizer = compare_moments(start.moments(), end.moments(), Moments(last, json.loads((last / MANIFEST).read_text())))
    return Verdict(
        start.name,
        end.name,
        len(steps),
        reaches,
        other_data(published["data.jsonl"], replayed["data.jsonl"]),
        compare_losses(published["metrics.jsonl"], replayed["metrics.jsonl"]),
        weights,
        optimizer,
        other_machine(then, last_start(folder)),
        manner.tolerance,
    )


def start_of(end: End, step: int) -> dict[str, Any]:
    """What provenance.json says of the start of the run that trained a step."""
    file = end.records / "provenance.json"
    try:
        starts = json.loads(file.read_text())["starts"]
        covering = [start.facts for start in effective_starts(starts, end.step) if start.first <= step <= start.last]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}; fetch it again") from error
    return covering[0] if covering else {}


def read_lines(file: Path, steps: range) -> dict[int, dict[str, Any]]:
    """The lines of some steps.

    Raises:
        CheckpointError: one is missing.
    """
    found = {}
    try:
        with open(file, "rb") as lines:
            for text in lines:
                line = json.loads(text)
                if line["step"] in steps:
                    found[line["step"]] = line
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}; without it a replay has nothing to be compared with") from error
    missing = [step for step in steps if step not in found]
    if missing:
        raise CheckpointError(f"{file} has no line of step {missing[0]}; without it a replay has nothing to be compared with")
    return found
