"""What a model believed of a span at every checkpoint, beside controls that no step saw: a trace and a query in, a Belief out."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.inspect.identity import weights_identity
from checkpoints.inspect.kept import Kept
from checkpoints.inspect.places import find_checkpoints, is_run
from checkpoints.inspect.series import KEPT
from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_checkpoint
from checkpoints.trace.controls import ControlOptions, choose_controls
from checkpoints.trace.curves import Measured, build_belief
from checkpoints.trace.results import Belief, Matching
from checkpoints.trace.span_probability import SpanQuery, SpanScore, score_spans
from data_tools.trace.opening import Trace
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError
from olmo_train.model.shapes import moe_of_layer, vocab_rows
from olmo_train.parallel.mesh import choose_device


@dataclass(frozen=True)
class BeliefOptions:
    """What to measure, and how."""

    steps: tuple[int, ...] | None = None
    """Of checkpoints; None: every one."""
    controls: ControlOptions = field(default_factory=ControlOptions)
    checkpoints: str | None = None
    """A run or a store of releases to take the models from; None: where the trace was opened."""
    device: Device = Device.AUTO
    cache: Path | None = None
    """Where results are kept; None: in `inspect/kept/` of a run, nowhere for anything else."""
    keep: bool = True
    """False: read and write no results."""


def measure_belief(trace: Trace, query: SpanQuery, options: BeliefOptions | None = None) -> Belief:
    """Measure one span at the checkpoints, one model in memory at a time, in float32. A line per checkpoint goes to stderr.

    Span and controls share the forward passes. What was measured is kept by the weights' identity and the ids, so that only new
    checkpoints, or another span, cost anything.

    Raises:
        ConfigError: there are no checkpoints or no controls, or the model cannot read the ids. CheckpointError: a checkpoint is
            damaged. ShardError: a shard is.
    """
    start = time.monotonic()
    for progress in iterate_belief(trace, query, options or BeliefOptions()):
        if isinstance(progress, Belief):
            return progress
        now = time.monotonic()
        line = f"step {progress.step}  {progress.log_prob:.3f} nats   ({progress.number} of {progress.n}, {now - start:.1f} s)"
        print(line, file=sys.stderr, flush=True)
        start = now
    raise AssertionError("the last thing that is told is the Belief")


@dataclass(frozen=True)
class BeliefProgress:
    """A checkpoint is measured."""

    number: int
    """From 1."""
    n: int
    step: int
    log_prob: float
    """Of the span, nats."""


def iterate_belief(trace: Trace, query: SpanQuery, options: BeliefOptions) -> Iterator[BeliefProgress | Belief]:
    """`measure_belief`, told of after each checkpoint; the last thing is the Belief.

    Raises:
        ConfigError, CheckpointError, ShardError: as `measure_belief`.
    """
    where = options.checkpoints or trace.where
    opened = [open_checkpoint(address) for address in find_checkpoints(where, options.steps)]
    problems = _find_problems(where, opened, query)
    if problems:
        raise ConfigError(problems)
    controls, matching = _controls(trace, query, options.controls)
    queries = [query, *controls]
    folder = options.cache if options.cache is not None or not is_run(where) else Path(where) / KEPT
    kept, device = Kept(folder if options.keep else None), choose_device(options.device)
    measured = []
    for number, checkpoint in enumerate(opened, 1):
        measured.append(_measure(checkpoint, queries, kept, device))
        yield BeliefProgress(number, len(opened), measured[-1].step, sum(measured[-1].scores[0].log_probs_T))
    yield build_belief(trace, queries, matching, measured)


def _find_problems(where: str, opened: list[Checkpoint], query: SpanQuery) -> list[str]:
    steps = [checkpoint.step for checkpoint in opened]
    largest = max(*query.ids, *query.context_ids)
    problems = [
        f"{checkpoint.where} does not say its step, so that it has no place on the curve; give a run or its releases"
        for checkpoint in opened
        if checkpoint.step is None
    ]
    known = [step for step in steps if step is not None]
    if known != sorted(set(known)):
        problems.append(
            f"{where}: the steps of its checkpoints do not ascend ({', '.join(map(str, known))}), as where stages lie in one "
            "store; name those of one stage with --steps"
        )
    rows = vocab_rows(opened[-1].model)
    if largest >= rows:
        problems.append(
            f"{opened[-1].where}: the model has {rows} rows, the span or its context has id {largest}: the index is of another "
            "tokenizer; give the run's own"
        )
    return problems


def _controls(trace: Trace, query: SpanQuery, options: ControlOptions) -> tuple[list[SpanQuery], Matching | None]:
    if options.n == 0:
        return [], None
    controls, matching = choose_controls(trace.searcher, query, options)
    if matching.n_candidates == 0:
        raise ConfigError(
            f"{trace.where}: no document of its shards is held out, so there are no controls; tokenize with heldout_frac=0.01, "
            "say, before the next run, or ask for the curve alone with --controls 0"
        )
    if not controls:
        caliper = options.tolerance.caliper
        raise ConfigError(
            f"--controls={options.n}: of {matching.n_candidates} places in held-out documents none has {len(query.ids)} tokens "
            f"after {len(query.context_ids)} of context, about as many words, a unigram log-probability within "
            f"--caliper={caliper} nats per token of the span's, and at most --max-shared={matching.max_shared} tokens in a row "
            "that training documents have too; widen these, take a shorter span, or ask for the curve alone with --controls 0"
        )
    return controls, matching


def _measure(checkpoint: Checkpoint, queries: list[SpanQuery], kept: Kept, device: torch.device) -> Measured:
    """One checkpoint; no model is loaded for what is kept."""
    assert checkpoint.step is not None
    ids = [[list(map(int, query.context_ids)), list(map(int, query.ids))] for query in queries]
    key = [weights_identity(checkpoint), ids, checkpoint.seq_len, device.type]
    name = f"step{checkpoint.step:08d}-belief"
    found: dict[str, Any] | None = kept.values(name, key)
    if found is None:
        scores = score_spans(load_model(checkpoint, device), queries, checkpoint.seq_len, with_experts=[0])
        found = {"log_probs": [score.log_probs_T for score in scores], "choices": scores[0].choices_LTK.tolist()}
        kept.keep_values(name, key, found)
    model, state = checkpoint.model, checkpoint.state
    choices = [np.array(found["choices"], np.int64), *[np.zeros((0, 0, 0), np.int64)] * (len(queries) - 1)]
    scores = [SpanScore(log_probs, chosen) for log_probs, chosen in zip(found["log_probs"], choices, strict=True)]
    layers = [layer for layer in range(model.n_layers) if moe_of_layer(model, layer) is not None]
    n_experts = model.moe.n_experts if model.moe is not None else 0
    return Measured(checkpoint.step, int(state.get("tokens", 0)), state.get("lr"), layers, n_experts, scores)
