"""The format of a release: the names of revisions, what lies where in one, its manifest, and the index of all of them.

    <revision>/                      a branch of a hub repository, or a folder of a store
        config.json generation_config.json model-00001-of-0000N.safetensors model.safetensors.index.json
        tokenizer.json tokenizer_config.json
        README.md plots/*.png        the model card
        evaluations.json
        release.json                 the manifest, written last; release.json.sig signs it
        training/                    config.yaml state.json provenance.json metrics.jsonl data.jsonl (up to this step),
                                     data/<source>/manifest.json, and with the optimizer state optim-*, rng-*, step.json
    main                             the same as the newest release, and checkpoints.json, the index of all

One rule for names: stage{S}-step{N}-tokens{B}B, B the tokens seen in billions, rounded down. The manifest has exact integers.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from olmo_train.errors import CheckpointError

FORMAT = "olmo_train.release"
INDEX_FORMAT = "olmo_train.releases"
VERSION = 1
MANIFEST = "release.json"
SIGNATURE = "release.json.sig"
INDEX = "checkpoints.json"
MAIN = "main"
TRAINING = "training"
"""Folder of what training needs and what it said."""
UNLISTED = (MANIFEST, SIGNATURE, INDEX, ".gitattributes")
"""Files of a revision that its manifest does not list."""
_NAME = re.compile(r"stage(\d+)-step(\d+)-tokens(\d+)B")


def revision_name(stage: int, step: int, tokens: int) -> str:
    """The one rule: billions are rounded down, so that a name never claims tokens that were not seen."""
    return f"stage{stage}-step{step}-tokens{tokens // 10**9}B"


def parse_revision(name: str) -> tuple[int, int, int] | None:
    """(stage, step, billions of tokens) of a revision's name; None if it is no such name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def is_optimizer_file(path: str) -> bool:
    """Whether a path of a release, or the name of a file of a step folder, is of the optimizer or random states."""
    return path.removeprefix(f"{TRAINING}/").startswith(("optim-", "rng-"))


def in_order(names: Iterable[str]) -> list[str]:
    """Those that are names of revisions, by stage and step."""
    parsed = sorted((place, name) for name in names if (place := parse_revision(name)))
    return [name for _, name in parsed]


@dataclass
class Release:
    """`release.json`: what a revision is, in facts that can be checked."""

    name: str
    run: str
    stage: int
    step: int
    tokens: int
    """Seen in training, exactly."""
    loss: float | None
    """Training loss at this step, nats per token; None at step 0."""
    architecture: str
    """Class in transformers."""
    dtype: str
    """Of the weights as published: float32, bfloat16 or float16; `as saved` if `is_exact`."""
    is_exact: bool
    """The weights are bit for bit those of the run."""
    parameters: dict[str, int]
    """total, active."""
    weights_sha256: str
    """Over the tensors (`weights_digest`): the identity of the weights, however they are cut into files."""
    parent: dict[str, Any] | None
    """The checkpoint before, {name, step, tokens, weights_sha256}; for the first what was loaded, or None."""
    code: dict[str, Any] | None
    """{commit, has_changes} of the code that trained this step."""
    data: dict[str, Any]
    """{order: the order's key, next_position}; the manifests lie in training/data."""
    evaluations: list[dict[str, Any]]
    """Of this step: {suite, label, metrics, settings}."""
    has_optimizer: bool
    """training/ holds the optimizer and random states: training can go on bit for bit."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path: {bytes, sha256}."""
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By their (Hugging Face) name: {dtype, shape, file, sha256 of the raw little-endian bytes}."""

    def to_bytes(self) -> bytes:
        """The one spelling of this manifest; what is signed and hashed."""
        return (json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Of the manifest: the identity of the whole release."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def weights_digest(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over (name, dtype, shape, sha256) of the tensors, sorted by name; files do not enter."""
    rows = [[name, tensors[name]["dtype"], list(tensors[name]["shape"]), tensors[name]["sha256"]] for name in sorted(tensors)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_release(text: bytes, where: str) -> Release:
    """Parse a manifest; `where` names it in errors.

    Raises:
        CheckpointError: not JSON, another format, or other fields.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("format", "") != FORMAT or values.pop("version", 0) != VERSION:
            raise ValueError(f"not of format {FORMAT} version {VERSION}")
        lacking = {f.name for f in fields(Release)} ^ set(values)
        if lacking:
            raise ValueError(f"unknown or missing fields: {', '.join(sorted(lacking))}")
        return Release(**values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{where}/{MANIFEST} cannot be used: {error}; fetch it again, or publish the release again"
        ) from error


def read_release_folder(folder: Path) -> Release:
    """The manifest of a release on this machine.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    try:
        return read_release((folder / MANIFEST).read_bytes(), str(folder))
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error.strerror}; not a release, or one that was never finished") from error


@dataclass
class IndexEntry:
    """One release, as the index lists it."""

    name: str
    stage: int
    step: int
    tokens: int
    loss: float | None
    weights_sha256: str
    release_sha256: str


def index_bytes(entries: Iterable[IndexEntry]) -> bytes:
    """`checkpoints.json`: the releases by stage and step."""
    rows = [asdict(entry) for entry in sorted(entries, key=lambda entry: (entry.stage, entry.step, entry.name))]
    return (json.dumps({"format": INDEX_FORMAT, "version": VERSION, "releases": rows}, indent=1) + "\n").encode()


def read_index(text: bytes, where: str) -> list[IndexEntry]:
    """Parse an index.

    Raises:
        CheckpointError: not JSON, or another format.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("format") != INDEX_FORMAT or values.get("version") != VERSION:
            raise ValueError(f"not of format {INDEX_FORMAT} version {VERSION}")
        return [IndexEntry(**row) for row in values["releases"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where}/{INDEX} cannot be used: {error}; any `olmo publish` to this target writes it anew"
        ) from error


def index_entry(release: Release) -> IndexEntry:
    """The line of the index for a release."""
    return IndexEntry(
        release.name, release.stage, release.step, release.tokens, release.loss, release.weights_sha256, release.sha256
    )
