"""One release against its own manifest: every file, every tensor, its name and its signature; read once, stored nowhere."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from checkpoints.publish.filling import check_path
from checkpoints.publish.signature import check_signature
from checkpoints.publish.stores import Store
from checkpoints.release import (
    MANIFEST,
    SIGNATURE,
    TRAINING,
    UNLISTED,
    Release,
    parse_revision,
    read_release,
    revision_name,
    weights_digest,
)
from checkpoints.verify.stream import HashedFile, StoredTensor, read_tensors
from checkpoints.verify.training_check import LEDGERS, TEXTS, LedgerReader, training_problems
from olmo_train.errors import CheckpointError, ConfigError

AGAIN = "fetch it again, or publish the release again"


@dataclass(frozen=True)
class Depth:
    """How far a check goes."""

    is_quick: bool = False
    """Manifests, sizes and names; no content is read."""
    weights_only: bool = False
    """Of the files, only those with weights."""
    keys: Collection[str] = ()
    """Public keys that are trusted (`read_public_key`); with any, every release must be signed by one of them."""


@dataclass
class Checked:
    """What the check of a revision found."""

    revision: str
    release: Release | None = None
    problems: list[str] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0
    """Of the files looked at; read, unless the check was quick."""
    signature: str = "not signed"
    heads: dict[str, bytes] = field(default_factory=dict)
    """The first bytes of every tensor by its name; what a series compares."""
    save_every: int | None = None
    """`checkpoint.save_every` of the run."""
    batch: int | None = None
    """Tokens per step of the run."""


def check_release(store: Store, revision: str, depth: Depth) -> Checked:
    """Check one revision of a store; everything that is wrong is in `problems`, each naming revision, what and remedy.

    Raises:
        ConfigError: the store cannot be used.
    """
    checked = Checked(revision)
    try:
        text = store.read(revision, MANIFEST)
        release = read_release(text, revision)
        _check_form(release, revision)
        there = store.files(revision)
    except CheckpointError as error:
        checked.problems.append(f"{revision}: {error}; without a whole {MANIFEST} it is unfinished or not a release of ours")
        return checked
    checked.release = release
    checked.problems += [f"{revision}: {problem}" for problem in _claims(release, revision, text)]
    checked.problems += _signature(store, checked, text, there, depth)
    names = _names(release, depth)
    checked.n_files, checked.n_bytes = len(names), sum(release.files[name]["bytes"] for name in names)
    checked.problems += [f"{revision}: {problem}" for problem in _listing(release, names, there, depth)]
    reading = _Reading(store, checked, release, depth)
    for name in names:
        if there.get(name) == release.files[name]["bytes"]:
            reading.read(name)
    checked.problems += [f"{revision}: {problem}" for problem in reading.problems()]
    return checked


# ---- what the manifest alone can have wrong -----------------------------------------------------------------------------


def _check_form(release: Release, revision: str) -> None:
    """Raises:
    CheckpointError: an entry is not of the form that every later check relies on."""
    try:
        for path, entry in release.files.items():
            check_path(path, revision)
            if not isinstance(entry["bytes"], int) or len(bytes.fromhex(entry["sha256"])) != 32:
                raise ValueError(f"files.{path}={entry}")
        for name, entry in release.tensors.items():
            if not isinstance(entry["file"], str) or not all(isinstance(n, int) for n in entry["shape"]):
                raise ValueError(f"tensors.{name}={entry}")
            if not isinstance(entry["dtype"], str) or len(bytes.fromhex(entry["sha256"])) != 32:
                raise ValueError(f"tensors.{name}={entry}")
        numbers = (release.stage, release.step, release.tokens, release.data["order"]["rows"])
        if not all(isinstance(n, int) for n in numbers) or not all({"name", "manifest"} <= s.keys() for s in _sources(release)):
            raise ValueError(f"stage, step, tokens, rows={numbers}, or the sources of data.order")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be used: {error} is not of its form") from error


def _sources(release: Release) -> list[dict[str, Any]]:
    sources: list[dict[str, Any]] = release.data["order"]["sources"]
    return sources


def _claims(release: Release, revision: str, text: bytes) -> Iterator[str]:
    name = revision_name(release.stage, release.step, release.tokens)
    if release.name != name:
        yield (
            f"{MANIFEST}: name={release.name}, but stage {release.stage}, step {release.step} and {release.tokens} tokens "
            f"are called {name}; publish the release again"
        )
    if parse_revision(revision) is not None and revision != release.name:
        yield f"{MANIFEST}: it is {release.name} that lies under the name {revision}; put each release under its own name"
    digest = weights_digest(release.tensors)
    if release.weights_sha256 != digest:
        yield f"{MANIFEST}: weights_sha256={release.weights_sha256}, its tensors make {digest}; {AGAIN}"
    if text != release.to_bytes():
        yield f"{MANIFEST}: spelled otherwise than it is written; it was edited: {AGAIN}"
    for tensor, entry in release.tensors.items():
        if entry["file"] not in release.files:
            yield f"{MANIFEST}: tensor {tensor} is in {entry['file']}, which is not among its files; {AGAIN}"


def _signature(store: Store, checked: Checked, text: bytes, there: dict[str, int], depth: Depth) -> list[str]:
    revision, trusted = checked.revision, "--public-key"
    if SIGNATURE not in there:
        wanted = f"{revision}: {SIGNATURE}: missing, and {trusted} asks for one; do not trust it, or sign and publish it again"
        return [wanted] if depth.keys else []
    try:
        signer = check_signature(text, store.read(revision, SIGNATURE), depth.keys, revision)
    except CheckpointError as error:
        checked.signature = "WRONG signature"
        return [f"{revision}: {error}"]
    except ConfigError as error:  # the package is missing; that matters to who asked for signatures
        if depth.keys:
            raise
        checked.signature = f"signature not checked: {error}"
        return []
    if signer.is_trusted:
        checked.signature = f"signed by the trusted key {signer.public_key}"
        return []
    checked.signature = f"signed by the key {signer.public_key}, of which nothing is known"
    wrong = (
        f"{revision}: {SIGNATURE}: by the key {signer.public_key}, which is none of {trusted}; do not trust it, or give that key"
    )
    return [wrong] if depth.keys else []


def _names(release: Release, depth: Depth) -> list[str]:
    """The files to look at: texts first, because what they say is needed to judge the rest."""
    weights = {entry["file"] for entry in release.tensors.values()}
    names = [name for name in release.files if not depth.weights_only or name in weights]
    return sorted(names, key=lambda name: (name.endswith(".safetensors"), name.endswith(".jsonl"), name))


def _listing(release: Release, names: list[str], there: dict[str, int], depth: Depth) -> Iterator[str]:
    for name in names:
        size = release.files[name]["bytes"]
        if name not in there:
            yield f"{name}: missing; {MANIFEST} lists it with {size} bytes: {AGAIN}"
        elif there[name] != size:
            yield f"{name}: {there[name]} bytes, {MANIFEST} says {size}; {AGAIN}"
    for name in sorted(there.keys() - release.files.keys() - set(UNLISTED)):
        if not depth.weights_only:
            yield f"{name}: not in {MANIFEST}; remove it, nothing vouches for it"


# ---- what the files have wrong ------------------------------------------------------------------------------------------


class _Reading:
    """The files of one revision, each read at most once."""

    def __init__(self, store: Store, checked: Checked, release: Release, depth: Depth) -> None:
        self.store, self.checked, self.release, self.depth = store, checked, release, depth
        self.texts: dict[str, bytes] = {}
        self.ledgers = LedgerReader(release)
        self.found: list[str] = []

    def read(self, name: str) -> None:
        """Hash a file that is there with the right size, and take from it what the other checks need."""
        is_text = TEXTS.fullmatch(name) is not None
        if self.depth.is_quick and not is_text:
            return
        try:
            with self.store.open(self.checked.revision, name) as raw:
                file = HashedFile(raw)
                found = self._content(name, file, is_text)
                digest = file.sha256()
        except (CheckpointError, OSError) as error:
            self.found.append(f"{name}: cannot be read: {error}")
            return
        if digest != self.release.files[name]["sha256"]:
            self.found.append(f"{name}: SHA-256 {digest}, {MANIFEST} says {self.release.files[name]['sha256']}; {AGAIN}")
        self.found += [f"{name}: {problem}" for problem in found]

    def _content(self, name: str, file: HashedFile, is_text: bool) -> list[str]:
        if is_text:
            self.texts[name] = file.read()
        elif name in LEDGERS:
            self.ledgers.read(name, file.lines())
        elif name.endswith(".safetensors"):
            try:
                tensors = read_tensors(file)
            except ValueError as error:
                return [f"{error}; {AGAIN}"]
            if not name.startswith(f"{TRAINING}/"):
                self.checked.heads |= {tensor: stored.head for tensor, stored in tensors.items()}
                return list(_tensor_problems(name, tensors, self.release))
        return []

    def problems(self) -> list[str]:
        """Everything, once all files were read."""
        if self.depth.weights_only:
            return self.found
        return self.found + training_problems(self.release, self.texts, self.ledgers, self.checked)


def _tensor_problems(file: str, stored: dict[str, StoredTensor], release: Release) -> Iterator[str]:
    expected = {name: entry for name, entry in release.tensors.items() if entry["file"] == file}
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            yield f"tensor {name} is missing, {MANIFEST} says it is in this file; {AGAIN}"
        elif name not in expected:
            yield f"tensor {name} is not one that {MANIFEST} says is in this file; {AGAIN}"
        else:
            yield from _one_tensor(name, stored[name], expected[name])


def _one_tensor(name: str, stored: StoredTensor, entry: dict[str, Any]) -> Iterator[str]:
    if (stored.dtype, list(stored.shape)) != (entry["dtype"], list(entry["shape"])):
        yield (
            f"tensor {name} is {stored.dtype} {list(stored.shape)}, {MANIFEST} says {entry['dtype']} "
            f"{list(entry['shape'])}; {AGAIN}"
        )
    if stored.sha256 != entry["sha256"]:
        yield f"tensor {name} has SHA-256 {stored.sha256}, {MANIFEST} says {entry['sha256']}; {AGAIN}"
