"""What one explorer holds: the run, its training data if that is indexed, and the models in memory. It writes nothing."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from checkpoints.explore.beliefs import Beliefs, spread
from checkpoints.explore.config import ExploreConfig
from checkpoints.explore.documents import WindowQuery, clip, read_window
from checkpoints.explore.generation import Continuation, Models, Turns, continue_text
from checkpoints.explore.requests import BeliefRequest, GenerateRequest, TraceRequest
from checkpoints.explore.timeline import Timeline
from checkpoints.inspect.curves_file import finite
from checkpoints.opening import tokenizer_of
from data_tools.trace.opening import Trace, open_trace
from data_tools.trace.snippets import SnippetReader
from data_tools.trace.trace_text import trace_text
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError, ShardError
from olmo_train.parallel.mesh import choose_device
from olmo_train.schema import read_yaml
from olmo_train.tokenizer import Tokenizer

WARM_TOKENS = 32


class Session:
    """Opened for as long as the server runs. Threads may ask together: computing takes turns, and so does searching."""

    def __init__(self, folder: Path, config: ExploreConfig) -> None:
        """Raises:
        ConfigError: there is no such run, or nothing is saved of it.
        """
        self.folder, self.config = folder, config
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"run={folder} is not the folder of a run (it has no config.yaml); e.g. run=runs/first")
        self.run = read_yaml(folder / "config.yaml", TrainConfig)
        self.timeline = Timeline(folder, self.run)
        newest = max(self.timeline.steps().items())[1]
        device = choose_device(config.device)
        self.turns = Turns()
        self.models = Models(folder / "steps", device, config.limits.models)
        self._beliefs = Beliefs(self.turns, config.device)
        self._searching = Lock()
        self.trace: Trace | None = None
        self.trace_problem: str | None = None
        try:
            self.trace = open_trace(str(folder), config.trace)
            self.snippets = SnippetReader(self.trace.searcher.tokenizer, self.trace.searcher.vocab_size)
        except (ConfigError, ShardError) as error:
            self.trace_problem = str(error).replace(" indexes=[", " trace.indexes=[")
        self.tokenizer, self.tokenizer_problem = self._open_tokenizer(newest)

    def _open_tokenizer(self, step: Path) -> tuple[Tokenizer | None, str | None]:
        path = tokenizer_of(step, self.run)
        if path is None:
            reason = "the shards of the run, which name its tokenizer, cannot be read"
            return None, f"{self.folder}: {reason}; no text can be generated"
        try:
            return Tokenizer(path), None
        except ConfigError as error:
            return None, str(error)

    def notes(self) -> list[str]:
        """What is missing, for the terminal."""
        missing = [] if self.trace_problem is None else [f"texts cannot be traced: {self.trace_problem}"]
        return missing + ([] if self.tokenizer_problem is None else [self.tokenizer_problem])

    # ---- the run ---------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """The timeline, what can be asked, and how much."""
        indexed = None
        if self.trace is not None:
            searcher = self.trace.searcher
            sources = sorted({file.entry.source for corpus in searcher.corpora for file in corpus.files})
            indexed = {"n_tokens": searcher.n_tokens, "sources": sources, "rank": self.trace.config.spans.rank.value}
        return self.timeline.read() | {
            "trace": indexed,
            "trace_problem": self.trace_problem,
            "generate_problem": self.tokenizer_problem,
            "limits": asdict(self.config.limits),
        }

    # ---- text out --------------------------------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest) -> Iterator[dict[str, Any]]:
        """Events of a generation; what is wrong with the request is raised before the first.

        Raises:
            ConfigError: there is no such step, or the prompt does not fit.
        """
        if self.tokenizer is None:
            raise ConfigError(self.tokenizer_problem or "")
        limits = self.config.limits
        problems = self._step_problems([request.step])
        if request.max_tokens > limits.max_tokens:
            problems.append(f"max_tokens={request.max_tokens} must be at most limits.max_tokens={limits.max_tokens}")
        if problems:
            raise ConfigError(problems)
        context = self.run.data.seq_len
        ids = [self.tokenizer.eos_id, *self.tokenizer.encode(request.prompt)]
        if len(ids) > context:
            raise ConfigError(
                f"the prompt has {len(ids) - 1} tokens, the model sees {context} at a time, an end of text among them; shorten it"
            )
        return continue_text(Continuation(ids, context, request), self.models, self.turns, self.tokenizer)

    def _step_problems(self, steps: list[int]) -> list[str]:
        saved = self.timeline.steps()
        return [f"step={step} is not saved; saved: {', '.join(map(str, saved))}" for step in steps if step not in saved]

    # ---- text in ---------------------------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Search for the beginning of the corpus: the first search compiles. What is wrong is told to who asks."""
        if self.trace is not None:
            file = self.trace.searcher.corpora[0].files[0]
            with suppress(ConfigError, ShardError):
                text = self.trace.searcher.tokenizer.decode(file.read(0, min(WARM_TOKENS, file.entry.tokens)))
                self.answer(TraceRequest(text=text))

    def answer(self, request: TraceRequest) -> dict[str, Any]:
        """The Answer to a text, as JSON.

        Raises:
            ConfigError: there is no index.
        """
        with self._searching:
            answer = trace_text(self.need_trace(), request.text, request.prompt)
        values = asdict(answer)
        for document in values["documents"]:
            for name in ("id", "source", "src", "url", "metadata", "copies"):
                document[name] = clip(document[name])
        return dict(finite(values))

    def window(self, query: WindowQuery) -> dict[str, Any]:
        """Part of a document.

        Raises:
            ConfigError: there is no index, or no such place.
        """
        with self._searching:
            trace = self.need_trace()
            trace.refresh()
            return dict(finite(read_window(trace, self.snippets, query)))

    def believe(self, request: BeliefRequest) -> Iterator[dict[str, Any]]:
        """Events of a measurement; what is wrong with the request is raised before the first.

        Raises:
            ConfigError: there is no index, no such step, span or place.
        """
        trace, limit = self.need_trace(), self.config.limits.steps
        problems = self._step_problems(request.steps or [])
        if request.steps is not None and len(request.steps) > limit:
            problems.append(f"steps: {len(request.steps)} are asked for, at most limits.steps={limit} are measured")
        if problems:
            raise ConfigError(problems)
        steps = tuple(sorted(set(request.steps))) if request.steps is not None else spread(list(self.timeline.steps()), limit)
        with self._searching:
            trace.refresh()
            return self._beliefs.measure(trace, request, steps)

    def need_trace(self) -> Trace:
        """Raises:
        ConfigError: there is no index; says how to build one.
        """
        if self.trace is None:
            raise ConfigError(f"texts cannot be traced: {self.trace_problem}")
        return self.trace
