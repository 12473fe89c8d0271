"""Training again without a document: the same checkpoint, order, weights of the loss and machine, and what differs afterwards.

Plan -> the trainer's command line, once as it was and once without -> Counterfactual
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_step_folder
from checkpoints.trace.replay_plan import Document, Interval, Training
from checkpoints.trace.replay_span import Span
from checkpoints.trace.span_probability import span_log_probs
from checkpoints.verify.compare import Difference, compare_weights, other_data, other_machine
from checkpoints.verify.replay import End, read_lines, start_of
from checkpoints.verify.replay_run import Replay, last_start, train_again
from olmo_train.config.data import WithoutConfig
from olmo_train.data.loader import heldout_batches
from olmo_train.data.order import HeldoutStream
from olmo_train.errors import CheckpointError
from olmo_train.evaluate import to_device
from olmo_train.model.transformer import Losses, Transformer
from olmo_train.step_folder import step_name

HELDOUT_ROWS = 64
"""Held-out instances of each source that both ends are checked on."""
BEFORE, PUBLISHED, CONTROL, WITHOUT = "before", "published", "as it was", "without"
LEDGERS = ("metrics.jsonl", "data.jsonl")


@dataclass(frozen=True)
class Manner:
    """How to train again."""

    ranks: int | None
    """None: as many as then."""
    shards: Mapping[str, Path]
    has_control: bool
    placebos: list[Document]
    """Other documents to leave out, each in a training of its own."""
    device: torch.device
    """Where probabilities are computed."""


@dataclass(frozen=True)
class Reading:
    """What one set of weights says of the span, and of held-out documents."""

    name: str
    step: int
    log_prob: float
    """Of the whole span given its context, nats."""
    log_probs_T: list[float]
    heldout: dict[str, float]
    """By source of the run, nats per token."""


@dataclass(frozen=True)
class Moved:
    """How far weights are from others, seen from the start."""

    is_equal: bool
    """Bit for bit."""
    of_update: float
    """Norm of the difference over the norm of the others' movement."""
    rms: float
    max_abs: float
    where: str

    @staticmethod
    def of(found: Difference) -> "Moved":
        """As `compare_weights` found it."""
        return Moved(found.is_equal, found.of_update, found.rms, found.max_abs, found.where)


@dataclass(frozen=True)
class Placebo:
    """Another document of the same steps, left out instead."""

    document: str
    n_tokens: int
    effect: float
    """On the same span, nats."""
    of_update: float


@dataclass
class Counterfactual:
    """What training without the document showed."""

    start: str
    end: str
    steps: int
    baseline: str
    """What `without` is compared with: the control, or the published checkpoint."""
    readings: list[Reading]
    control: Moved | None
    """Of the control from the published checkpoint; None: no control was trained."""
    removal: Moved
    """Of the weights without from the baseline."""
    placebos: list[Placebo]
    judged: list[str]
    """Steps that the guard judged otherwise without the document."""
    unlearned: list[str]
    """Rows with the document that the published training did not learn from."""
    machines: list[str]
    """What was different on the machine of the published checkpoint."""
    cautions: list[str] = field(default_factory=list)

    def reading(self, name: str) -> Reading:
        """By name."""
        return next(reading for reading in self.readings if reading.name == name)

    @property
    def effects_T(self) -> list[float]:
        """By token: log-probability with the document less without it, nats."""
        there, gone = self.reading(self.baseline), self.reading(WITHOUT)
        return [a - b for a, b in zip(there.log_probs_T, gone.log_probs_T, strict=True)]

    @property
    def effect(self) -> float:
        """Of the whole span."""
        return math.fsum(self.effects_T)


