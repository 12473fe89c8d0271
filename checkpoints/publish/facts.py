"""What a model card is written from: a run and one of its steps, read into one place."""

from dataclasses import dataclass, replace
from typing import Any

from checkpoints.publish.plots import History, Plot
from checkpoints.release import Release
from checkpoints.run_files import Evaluation
from olmo_train.config.train import TrainConfig
from olmo_train.data.manifest import FileEntry
from olmo_train.data.order import DataOrder, Source
from olmo_train.data.shards import Corpus


@dataclass(frozen=True)
class Facts:
    """Everything a card says; all of it can be published."""

    release: Release
    """Whole but for `files`."""
    run: TrainConfig
    state: dict[str, Any]
    """state.json of the step."""
    starts: list[dict[str, Any]]
    """Of provenance.json, as published."""
    corpora: dict[str, Corpus]
    """By the source's name; only their manifests are read."""
    order: DataOrder
    evaluations: list[Evaluation]
    """Of this step and the ones before it."""
    history: History
    plots: list[Plot]
    license: str
    has_tokenizer: bool


@dataclass(frozen=True)
class Start:
    """One start of the run and the steps that came of it."""

    first: int
    last: int
    facts: dict[str, Any]

    @property
    def git(self) -> dict[str, Any] | None:
        """{commit, has_changes}; None outside a checkout."""
        return self.facts.get("git")


def effective_starts(starts: list[dict[str, Any]], step: int) -> list[Start]:
    """The starts whose steps stand in step `step`; those whose work was lost are left out. Of step 0 it is the last one."""
    found: list[Start] = []
    last = step
    for facts in reversed(starts):
        if facts["from_step"] < last or (step == 0 and not found):
            found.append(Start(facts["from_step"] + 1 if step else 0, last, facts))
            last = facts["from_step"]
    return found[::-1]


@dataclass(frozen=True)
class SourceFacts:
    """One source of the mixture at a step."""

    name: str
    part: str | None
    """One of several sources that the manifest itself tells apart; None: all that is drawn from."""
    documents: int
    """Held-out ones included, as are `tokens`."""
    tokens: int
    heldout_documents: int
    heldout_tokens: int
    heldout_frac: float
    weight: float | None
    share: float | None
    """Of the batch; None: by size."""
    epochs: float | None
    """Passes over the training tokens up to this step; None for a part, which is drawn with the others."""
    fingerprint: str
    has_hashes: bool
    """The manifest knows the SHA-256 of every file; else its fingerprint covers counts alone."""


def source_facts(facts: Facts) -> list[SourceFacts]:
    """The sources of the mixture in the order of the config, each followed by its parts."""
    order, drawn = facts.order, facts.order.drawn(facts.release.step)
    sizes = order.instances_per_epoch()
    weights = sum(source.weight or 0.0 for source in order.sources)
    rows = []
    for source in order.sources:
        pool = source.name if source.weight is not None else next(iter(sizes))
        share = source.weight / weights if source.weight is not None else None
        entries = [file.entry for file in source.files]
        names = list(dict.fromkeys(entry.source for entry in entries))
        whole = _counted(source, None, entries, facts.corpora[source.name].manifest.heldout_frac)
        rows.append(replace(whole, weight=source.weight, share=share, epochs=drawn[pool] / sizes[pool]))
        for part in names if len(names) > 1 else []:
            rows.append(_counted(source, part, [entry for entry in entries if entry.source == part], whole.heldout_frac))
    return rows


def _counted(source: Source, part: str | None, entries: list[FileEntry], heldout_frac: float) -> SourceFacts:
    return SourceFacts(
        source.name, part, sum(e.documents for e in entries), sum(e.tokens for e in entries),
        sum(e.heldout_documents for e in entries), sum(e.heldout_tokens for e in entries), heldout_frac, None, None, None,
        source.fingerprint, all(e.sha256 is not None for e in entries),
    )  # fmt: skip
