"""When training saw a place of the shards: the run's order of data, what became of each step, and the checkpoints around it.

folder of a run, or of releases -> History;  place of a span -> Sighted
"""

import bisect
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data_tools.trace.answer import Mark, Place, Sight, Sighted
from data_tools.trace.ledger import Ledger
from data_tools.trace.searcher import Searcher
from olmo_train.config.train import TrainConfig
from olmo_train.data.manifest import manifest_path
from olmo_train.data.order import DataOrder, Sighting, Source
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError
from olmo_train.schema import read_yaml
from olmo_train.step_folder import list_steps

TRAINING = "training"
"""Folder of a release that holds what training wrote (docs/release.md)."""
_REVISION = re.compile(r"stage\d+-step(\d+)-tokens\d+B")


class History:
    """A run, as far as it went: which steps saw a place, and what became of them."""

    def __init__(self, folder: Path, run: TrainConfig, opened: list[tuple[Source, Corpus]], releases: dict[int, str]) -> None:
        self.folder, self.run, self.releases = folder, run, dict(sorted(releases.items()))
        self.order = DataOrder([source for source, _ in opened], run.seed, run.data.seq_len, run.data.global_batch_size)
        self.is_release = is_release(folder)
        self.ledger = Ledger((folder / TRAINING if self.is_release else folder) / "data.jsonl")
        self.last_step = 0
        """Trained so far."""
        self.saved: list[int] = []
        """Steps with a checkpoint: step folders of the run, or releases."""
        self._files: dict[tuple[str, int], list[ShardFile]] = {}
        self._steps_stamp = 0
        for source, corpus in opened:
            for number, file in enumerate(corpus.files):
                if file in source.files:
                    self._files.setdefault((source.fingerprint, number), []).append(file)
        self.refresh()

    @staticmethod
    def open(folder: str | Path, corpora: Sequence[Corpus] = (), releases: dict[int, str] | None = None) -> "History":
        """Open the folder of a run or of a release. Shards are taken from `corpora` (those of opened indexes) where these are the
        ones that the run was trained on, whatever path its config has; else from the paths of the config.

        Raises:
            ConfigError: there is no config. ShardError: shards are missing, or not the ones that the run was trained on.
        """
        folder = Path(folder)
        run = read_run(folder)
        state = _newest_state(folder)
        trained_on = state["data"]["order"] if state is not None else {}
        history = History(folder, run, _open_sources(folder, run, trained_on, corpora), releases or {})
        key = history.order.key
        different = [name for name in trained_on if name != "sha256" and trained_on[name] != key[name]]
        if different:
            told = "; ".join(f"{name} was {trained_on[name]}, is {key[name]}" for name in different)
            raise ShardError(
                f"{folder}: this is not the order of data that the run was trained in: {told}; restore config.yaml and the shards"
            )
        return history

    @property
    def total_steps(self) -> int:
        """Of the whole run, as its config has it."""
        return self.run.max_tokens // self.run.data.global_batch_size

    def refresh(self) -> None:
        """See how far the run has come since; cheap if it has not."""
        self.ledger.refresh()
        if self.is_release:
            if not self.saved:
                state = _newest_state(self.folder)
                self.last_step = int(state["step"]) if state else 0
                self.saved = sorted({self.last_step, *self.releases})
            return
        steps = self.folder / "steps"
        stamp = steps.stat().st_mtime_ns if steps.is_dir() else 0
        if stamp != self._steps_stamp:
            self.saved, self._steps_stamp = [step for step, _ in list_steps(steps)], stamp
        self.last_step = max([self.ledger.last_step, *self.saved[-1:]])

    def files_of(self, searcher: Searcher, place: Place) -> list[ShardFile]:
        """The run's own token files for the file of a place: none if it does not train on it, several if sources share it."""
        return self._files.get((_fingerprint(searcher.corpora[place.corpus]), place.file), [])

    def sighted(self, searcher: Searcher, place: Place, n_tokens: int) -> Sighted:
        """Every row of every step that sees one of the `n_tokens` tokens at a place, in one document."""
        return self.sighted_many(searcher, [place], [n_tokens])[0]

    def sighted_many(self, searcher: Searcher, places: Sequence[Place], n_tokens: Sequence[int]) -> list[Sighted]:
        """The same for many places, in one evaluation of the order."""
        files = [self.files_of(searcher, place) for place in places]
        spans = [
            (file, place.offset, place.offset + n)
            for place, n, same in zip(places, n_tokens, files, strict=True)
            for file in same
        ]
        found = iter(self.order.sightings_of(spans, self.total_steps))
        return [
            self._sighted(searcher, place, len(same), [s for _ in same for s in next(found)])
            for place, same in zip(places, files, strict=True)
        ]

    def _sighted(self, searcher: Searcher, place: Place, n_files: int, found: list[Sighting]) -> Sighted:
        is_heldout = searcher.file(place).index.train_position(place.offset) is None
        is_left_out = bool(found) and self._leaves_out(searcher.file(place), place.offset)
        sights = sorted((self._sight(s, is_left_out) for s in found), key=lambda s: (s.step, s.row, s.token_start))
        steps = {step for s in sights for step in (s.step, s.checkpoint_before, s.checkpoint_after)}
        named = {step: name for step, name in self.releases.items() if step in steps}
        return Sighted(place, n_files > 0, is_heldout, sights, named)

    def _leaves_out(self, file: ShardFile, offset: int) -> bool:
        """Whether the run leaves out the document at an offset."""
        without = self.run.data.without
        if without is None:
            return False
        return file.index.row(file.index.documents_between(offset, offset + 1)[-1]).id in without.documents

    def _mark(self, seen: Sighting, is_left_out: bool) -> Mark:
        without = self.run.data.without
        if seen.step > self.last_step:
            return Mark.FUTURE
        if is_left_out and without is not None and seen.step > without.after_step:
            return Mark.LEFT_OUT
        return self.ledger.mark(seen.step, seen.row)

    def _sight(self, seen: Sighting, is_left_out: bool) -> Sight:
        at = bisect.bisect_left(self.saved, seen.step)
        first = seen.offset_start + (seen.column_start == 0)
        return Sight(
            seen.step,
            seen.row,
            seen.epoch,
            seen.column_start,
            seen.column_end,
            seen.offset_start,
            seen.offset_end,
            first,
            self._mark(seen, is_left_out),
            self.saved[at - 1] if at else None,
            self.saved[at] if at < len(self.saved) else None,
            next((name for step, name in self.releases.items() if step >= seen.step), None),
        )


