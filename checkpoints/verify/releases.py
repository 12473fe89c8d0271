"""Releases of a store, one after the other and then together; what was found is told as it is found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from checkpoints.publish.stores import Store
from checkpoints.release import INDEX, MAIN, MANIFEST, Release, parse_revision, read_index, read_release
from checkpoints.verify.ledger import metrics_values, read_ledger
from checkpoints.verify.release_check import Checked, Depth, check_release
from checkpoints.verify.series import Known, Path, index_problems, known, main_problems, series_problems, twins
from checkpoints.verify.stream import HashedFile
from checkpoints.verify.targets import strangers
from checkpoints.verify.training_check import METRICS
from olmo_train.checkpoint import DTYPES
from olmo_train.errors import CheckpointError, ConfigError

NEWEST, NONE = "newest", "none"
UNFINISHED = "an upload that was never finished, or not a release: publish it again, or remove it"


@dataclass
class Findings:
    """What a verification found, for people line by line and for programs as a whole."""

    say: Callable[[str], None]
    checked: list[dict[str, Any]] = field(default_factory=list)
    """By revision or step folder: {name, problems, ...}."""
    problems: list[str] = field(default_factory=list)
    """All of them, those of `checked` included."""

    def add(self, name: str, line: str, problems: list[str], **facts: Any) -> None:
        """One revision or step folder."""
        self.say(line)
        self.checked.append({"name": name, "problems": problems, **facts})
        self.problems += problems


def verify_revision(store: Store, revision: str, depth: Depth, findings: Findings) -> Checked:
    """One revision by itself."""
    checked = check_release(store, revision, depth)
    how = "WRONG" if checked.problems else "sizes and claims as they should be" if depth.is_quick else "whole"
    line = f"{revision}: {how}, {checked.n_files} files, {checked.n_bytes / 2**20:,.1f} MiB, {checked.signature}"
    facts = {"files": checked.n_files, "bytes": checked.n_bytes, "signature": checked.signature}
    findings.add(revision, line, checked.problems, **facts)
    return checked


def verify_series(store: Store, chosen: list[str], depth: Depth, main: str, findings: Findings) -> None:
    """All revisions of a store, or the `chosen` ones, and what they say of each other. `main`: what that should be.

    Raises:
        ConfigError: there is no release, or a chosen one is not there.
    """
    revisions = store.revisions()
    missing = [name for name in chosen if name not in revisions and name != MAIN]
    if missing or not revisions:
        have = ", ".join(revisions) or "none"
        raise ConfigError(f"{store.where}: no release{f' {missing[0]}' if missing else ''}; there are: {have}")
    names = [name for name in revisions if name in chosen or not chosen]
    releases: dict[str, Known] = {}
    path = Path()
    for name in names:
        checked = verify_revision(store, name, depth, findings)
        if checked.release is not None:
            releases[name] = known(checked.release, checked.save_every, checked.batch)
            if not depth.is_quick and not checked.problems:
                findings.problems += path.add(name, checked.release.stage, _values(checked.release, checked.heads))
    together = releases | _parents(store, releases, revisions)
    problems = series_problems(together, _skipped(store, together), is_whole=not chosen)
    problems += _index(store, releases, set(revisions) - releases.keys())
    if not chosen:
        problems += [f"{name}: {UNFINISHED}" for name in strangers(store)]
    if (not chosen or MAIN in chosen) and main != NONE:
        problems += _main(store, releases, depth, revisions[-1] if main == NEWEST else main, findings)
    findings.problems += problems
    if not findings.problems:
        findings.say(f"{store.where}: {len(names)} releases that fit together")


def _values(release: Release, heads: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The first weights of every tensor."""
    return {
        name: torch.frombuffer(bytearray(head), dtype=DTYPES[release.tensors[name]["dtype"]]).double().numpy()
        for name, head in heads.items()
        if head and release.tensors[name]["dtype"] in DTYPES
    }


def _parents(store: Store, releases: Mapping[str, Known], revisions: list[str]) -> dict[str, Known]:
    """Parents of the releases that were not looked at themselves; only their manifests are read."""
    names = {str(release.parent["name"]) for release in releases.values() if release.parent and "name" in release.parent}
    found = {}
    for name in (names & set(revisions)) - releases.keys():
        try:
            found[name] = replace(known(read_release(store.read(name, MANIFEST), name), None, None), parent=None)
        except CheckpointError:
            continue  # its own check tells
    return found


def _skipped(store: Store, releases: Mapping[str, Known]) -> dict[str, set[int]]:
    """Steps without a change of weights, of the revisions for which that matters."""
    found = {}
    for _, name in twins(releases):
        try:
            with store.open(name, METRICS) as raw:
                found[name] = read_ledger(HashedFile(raw).lines(), metrics_values(0)).skipped
        except CheckpointError:
            continue
    return found


def _index(store: Store, releases: Mapping[str, Known], others: set[str]) -> list[str]:
    try:
        index = read_index(store.read(MAIN, INDEX), MAIN)
    except CheckpointError as error:
        return [f"{MAIN}: {error}; without the index nobody sees what is missing: any `olmo publish` to this target writes it"]
    return [f"{MAIN}: {problem}" for problem in index_problems(index, releases, others)]


def _main(store: Store, releases: Mapping[str, Known], depth: Depth, newest: str, findings: Findings) -> list[str]:
    if parse_revision(newest) is None:
        raise ConfigError(f"--main={newest} is neither a revision nor {NEWEST} nor {NONE}")
    checked = verify_revision(store, MAIN, depth, findings)
    return list(main_problems(checked.release, releases, newest)) if checked.release is not None else []
