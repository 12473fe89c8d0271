"""`curves.json`: everything the curves, the figures and the report show, as one document with units and definitions.

It is written and read here; page.py and figures.py draw what is in it and know nothing of runs.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.inspect.measures import SeriesResult
from checkpoints.opening import Checkpoint
from checkpoints.release import MANIFEST, TRAINING, read_release_folder
from checkpoints.run_files import read_evaluations, read_lines
from olmo_train.config.train import TrainConfig
from olmo_train.data.manifest import read_manifest
from olmo_train.errors import CheckpointError, ShardError
from olmo_train.model.size import count_params
from olmo_train.schema import to_plain

FORMAT = "olmo_train.curves"
VERSION = 1
MAX_POINTS = 600
"""Of a training curve: where a run has more steps, the smallest and the largest of each stretch are kept."""
TRAINING_COLUMNS = {
    "loss": "nats per token",
    "grad_norm": "L2 norm before clipping",
    "lr": "per step",
    "load_balancing_loss": "1 is even",
    "router_z_loss": "squared logsumexp",
}
"""Of metrics.jsonl, with their units."""
PAPER = "OLMoE (arXiv 2409.02060)"
DEFINITIONS: dict[str, dict[str, str]] = {
    "training.loss": {
        "unit": "nats per token",
        "is": "cross entropy of each optimizer step, meaned over the predicted tokens of its batch",
        "source": "metrics.jsonl of the run",
    },
    "training.grad_norm": {
        "unit": "L2 norm",
        "is": "of the gradient of the whole loss over all parameters, before clipping",
        "source": "metrics.jsonl of the run",
    },
    "training.lr": {"unit": "per step", "is": "learning rate used", "source": "metrics.jsonl of the run"},
    "evaluations": {
        "unit": "loss: nats per token; bits_per_byte: bits; acc and the like: fraction of the questions",
        "is": "results of evaluations during training and of those added later",
        "source": "metrics.jsonl and evaluations.jsonl of the run",
    },
    "heldout": {
        "unit": "nats per token",
        "is": "cross entropy on documents that training never sees, by source",
        "source": "measured at each checkpoint on the same tokens",
    },
    "norms": {
        "unit": "L2 norm",
        "is": "square root of the sum of squares of all weights of a kind; rms is the root of the mean square",
        "source": "read from the weights",
    },
    "saturation": {
        "unit": "fraction, 0 to 1",
        "is": "share of the top-k experts chosen at a checkpoint that the last checkpoint chooses for the same token",
        "source": f"{PAPER}, section 5.1, equation 5",
    },
    "coactivation": {
        "unit": "fraction, 0 to 1",
        "is": "share of the tokens of expert i that also go to expert j",
        "source": f"{PAPER}, section 5.2, equation 6",
    },
    "load": {
        "unit": "times the even share",
        "is": "share of all assignments of tokens to experts that an expert gets, times the number of experts",
        "source": "measured on held-out tokens",
    },
    "source_specialisation": {
        "unit": "times the even share",
        "is": "share of a source's tokens that an expert is chosen for, over top_k / experts",
        "source": f"{PAPER}, section 5.3, equation 7 (domain specialization)",
    },
    "token_specialisation": {
        "unit": "fraction, 0 to 1",
        "is": "share of the occurrences of a token id that go to the expert that gets most of them; lists: last checkpoint only",
        "source": f"{PAPER}, section 5.4, equation 8 (vocabulary specialization)",
    },
    "text": {
        "unit": "nats per token",
        "is": "minus the log-probability of each token of a text, given an end of text and all tokens before it",
        "source": "measured at each checkpoint",
    },
}


@dataclass(frozen=True)
class Origin:
    """Where a document's facts come from."""

    where: str
    """As the user named it."""
    folders: Sequence[Path]
    """Of the checkpoints on this machine, oldest first."""
    last: Checkpoint
    asked: Sequence[str]
    """Measures."""


def build_document(origin: Origin, series: SeriesResult, tokens: dict[int, str], left_out: dict[str, str]) -> dict[str, Any]:
    """Put together what was measured and what the run wrote.

    tokens: texts of the ids in `series`. left_out: by measure, why it is not there.
    """
    folder = run_files_of(origin.last)
    lines = read_lines(folder / "metrics.jsonl") if folder is not None else []
    return {
        "format": FORMAT,
        "version": VERSION,
        "where": origin.where,
        "asked": list(origin.asked),
        "left_out": left_out,
        "definitions": DEFINITIONS,
        "run": _facts(origin.last, folder),
        "training": training_columns(lines) if "loss" in origin.asked else None,
        "evaluations": _evaluations(origin, folder) if "evaluations" in origin.asked else [],
        "sizes": [_size(checkpoint) for checkpoint in origin.folders],
        "tokens": {str(number): text for number, text in tokens.items()},
        "series": _without_tokens(series),
    }