@lru_cache(maxsize=64)
def _fingerprint(corpus: Corpus) -> str:
    """Kept: it is a hash over all files of the manifest."""
    return corpus.manifest.fingerprint()


# ---- runs and releases ---------------------------------------------------------------------------------------------------


def is_release(folder: Path) -> bool:
    """Whether a folder is a release: it has the files of training in a folder of their own."""
    return (folder / TRAINING / "config.yaml").is_file()


def read_run(folder: Path) -> TrainConfig:
    """The config of a run or of a release.

    Raises:
        ConfigError: there is none.
    """
    return read_yaml((folder / TRAINING if is_release(folder) else folder) / "config.yaml", TrainConfig)


def shard_folders(folder: Path, run: TrainConfig) -> dict[str, Path]:
    """By source, the folder of its manifest, whether it is there or not.

    A relative path is looked up from here, then from where the run was begun, then (releases) beside the release's own files.
    """
    found = {}
    for name, source in run.data.sources.items():
        if source.path is None:
            places = [folder / "data" / name]
        else:
            path = Path(source.path)
            places = [path, *([_begun_in(folder, run) / path] if not path.is_absolute() else [])]
        if is_release(folder):
            quoted = quote(name, safe=" ")
            places += [folder / TRAINING / "data" / (f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted)]
        there = [place for place in places if manifest_path(place).is_file()]
        found[name] = manifest_path((there or places)[0]).parent
    return found


def _begun_in(folder: Path, run: TrainConfig) -> Path:
    """Where relative paths of a run start: above its `run_dir`, if the folder still lies there."""
    parts, tail = folder.resolve().parts, Path(run.run_dir).parts
    is_there = not Path(run.run_dir).is_absolute() and tail and parts[-len(tail) :] == tail
    return Path(*parts[: -len(tail)]) if is_there else Path()


def _open_sources(
    folder: Path, run: TrainConfig, trained_on: dict[str, Any], corpora: Sequence[Corpus]
) -> list[tuple[Source, Corpus]]:
    """Every source with its corpus, each opened for itself: the order tells files apart by identity.

    Raises:
        ShardError: says all sources that cannot be opened.
    """
    fingerprints = {source["name"]: source["manifest"] for source in trained_on.get("sources", [])}
    at_hand = {corpus.manifest.fingerprint(): corpus.folder for corpus in corpora}
    opened, problems = [], []
    for name, shards in shard_folders(folder, run).items():
        source = run.data.sources[name]
        try:
            corpus = Corpus(at_hand.get(fingerprints.get(name, ""), shards))
            files = tuple(file for file in corpus.files if source.select in (None, file.entry.source))
            if not files:
                have = ", ".join(corpus.manifest.sources)
                raise ShardError(f"select={source.select} is not a source of {corpus.folder}; it has {have}")
            opened.append((Source(name, source.weight, files, corpus.manifest.fingerprint()), corpus))
        except ShardError as error:
            problems.append(f"data.sources.{name}: {error}")
    if problems:
        raise ShardError("\n".join(problems))
    return opened


def _newest_state(folder: Path) -> dict[str, Any] | None:
    """state.json of the newest step folder, or of a release; None for a run that has saved nothing."""
    steps = list_steps(folder / "steps")
    path = folder / TRAINING / "state.json" if is_release(folder) else steps[-1][1] / "state.json" if steps else None
    if path is None:
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {"step": int(state["step"]), "data": {"order": dict(state["data"]["order"])}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} cannot be used: {error}; it names the order of data; restore it") from error


def find_releases(folder: Path, run_name: str | None = None) -> dict[int, Path]:
    """By step, the releases in a folder of them (docs/release.md): those of one run, if its name is given.

    Raises:
        ShardError: two of them have one step, or a manifest cannot be read.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*/release.json")):
        match = _REVISION.fullmatch(path.parent.name)
        if match is None or (run_name is not None and _run_of(path) != run_name):
            continue
        step = int(match[1])
        if step in found:
            raise ShardError(f"{folder}: {found[step].name} and {path.parent.name} are of one step; give the folder of one stage")
        found[step] = path.parent
    return dict(sorted(found.items()))


def _run_of(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path} cannot be used: {error}; fetch the release again") from error