def replay_without(
    training: Training, left_out: list[Document], span: Span, ends: tuple[End, End], manner: Manner, work: Path,
    say: Callable[[str], None] = lambda line: None,
) -> Counterfactual:  # fmt: skip
    """Train from one end to the step of the other, as it was and without; `work` takes what is written, a folder for each.

    Raises:
        ConfigError: the shards do not fit, or the trainer refused. CheckpointError: training failed, records are missing, or a
            step was fed something else than is meant.
    """
    start, end = ends
    job = _Job(training, span, start, end, manner, work)
    folders: dict[str, Path] = {}
    if manner.has_control:
        say(f"training steps {start.step + 1} to {end.step} as it was")
        folders[CONTROL] = job.train("control", None)
    say(f"training steps {start.step + 1} to {end.step} without")
    folders[WITHOUT] = job.train("without", left_out)
    records = {name: job.records(folder) for name, folder in folders.items()} | {PUBLISHED: job.records(end.records)}
    baseline = CONTROL if manner.has_control else PUBLISHED
    problems = other_data(records[PUBLISHED]["data.jsonl"], records[baseline]["data.jsonl"])
    problems += fed_problems(job.expected_rows(left_out), records[baseline]["data.jsonl"], records[WITHOUT]["data.jsonl"])
    if problems:
        raise CheckpointError("\n".join([*problems[:5], "the shards are not those of the run; fetch them again"]))
    replayed = {name: job.end_of(folder) for name, folder in folders.items()}
    checkpoints = {BEFORE: start.checkpoint, PUBLISHED: end.checkpoint} | replayed
    readings = [job.read(name, checkpoint) for name, checkpoint in checkpoints.items()]
    there = checkpoints[baseline]
    return Counterfactual(
        start.name,
        end.name,
        end.step - start.step,
        baseline,
        readings,
        job.moved(end.checkpoint, replayed[CONTROL]) if manner.has_control else None,
        job.moved(there, replayed[WITHOUT]),
        [
            job.placebo(n, document, there, next(r.log_prob for r in readings if r.name == baseline), say)
            for n, document in enumerate(manner.placebos)
        ],
        judged_otherwise(records[baseline]["data.jsonl"], records[WITHOUT]["data.jsonl"]),
        unlearned(job.expected_rows(left_out), records[PUBLISHED]["data.jsonl"]),
        other_machine(job.then, last_start(folders[WITHOUT])),
    )