def _without_tokens(series: SeriesResult) -> dict[str, Any]:
    """As JSON, with lists of tokens for the last checkpoint only: with 64 experts in 16 layers they are megabytes each."""
    values = series.to_json()
    for checkpoint in values["checkpoints"][:-1]:
        for layer in checkpoint["routing"]["layers"] if checkpoint["routing"] else []:
            for name, role in itertools.product(("vocabulary", "vocabulary_top_k"), ("input", "predicted", "target")):
                layer[name][role]["tokens"] = []
    return values


def document_bytes(document: dict[str, Any]) -> bytes:
    """`curves.json`; a value that is not finite is null."""
    return (json.dumps(finite(document), allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def run_files_of(checkpoint: Checkpoint) -> Path | None:
    """The folder with metrics.jsonl and provenance.json of the checkpoint's run, as far as it is known."""
    found = checkpoint.folder / TRAINING if checkpoint.is_hf else checkpoint.folder.absolute().parent.parent
    return found if (found / "config.yaml").exists() else None


def training_columns(lines: list[dict[str, Any]]) -> dict[str, list[float | None]] | None:
    """step, tokens and TRAINING_COLUMNS of the training steps, thinned by loss to MAX_POINTS; None if nothing was trained."""
    steps = [line for line in lines if line.get("step", 0) > 0 and "loss" in line]
    if not steps:
        return None
    kept = [steps[i] for i in thin([line["loss"] for line in steps], MAX_POINTS)]
    names = [name for name in TRAINING_COLUMNS if any(line.get(name) is not None for line in kept)]
    return {name: [line.get(name) for line in kept] for name in ["step", "tokens", *names]}


def thin(values: Sequence[float | None], most: int) -> list[int]:
    """Places of about `most` values: of each stretch the smallest and the largest, so that no spike is lost."""
    if len(values) <= most:
        return list(range(len(values)))
    stretch = -(-2 * len(values) // most)
    kept = {0, len(values) - 1}
    for start in range(0, len(values), stretch):
        known = [i for i in range(start, min(start + stretch, len(values))) if values[i] is not None]
        if known:
            kept |= {min(known, key=lambda i: values[i] or 0.0), max(known, key=lambda i: values[i] or 0.0)}
        else:
            kept.add(start)
    return sorted(kept)


def _facts(checkpoint: Checkpoint, folder: Path | None) -> dict[str, Any]:
    """What the run is: model, data, code."""
    counts, run = count_params(checkpoint.model), checkpoint.run
    starts = json.loads((folder / "provenance.json").read_text())["starts"] if folder and _has(folder, "provenance.json") else []
    return {
        "name": run.run_name if run is not None else checkpoint.folder.name,
        "parameters": {"total": counts.total, "active": counts.active},
        "model": to_plain(checkpoint.model),
        "seq_len": checkpoint.seq_len,
        "global_batch_size": run.data.global_batch_size if run is not None else None,
        "max_tokens": run.max_tokens if run is not None else None,
        "peak_lr": checkpoint.state.get("peak_lr"),
        "optimizer": None if run is None else ("Muon" if run.optim.muon is not None else "AdamW"),
        "sources": _sources(run, folder) if run is not None else [],
        "starts": [
            {key: start.get(key) for key in ("time", "from_step", "git", "device", "n_ranks", "versions")} for start in starts
        ],
    }


def _sources(run: TrainConfig, folder: Path | None) -> list[dict[str, Any]]:
    """Name, tokens and documents of the sources that training draws from, as their manifests say."""
    found = []
    for name, source in run.data.sources.items():
        beside = folder / "data" / name if folder is not None else None
        path = beside if beside is not None and beside.exists() else source.path
        try:
            totals = read_manifest(path).totals() if path is not None else {}
        except ShardError:
            totals = {}
        rows = [{"name": part, **counts} for part, counts in totals.items()]
        found += rows or [{"name": name, "documents": None, "tokens": None}]
    return found


def _evaluations(origin: Origin, folder: Path | None) -> list[dict[str, Any]]:
    """Of the run's files, and of the manifests where the checkpoints are releases."""
    found = {} if folder is None else {(e.step, e.suite, e.label): asdict(e) for e in read_evaluations(folder)}
    for place in origin.folders:
        if _has(place, MANIFEST):
            release = read_release_folder(place)
            found |= {(release.step, e["suite"], e["label"]): {"step": release.step, **e} for e in release.evaluations}
    return [found[key] for key in sorted(found)]


def _size(folder: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def read_document(path: Path) -> dict[str, Any]:
    """A `curves.json`.

    Raises:
        CheckpointError: it is not there, or of another format.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"not of format {FORMAT} version {VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}; `olmo checkpoints curve` writes it anew") from error
    return document
