"""What a release publishes of a run's own files: all of them verbatim, but for paths of the machine it ran on.

The rule, for whoever checks a release: a file under training/ is byte for byte the run's, except that in config.yaml,
provenance.json and the manifests of shards every private path (absolute, from a home folder, or climbing by ..) is replaced.
A file without one is verbatim too. training/step.json has the SHA-256 of the originals.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from checkpoints.release import TRAINING
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import source_corpus
from olmo_train.data.manifest import NAME, manifest_path
from olmo_train.errors import CheckpointError, ShardError
from olmo_train.schema import read_yaml, to_plain, to_yaml
from olmo_train.step_folder import MANIFEST

REDACTED = ("config.yaml", "provenance.json")
"""Files of a step folder that may differ from the run's; every other one listed in step.json that is published is verbatim."""
STEP = "step.json"
"""The manifest of the step folder, under training/."""
_CREDENTIALS = re.compile(r"\w+://[^/\s]*@")
_PRIVATE_START = re.compile(r"[/~\\]|file:|[A-Za-z]:[\\/]")
_PRIVATE_WORD = re.compile(
    r"""(^|[=\s'"\[{(,<`]|:(?!//))(/\w|~[\w.-]*(/|$)|\\\\?\w|file:|[A-Za-z]:[\\/]|\.\.(/|$))|/\.\.(/|$)|\w+://[^/\s]*@"""
)
"""A path, and what may stand before one in a text."""


def is_private(text: str) -> bool:
    """Whether a value tells of a machine or an account: an absolute path, a home, one that climbs, a URL with a password."""
    climbs = ".." in re.split(r"[\\/]", text)
    return bool(climbs or _PRIVATE_START.match(text) or _CREDENTIALS.match(text))


def redact(value: Any) -> Any:
    """A copy of plain nested values with every private path in it cut to its last component; in a text the word with it goes."""
    if isinstance(value, dict):
        return {key: redact(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [redact(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if not is_private(value):
        return _public_text(value)
    last = re.split(r"[\\/]", value.rstrip("/\\"))[-1]
    return "redacted" if last in ("", "..") or last.startswith("~") or last.endswith(":") or "@" in last else last


def _public_text(text: str) -> str:
    if not _PRIVATE_WORD.search(text):
        return text
    if re.search(r"['\"`]", text):  # what is quoted may have spaces
        return "redacted"
    return "".join(_public_word(word) for word in re.split(r"(\s+)", text))


def source_folder(name: str) -> str:
    """The folder of a source's manifest under training/data: its name, with what is no plain file name percent-encoded."""
    folder = quote(name, safe=" ")
    return f"%2E{folder[1:]}" if folder.startswith(".") else folder


def config_text(step_folder: Path) -> bytes:
    """config.yaml as published: a private `data.sources.NAME.path` is data/NAME, `run_dir` is runs/RUN_NAME."""
    file = step_folder / "config.yaml"
    run = read_yaml(file, TrainConfig)
    values = to_plain(run)
    public = redact(values)
    if public == values:
        return file.read_bytes()
    if is_private(run.run_dir):
        public["run_dir"] = f"runs/{run.run_name}"
    for name, source in run.data.sources.items():
        if source.path is not None and is_private(source.path):
            public["data"]["sources"][name]["path"] = f"data/{source_folder(name)}"
    return to_yaml(public).encode()


def provenance_text(step_folder: Path) -> bytes:
    """provenance.json as published: a word of the command that holds a private path keeps its name and loses its value."""
    text = (step_folder / "provenance.json").read_bytes()
    values = json.loads(text)
    public = redact({**values, "starts": [{**start, "command": ""} for start in values["starts"]]})
    for start, original in zip(public["starts"], values["starts"], strict=True):
        start["command"] = _public_command(original["command"])
    return text if public == values else json.dumps(public, indent=1).encode()


def _public_command(command: str) -> str:
    if not _PRIVATE_WORD.search(command):
        return command
    try:
        words = shlex.split(command)
    except ValueError:
        return "redacted"
    return shlex.join(_public_word(word) for word in words)


def _public_word(word: str) -> str:
    if not _PRIVATE_WORD.search(word):
        return word
    name, equals, _ = word.partition("=")
    return f"{name}=redacted" if equals and not _PRIVATE_WORD.search(name) else "redacted"


def manifest_texts(run_folder: Path, run: TrainConfig, order: dict[str, Any]) -> dict[str, bytes]:
    """By path in the release, the manifest of every source's shards; none of the shards is read.

    Raises:
        ShardError: a manifest is gone, or its shards are not those of the run's `order` (the order's key); says all of them.
    """
    fingerprints = {source["name"]: source["manifest"] for source in order["sources"]}
    texts, problems = {}, []
    for name in run.data.sources:
        try:
            corpus = source_corpus(run.data, name, run_folder / "data")
        except ShardError as error:
            problems.append(f"data.sources.{name}: {error}")
            continue
        file = manifest_path(corpus.folder)
        if corpus.manifest.fingerprint() != fingerprints.get(name):
            problems.append(
                f"data.sources.{name}: {file} has fingerprint {corpus.manifest.fingerprint()}, the run was trained on "
                f"{fingerprints.get(name)}; put back the manifest of the run's shards"
            )
            continue
        texts[f"{TRAINING}/data/{source_folder(name)}/{NAME}"] = _manifest_text(file)
    if problems:
        raise ShardError("\n".join(problems))
    return texts


def _manifest_text(file: Path) -> bytes:
    text = file.read_bytes()
    values = json.loads(text)
    public = redact(values)
    return text if public == values else (json.dumps(public, indent=1) + "\n").encode()


def training_texts(run_folder: Path, step_folder: Path, run: TrainConfig, order: dict[str, Any]) -> dict[str, bytes]:
    """By path in the release, the small files under training/.

    Raises:
        ShardError: the manifests of the shards are not those of the run.
    """
    texts = {
        f"{TRAINING}/config.yaml": config_text(step_folder),
        f"{TRAINING}/provenance.json": provenance_text(step_folder),
        f"{TRAINING}/state.json": (step_folder / "state.json").read_bytes(),
        f"{TRAINING}/{STEP}": (step_folder / MANIFEST).read_bytes(),
    }
    return texts | manifest_texts(run_folder, run, order)


# ---- the lines of metrics.jsonl and data.jsonl up to a step -----------------------------------------------------------


def lines_up_to(path: Path, step: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a run's file up to a step, as bytes and parsed; a last line that a kill cut short ends it.

    Raises:
        CheckpointError: a whole line is no JSON object with a step.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                if values["step"] > step:
                    return
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{path}: line {number} is damaged ({error}); restore the file, or remove it and publish without it"
                ) from error
            yield line, values


def copy_lines(path: Path, target: Path, step: int) -> Iterator[dict[str, Any]]:
    """Copy the lines up to a step, an exact prefix of the file, and give each of them; the file is whole at the end.

    Raises:
        CheckpointError: a line is damaged.
    """
    with open(target, "wb") as out:
        for line, values in lines_up_to(path, step):
            out.write(line)
            yield values


def hash_of(path: Path) -> dict[str, Any]:
    """The entry of a file in the manifest: {bytes, sha256}."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
