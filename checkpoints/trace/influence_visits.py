"""Which documents are compared with a span at which checkpoints: the visits of training, or those that the user names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.catalog import find_folders
from checkpoints.inspect.places import is_one, is_run
from checkpoints.opening import Checkpoint
from checkpoints.release import TRAINING
from checkpoints.run_files import read_lines
from checkpoints.trace.influence_examples import Example, document_example, row_example
from checkpoints.trace.influence_results import InfluenceOptions
from data_tools.trace.answer import Answer, FoundDocument, FoundSpan, Mark, Sight, Sighted
from data_tools.trace.searcher import Searcher
from data_tools.trace.when import History, find_releases
from olmo_train.errors import ConfigError
from olmo_train.optim.schedule import multiplier

ONE = -1
"""In the place of a step: the only checkpoint there is."""
CLIP_EPS = 1e-6
"""Of torch.nn.utils.clip_grad_norm_, which training follows."""


@dataclass(frozen=True)
class Visit:
    """One document, to be measured at one checkpoint."""

    checkpoint: int
    """Key of the places that checkpoints are opened from."""
    step: int | None
    """That saw it; None: as if the next step did."""
    row: int | None
    example: Example


@dataclass(frozen=True)
class Candidate:
    """A document of the shortlist and its visits; none where training never learned from it."""

    document: FoundDocument
    bm25_rank: int
    learned_at: list[int]
    """Steps that learned from rows with the span."""
    visits: list[Visit]


@dataclass(frozen=True)
class Plan:
    """All there is to measure."""

    candidates: list[Candidate]
    cautions: list[str]

    @property
    def checkpoints(self) -> list[int]:
        """Needed, oldest first."""
        return sorted({visit.checkpoint for candidate in self.candidates for visit in candidate.visits})


def find_places(where: str, run_name: str, options: InfluenceOptions) -> dict[int, str]:
    """What `open_checkpoint` takes, by step; of one checkpoint, whose step may be unknown, by ONE.

    Raises:
        ConfigError: there are no weights, or not the steps that were asked for.
    """
    if is_one(where):
        if options.steps is not None:
            raise ConfigError(f"--steps goes with the folder of a run or of releases; {where} is one checkpoint already")
        return {ONE: where}
    found = dict(find_folders(Path(where))) if is_run(where) else find_releases(Path(where), run_name)
    if not found:
        raise ConfigError(f"{where} has no weights; influence needs the folder of a run, of a release or of several")
    places = {step: str(folder) for step, folder in sorted(found.items())}
    missing = sorted(set(options.steps or ()) - places.keys())
    if missing:
        have = ", ".join(map(str, places))
        raise ConfigError(f"--steps={','.join(map(str, missing))} not saved in {where}; there are {have}")
    return places


def plan_visits(answer: Answer, span: FoundSpan, shortlist: "Shortlist", is_single: bool, options: InfluenceOptions) -> Plan:
    """The visits of each document of the span's shortlist."""
    by_number = {document.number: document for document in answer.documents}
    candidates, cautions = [], []
    n_early = n_unlearned = 0
    chosen = list(options.steps or ()) or ([ONE] if is_single else None)
    for rank, number in enumerate(span.documents[: options.max_documents], 1):
        document = by_number[number]
        sighted = _all_sighted(document, span.number)
        if chosen is not None:
            example = shortlist.example(span, sighted)
            visits = [Visit(step, None, None, example) for step in chosen]
        else:
            visits, early = shortlist.visits(sighted, 1 if options.precondition == "adam" else 0)
            n_early += early
            n_unlearned += not visits
        learned = {sight.step for each in sighted for sight in each.sights if sight.mark == Mark.LEARNED}
        candidates.append(Candidate(document, rank, sorted(learned), visits))
    if n_early:
        what = "with second moments " if options.precondition == "adam" else ""
        cautions.append(f"Visits that came before the first checkpoint {what}and are left out: {n_early}.")
    if n_unlearned:
        cautions.append(f"Documents without a visit that can be measured, whose influence is given as 0: {n_unlearned}.")
    if len(span.documents) > options.max_documents:
        cautions.append(f"Only the first {options.max_documents} of {len(span.documents)} documents by BM25 were compared.")
    return Plan(candidates, cautions)


def _all_sighted(document: FoundDocument, span: int) -> list[Sighted]:
    """Of a span in a document and in its copies, its own place first."""
    snippets = [snippet for snippet in document.snippets if snippet.span == span]
    own = [snippet.sighted for snippet in snippets if snippet.sighted is not None]
    return own + [sighted for snippet in snippets for sighted in snippet.copies_sighted]


class Shortlist:
    """Reads the documents of an answer as examples."""

    def __init__(self, searcher: Searcher, history: History) -> None:
        self.searcher, self.history = searcher, history

    def visits(self, sighted: list[Sighted], first: int) -> tuple[list[Visit], int]:
        """(visits that training learned from, how many came before any checkpoint from step `first` on)."""
        visits: dict[tuple[int, int, int], Visit] = {}
        early = 0
        for sight in sorted((s for each in sighted for s in each.sights), key=lambda s: (s.step, s.row, s.column_start)):
            if sight.mark != Mark.LEARNED:
                continue
            if sight.checkpoint_before is None or sight.checkpoint_before < first:
                early += 1
                continue
            example = self._row(sight)
            visit = Visit(sight.checkpoint_before, sight.step, sight.row, example)
            visits.setdefault((sight.step, sight.row, example.start), visit)
        return list(visits.values()), early

    def example(self, span: FoundSpan, sighted: list[Sighted]) -> Example:
        """The row with most of the span, seen or still to be seen; where there is none, the document alone."""
        sights = [sight for each in sighted for sight in each.sights]
        if sights:
            return self._row(max(sights, key=lambda s: s.token_end - s.token_start))
        place = sighted[0].place
        return document_example(self.searcher.file(place), place, span.end - span.start, self.history.run.data.seq_len)

    def _row(self, sight: Sight) -> Example:
        return row_example(self.history.order, self.history.run.data, sight.step, sight.row, sight.column_start)


# ---- weights -------------------------------------------------------------------------------------------------------------


class StepSizes:
    """What the trainer multiplied the sum of a batch's gradients by, from its metrics; where it has none, from its config."""

    def __init__(self, history: History) -> None:
        folder = history.folder / TRAINING if history.is_release else history.folder
        self._lines: dict[int, dict[str, Any]] = {line["step"]: line for line in read_lines(folder / "metrics.jsonl")}

    def weight(self, checkpoint: Checkpoint, step: int | None) -> float | None:
        """Learning rate times clipping by predicted tokens of `step`, or of the step after the checkpoint; None: unknown.

        Of a step without metrics no clipping and no masked rows are assumed.
        """
        run = checkpoint.run
        if run is None or checkpoint.step is None:
            return None
        at = checkpoint.step + 1 if step is None else step
        line = self._lines.get(at, {}) if step is not None else {}
        batch = run.data.global_batch_size
        lr = line.get("lr")
        if lr is None:
            peak = checkpoint.state.get("peak_lr") or run.optim.lr or 0.0
            lr = peak * multiplier(run.optim.schedule, at * batch, run.max_tokens)
        targets = line.get("targets") or batch // run.data.seq_len * (run.data.seq_len - 1)
        norm, limit = line.get("grad_norm"), run.optim.max_grad_norm
        clip = 1.0 if norm is None or limit is None else min(1.0, limit / (norm + CLIP_EPS))
        return float(lr) * clip / targets
