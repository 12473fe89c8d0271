"""What a counterfactual is of: documents to leave out, a span to ask for, and the checkpoints around the steps that saw them.

a run or releases, a document's id or a text  ->  Plan
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.catalog import find_folders
from checkpoints.publish.stores import Store
from checkpoints.release import MANIFEST, TRAINING, parse_revision, read_release
from checkpoints.verify.replay_run import set_shards
from checkpoints.verify.targets import ReleaseTarget, RunTarget, SeriesTarget, StepTarget, Target
from olmo_train.checkpoint import read_manifest, read_state
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import open_sources, source_corpus
from olmo_train.data.order import DataOrder, Sighting
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ConfigError, ShardError
from olmo_train.schema import read_yaml

LAST = "last"
"""--to: the newest checkpoint in reach."""


@dataclass(frozen=True)
class Document:
    """One document of a run's shards."""

    source: str
    """Of the run."""
    file: ShardFile
    ordinal: int
    id: str

    @property
    def span(self) -> tuple[int, int]:
        """Token offsets in the file."""
        return self.file.index.span(self.ordinal)

    def read(self) -> np.ndarray:
        """Its tokens."""
        return self.file.read(*self.span)


@dataclass(frozen=True)
class Training:
    """A run of which checkpoints are at hand, and the order of its data."""

    where: str
    target: RunTarget | SeriesTarget
    run: TrainConfig
    order: DataOrder
    corpora: list[Corpus]
    """Each once."""
    names: dict[int, str]
    """By step, what its checkpoint is called."""
    resumable: list[int]
    """Steps whose checkpoint has the optimizer's state."""

    @property
    def files(self) -> Iterator[tuple[str, ShardFile]]:
        """(source, file) of all it trains on."""
        return ((source.name, file) for source in self.order.sources for file in source.files)

    @cached_property
    def by_path(self) -> dict[Path, list[tuple[str, ShardFile]]]:
        """(source, file) by where the file lies: several if sources share it."""
        found: dict[Path, list[tuple[str, ShardFile]]] = {}
        for source, file in self.files:
            found.setdefault(file.path.resolve(), []).append((source, file))
        return found

    def find(self, document_id: str) -> list[Document]:
        """Every document with this id."""
        return [Document(source, file, n, document_id) for source, file in self.files for n in file.index.find(document_id)]

    def sightings(self, document: Document) -> list[Sighting]:
        """When steps up to the newest checkpoint saw it."""
        return self.order.sightings(document.file, *document.span, max(self.names))


@dataclass(frozen=True)
class Interval:
    """The steps to train again: after `start` up to `end`, both with a checkpoint."""

    start: int
    end: int
    sights: list[tuple[Document, Sighting]]
    """Of what is left out, within it, by step and row."""
    n_before: int
    """Rows that had seen it up to `start`."""

    @property
    def n_steps(self) -> int:
        """To train."""
        return self.end - self.start


# ---- the run ------------------------------------------------------------------------------------------------------------


def open_training(target: Target, where: str, start: str | None, shards: Mapping[str, Path]) -> tuple[Training, str | None]:
    """The run behind a target, and where to start if the target or `start` says so (a step or the name of a release).

    Raises:
        ConfigError: nothing is saved, or its shards are not at hand. CheckpointError: a checkpoint is damaged.
    """
    if isinstance(target, StepTarget | ReleaseTarget):
        if start is not None:
            raise ConfigError(f"--from={start} goes with a run or a store of releases; {where} is where the replay starts")
        if isinstance(target, StepTarget) and not (target.path.parent.parent / "config.yaml").is_file():
            raise ConfigError(f"{where} is no step folder of a run (no config.yaml two folders up); give the folder of a run")
        start = target.path.name if isinstance(target, StepTarget) else target.revision
        target = RunTarget(target.path.parent.parent) if isinstance(target, StepTarget) else SeriesTarget(target.store)
    if isinstance(target, RunTarget):
        folders = dict(find_folders(target.path))
        run, names = read_yaml(target.path / "config.yaml", TrainConfig), {step: str(step) for step in folders}
        resumable = [step for step, folder in folders.items() if read_manifest(folder)["tensors"].get("optim")]
        key, manifests = read_state(folders[max(folders)])["data"]["order"], target.path / "data"
    else:
        run, names, resumable, key = _of_releases(target.store, start)
        manifests = None
    if run.data.without is not None:
        raise ConfigError(
            f"{where} leaves documents out already (data.without); what would be without others is to be asked of a run with all"
        )
    order, corpora = open_order(run, shards, key, manifests)
    return Training(where, target, run, order, corpora, names, resumable), start


def _of_releases(store: Store, start: str | None) -> tuple[TrainConfig, dict[int, str], list[int], dict[str, Any]]:
    """Config, names by step, steps with the optimizer's state, and the order's key of one stage: that of `start`, or the last."""
    places = {name: place for name in store.revisions() if (place := parse_revision(name)) is not None}
    if not places:
        raise ConfigError(f"{store.where} has no releases, so there is nothing to train again")
    stage = places.get(start or "", max(places.values()))[0]
    names = dict(sorted((step, name) for name, (of_stage, step, _) in places.items() if of_stage == stage))
    releases = {step: read_release(store.read(name, MANIFEST), f"{store.where}: {name}") for step, name in names.items()}
    newest = max(names)
    with tempfile.TemporaryDirectory() as folder:  # its owner reads files
        file = Path(folder) / "config.yaml"
        file.write_bytes(store.read(names[newest], f"{TRAINING}/config.yaml"))
        run = read_yaml(file, TrainConfig)
    return run, names, [step for step, release in releases.items() if release.has_optimizer], releases[newest].data["order"]