@dataclass
class _Job:
    training: Training
    span: Span
    start: End
    end: End
    manner: Manner
    work: Path

    @property
    def then(self) -> dict[str, Any]:
        """What provenance says of the machine that trained these steps."""
        return start_of(self.end, self.start.step + 1)

    def train(self, name: str, left_out: list[Document] | None) -> Path:
        """The folder of a run that ends at the step of `end`."""
        ids = None if left_out is None else list(dict.fromkeys(document.id for document in left_out))
        without = None if ids is None else WithoutConfig(ids, self.start.step)
        ranks = self.manner.ranks or self.start.checkpoint.state["n_ranks"]
        threads = self.then.get("threads_per_rank")
        piece = Replay(self.start.checkpoint, self.end.step, ranks, threads, self.manner.shards, without)
        return train_again(piece, self.work / name)

    def records(self, folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
        """Lines of the ledgers, by step."""
        steps = range(self.start.step + 1, self.end.step + 1)
        return {name: read_lines(folder / name, steps) for name in LEDGERS}

    def expected_rows(self, left_out: list[Document]) -> dict[int, list[int]]:
        """By step, the rows that hold the documents."""
        rows: dict[int, set[int]] = {step: set() for step in range(self.start.step + 1, self.end.step + 1)}
        for document in left_out:
            for seen in self.training.sightings(document):
                if seen.step in rows:
                    rows[seen.step].add(seen.row)
        return {step: sorted(found) for step, found in rows.items()}

    def end_of(self, folder: Path) -> Checkpoint:
        """The checkpoint that a replay ended with."""
        return open_step_folder(folder / "steps" / step_name(self.end.step))

    def read(self, name: str, checkpoint: Checkpoint) -> Reading:
        """Probabilities and held-out losses of a checkpoint."""
        run, query = self.training.run, self.span.query
        model = load_model(checkpoint, self.manner.device, with_documents=run.data.document_masking)
        log_probs = span_log_probs(model, query.context_ids, query.ids, run.data.seq_len)
        assert checkpoint.step is not None
        return Reading(name, checkpoint.step, math.fsum(log_probs), log_probs, heldout_losses(model, self.training))

    def moved(self, there: Checkpoint, other: Checkpoint) -> Moved:
        """How far `other` is from `there`, over how far `there` is from the start."""
        return Moved.of(compare_weights(self.start.checkpoint.weights, there.weights, other.weights))

    def placebo(self, number: int, document: Document, there: Checkpoint, log_prob: float, say: Callable[[str], None]) -> Placebo:
        """Leave another document out instead; `log_prob`: of the span by `there`."""
        say(f"training steps {self.start.step + 1} to {self.end.step} without another document, {document.id}")
        checkpoint = self.end_of(self.train(f"placebo-{number + 1}", [document]))
        model, query = load_model(checkpoint, self.manner.device), self.span.query
        log_probs = span_log_probs(model, query.context_ids, query.ids, self.training.run.data.seq_len)
        first, last = document.span
        return Placebo(document.id, last - first, log_prob - math.fsum(log_probs), self.moved(there, checkpoint).of_update)


@torch.no_grad()
def heldout_losses(model: Transformer, training: Training) -> dict[str, float]:
    """By source of the run, the loss on its first held-out instances, nats per token."""
    device = model.embedding.weight.device
    data = replace(training.run.data, micro_batch_size=training.run.data.seq_len)
    losses = {}
    for source in training.order.sources:
        stream = HeldoutStream(list(source.files), data.seq_len)
        nats = targets = 0.0
        for rows in heldout_batches(stream, data, (0, 1), HELDOUT_ROWS):
            assert rows is not None
            out = model(*to_device(rows, device))
            assert isinstance(out, Losses)
            nats, targets = nats + float(out.cross_entropy), targets + rows.n_targets
        if targets:
            losses[source.name] = nats / targets
    return losses


def fed_problems(
    expected_rows: Mapping[int, list[int]], there: Mapping[int, dict[str, Any]], without: Mapping[int, dict[str, Any]]
) -> list[str]:
    """Whether the two trainings were fed the same but for the rows that hold the documents, by the lines of their data.jsonl."""
    problems = []
    for step, rows in sorted(expected_rows.items()):
        found = without[step]
        if found.get("without_rows") != rows:
            problems.append(f"step {step}: documents were left out of rows {found.get('without_rows')}, they stand in {rows}")
        for name in ("position", "rows", "masked_rows", *(() if rows else ("checksum",))):
            if found.get(name) != there[step].get(name):
                problems.append(f"step {step} was fed other data: {name} {found.get(name)}, as it was {there[step].get(name)}")
    return problems


def judged_otherwise(there: Mapping[int, dict[str, Any]], without: Mapping[int, dict[str, Any]]) -> list[str]:
    """Steps with another verdict of the guard."""
    return [
        f"step {step}: {without[step].get('skipped') or 'learned'} without, {line.get('skipped') or 'learned'} with"
        for step, line in sorted(there.items())
        if line.get("skipped") != without[step].get("skipped")
    ]


def unlearned(rows: Mapping[int, list[int]], lines: Mapping[int, dict[str, Any]]) -> list[str]:
    """Of the rows by step, those that changed no weights, by the lines of data.jsonl."""
    found = []
    for step, seen in sorted(rows.items()):
        if seen and lines[step].get("skipped"):
            found.append(f"step {step} was skipped ({lines[step]['skipped']})")
            continue
        masked = sorted(set(seen) & set(lines[step].get("masked_rows", [])))
        found += [f"row {row} of step {step} was masked (repetition)" for row in masked]
    return found


def choose_placebos(training: Training, left_out: list[Document], span: Span, interval: Interval, n: int) -> list[Document]:
    """Other documents of the steps that saw the document: those of which these steps saw most nearly as many tokens. None holds
    the span."""
    steps = sorted({seen.step for _, seen in interval.sights})
    gone = {document.id for document in left_out}
    target = sum(seen.column_end - seen.column_start for _, seen in interval.sights)
    seen: dict[tuple[Any, int], tuple[Document, int]] = {}
    for step in steps:
        for instance in training.order.batch(step):
            for part in training.order.documents(instance):
                key = part.file, part.ordinal
                document, tokens = seen.get(key) or (
                    Document(instance.source, part.file, part.ordinal, part.file.index.row(part.ordinal).id),
                    0,
                )
                seen[key] = document, tokens + part.column_end - part.column_start
    near = sorted(seen.values(), key=lambda pair: (abs(pair[1] - target), pair[0].id))
    return list(_other(near, gone, list(span.query.ids), n))


def _other(near: list[tuple[Document, int]], gone: set[str], ids: list[int], n: int) -> Iterator[Document]:
    for document, _ in near:
        if n == 0:
            return
        if document.id not in gone and not _holds(document.read().tolist(), ids):
            gone.add(document.id)
            n -= 1
            yield document


def _holds(ids: list[int], part: list[int]) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids) - len(part) + 1))
