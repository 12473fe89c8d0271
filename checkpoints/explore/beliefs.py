"""How probable a span was at each checkpoint, told of while it is measured; kept in memory, never on disk."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from threading import Lock
from typing import Any

from checkpoints.explore.generation import Turns
from checkpoints.explore.requests import BeliefRequest
from checkpoints.inspect.curves_file import finite
from checkpoints.trace.belief import BeliefOptions, iterate_belief
from checkpoints.trace.controls import ControlOptions
from checkpoints.trace.queries import Context
from checkpoints.trace.results import Belief
from checkpoints.trace.span_choice import SpanChoice, choose_query
from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.opening import Trace
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError

KEPT = 32
"""Results in memory, those asked for last."""
N_CONTROLS = 32


class Beliefs:
    """Measures spans of one trace."""

    def __init__(self, turns: Turns, device: Device) -> None:
        self._turns, self._device = turns, device
        self._kept: OrderedDict[Any, dict[str, Any]] = OrderedDict()
        self._lock = Lock()

    def measure(self, trace: Trace, request: BeliefRequest, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """Events of one measurement: waiting, progress (number, n, step), done (belief, notes). What is wrong with the request is
        raised before the first.

        Raises:
            ConfigError: there is no such span, place or context.
        """
        context = None if request.context is None else Context(request.context)
        query = choose_query(trace, SpanChoice(request.text, request.span, context, request.place))
        return self._events(trace, query, steps)

    def _events(self, trace: Trace, query: SpanQuery, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        key = (tuple(query.ids), tuple(query.context_ids), query.place, steps, trace.blocked)
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            yield from self._turns.wait()
            try:
                notes: list[str] = []
                for progress in self._measured(trace, query, steps, notes):
                    if isinstance(progress, Belief):
                        found = {"belief": finite(asdict(progress)), "notes": notes}
                    else:
                        yield {"event": "progress", **finite(asdict(progress))}
            finally:
                self._turns.leave()
            assert found is not None
            self._keep(key, found)
        yield {"event": "done", **found}

    def _measured(self, trace: Trace, query: SpanQuery, steps: tuple[int, ...], notes: list[str]) -> Iterator[Any]:
        """With controls; where there are none, without, and the reason in `notes`."""
        options = BeliefOptions(steps, ControlOptions(N_CONTROLS), device=self._device, keep=False)
        has_begun = False
        try:
            for progress in iterate_belief(trace, query, options):
                has_begun = True
                yield progress
        except ConfigError as error:
            if has_begun:
                raise
            bare = BeliefOptions(steps, ControlOptions(0), device=self._device, keep=False)
            yield from iterate_belief(trace, query, bare)
            notes.append(f"There are no controls: {error}")

    def _keep(self, key: Any, found: dict[str, Any]) -> None:
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)


def spread(steps: list[int], most: int) -> tuple[int, ...]:
    """All of them, or `most` spread over them, the first and the last among them."""
    if len(steps) <= most:
        return tuple(steps)
    return tuple(steps[round(n * (len(steps) - 1) / max(1, most - 1))] for n in range(most))