def open_order(
    run: TrainConfig, shards: Mapping[str, Path], key: Mapping[str, Any], manifests: Path | None
) -> tuple[DataOrder, list[Corpus]]:
    """The order of a run and its corpora, checked against the order's `key`. `manifests`: those of published shards; None: of a
    release, which has none that lie beside tokens.

    Raises:
        ConfigError: the shards are not at hand, or are others.
    """
    problems = set_shards(run, shards, key)
    problems += [
        f"data.sources.{name}: the release does not have the shards; give --shards {name}=FOLDER with the shards of the run"
        for name, source in run.data.sources.items()
        if source.path is None and manifests is None
    ]
    if problems:
        raise ConfigError(problems)
    folder = manifests or Path()
    try:
        order = DataOrder(open_sources(run.data, folder), run.seed, run.data.seq_len, run.data.global_batch_size)
        corpora = {
            corpus.folder.resolve(): corpus for name in run.data.sources for corpus in [source_corpus(run.data, name, folder)]
        }
    except ShardError as error:
        raise ConfigError(f"{error}; give --shards NAME=FOLDER with the shards of the run") from error
    if order.key["sha256"] != key["sha256"]:
        different = ", ".join(name for name in key if name != "sha256" and key[name] != order.key[name])
        raise ConfigError(f"the order of data is not that of the checkpoints ({different}); restore config.yaml and the shards")
    return order, list(corpora.values())


# ---- the document -------------------------------------------------------------------------------------------------------


def find_document(training: Training, document_id: str, blocked: frozenset[str]) -> list[Document]:
    """The documents with an id that training could see.

    Raises:
        ConfigError: there is none; says why.
    """
    found = [] if document_id in blocked else training.find(document_id)
    if not found:
        raise ConfigError(
            f"--document={document_id}: no document of the run has this id; `olmo data batch {training.where} 1` shows some"
        )
    trained = [document for document in found if document.file.index.train_position(document.span[0]) is not None]
    if not trained:
        raise ConfigError(f"--document={document_id} is held out: no step saw it, so leaving it out changes nothing")
    return trained


# ---- the checkpoints ----------------------------------------------------------------------------------------------------


def choose_interval(training: Training, left_out: list[Document], start: str | None, end: str | None, max_steps: int) -> Interval:
    """The newest checkpoint before the first sighting (after `start`, if given) and the first one that includes it, or `end`.

    Raises:
        ConfigError: no step saw the documents, there are no such checkpoints, or there are too many steps between them.
    """
    sights = [(document, seen) for document in left_out for seen in training.sightings(document)]
    sights.sort(key=lambda pair: (pair[1].step, pair[1].row))
    steps, saved = [seen.step for _, seen in sights], sorted(training.names)
    name = left_out[0].id
    if not steps:
        raise ConfigError(f"document {name}: no step up to the newest checkpoint, step {saved[-1]}, saw it; name another")
    if start is not None:
        first = _named(training, "--from", start)
        later = [step for step in steps if step > first]
        if not later:
            raise ConfigError(
                f"--from={start}: no step after {first} up to {saved[-1]} saw document {name}; seen in {_list(steps)}; give an "
                "earlier checkpoint"
            )
        if first not in training.resumable:
            raise ConfigError(
                f"--from={start} holds no optimizer state, so training cannot go on from it; with it: "
                f"{_list(training.resumable) or 'none'}"
            )
    else:
        before = [step for step in training.resumable if step < steps[0]]
        if not before:
            raise ConfigError(
                f"document {name} was first seen in step {steps[0]}, and no checkpoint with the optimizer state comes before; "
                f"there are: {_list(training.resumable) or 'none'}; look at a later sighting with --from (seen in {_list(steps)})"
            )
        first, later = max(before), steps
    last = _end(training, first, later[0], end, max_steps)
    if last - first > max_steps:
        raise ConfigError(
            f"from step {first} to {last} are {last - first} steps of {training.run.data.global_batch_size:,} tokens, more than "
            f"--max-steps={max_steps}; raise it if this machine can train so many, or choose nearer checkpoints with --from, --to"
        )
    inside = [(document, seen) for document, seen in sights if first < seen.step <= last]
    return Interval(first, last, inside, sum(step <= first for step in steps))


def _end(training: Training, start: int, sighted: int, end: str | None, max_steps: int) -> int:
    later = [step for step in sorted(training.names) if step >= sighted]
    if end is None:
        return later[0]  # sightings are looked for up to the newest checkpoint
    if end == LAST:
        return max([later[0], *(step for step in later if step - start <= max_steps)])
    last = _named(training, "--to", end)
    if last not in later:
        raise ConfigError(
            f"--to={end}: between step {start} and {last} no step saw the document; the first that did is step {sighted}; "
            f"give one of {_list(later)}"
        )
    return last


def _named(training: Training, flag: str, said: str) -> int:
    by_name = {name: step for step, name in training.names.items()}
    digits = said.removeprefix("step")
    step = by_name.get(said, int(digits) if digits.isdecimal() else -1)
    if step not in training.names:
        names = list(training.names.values())
        raise ConfigError(f"{flag}={said} is not a checkpoint of {training.where}; there are: {', '.join(names)}")
    return step


def _list(steps: list[int]) -> str:
    """At most ten of them."""
    different = list(dict.fromkeys(steps))
    return ", ".join(map(str, different[:10])) + (", ..." if len(different) > 10 else "")
