"""Build the folder of a release from one step of a run; the same run and step give the same bytes."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.catalog import resolve_step
from checkpoints.convert.hf_folder import FLOAT_DTYPES, HFFiles, HFOptions, write_hf
from checkpoints.hf_names import ARCHITECTURES, hf_model_type
from checkpoints.opening import Checkpoint, open_step_folder
from checkpoints.publish.card import write_card
from checkpoints.publish.facts import Facts
from checkpoints.publish.parent import parent_of
from checkpoints.publish.plots import History, draw_plots, require_matplotlib
from checkpoints.publish.signature import read_private_key, sign_release
from checkpoints.publish.training_files import copy_lines, hash_of, redact, training_texts
from checkpoints.release import MANIFEST, SIGNATURE, TRAINING, UNLISTED, Release, is_optimizer_file, revision_name, weights_digest
from checkpoints.run_files import Evaluation, read_evaluations
from olmo_train.checkpoint import DTYPES, read_manifest, verify_files
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import open_sources, source_corpus
from olmo_train.data.order import DataOrder
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.shapes import param_shapes
from olmo_train.model.size import count_params

EVALUATIONS = "evaluations.json"
PLOTS = "plots"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True)
class AssembleOptions:
    """What a release is made with."""

    stage: int
    """Of training, 1 for the first; part of the name."""
    dtype: str | None
    """Of the weights as published: float32, bfloat16 or float16; None: as saved."""
    optimizer_state: bool
    """Also publish the optimizer and random states, so that training can go on bit for bit."""
    license: str
    """Of the weights: an identifier as the hub has them, e.g. apache-2.0."""
    sign: Path | None
    """Private key (Ed25519, PEM) that signs the manifest; None: not signed."""
    parent: Release | None
    """The release before this one in the same place; None: there is none yet."""


def assemble(run: Path, step: int, folder: Path, options: AssembleOptions) -> Release:
    """Build the release of a step of a run in `folder`, which must be absent or empty; a failure leaves it as it was.

    Raises:
        ConfigError: the options, the key or a package; the run's architecture has no class in transformers.
        ShardError: the manifests of the run's shards are gone or changed.
        CheckpointError: the step or a file of the run is damaged, or the file system refused.
    """
    checkpoint = _open(run, step, folder, options)
    with _all_or_nothing(folder):
        return _Assembly(run, checkpoint, folder, options).build()


def _open(run: Path, step: int, folder: Path, options: AssembleOptions) -> Checkpoint:
    """Everything that can be checked before anything is written."""
    problems = list(_option_problems(options))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(f"{folder} is not empty; a release is assembled in a folder of its own")
    if not folder.parent.is_dir():
        problems.append(f"{folder.parent} is not a folder; a release is assembled in one that is there")
    for check in (require_matplotlib, lambda: _check_key(options.sign)):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    checkpoint = open_step_folder(resolve_step(run, step))
    hf_model_type(checkpoint.model)
    manifest = read_manifest(checkpoint.folder)
    damaged = verify_files(checkpoint.folder, manifest, [name for name in manifest["files"] if not is_optimizer_file(name)])
    damaged += _wrong_sizes(checkpoint.folder, manifest) if options.optimizer_state else []
    if damaged:
        raise CheckpointError("\n".join([*damaged, f"step {step} of {run} is damaged; publish another, or restore it"]))
    return checkpoint


def _option_problems(options: AssembleOptions) -> Iterator[str]:
    if options.stage < 1:
        yield f"--stage={options.stage} must be at least 1, the first stage of training"
    if options.dtype is not None and options.dtype not in FLOAT_DTYPES:
        yield f"--dtype={options.dtype} is not one of {', '.join(FLOAT_DTYPES)}; leave it out to publish the weights as saved"
    if not _LICENSE.fullmatch(options.license):
        yield f"--license={options.license!r} is no identifier of a licence; e.g. apache-2.0, or other"


def _check_key(file: Path | None) -> None:
    if file is not None:
        read_private_key(file)


def _wrong_sizes(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for name, entry in manifest["files"].items():
        path = folder / name
        if is_optimizer_file(name) and (not path.exists() or path.stat().st_size != entry["bytes"]):
            found = f"{path.stat().st_size} bytes" if path.exists() else "missing"
            yield f"{path}: {found}, the manifest says {entry['bytes']}"


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """On any failure the folder is as it was: absent or empty."""
    was_there = folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        yield
    except BaseException as error:
        _empty(folder)
        if not was_there and folder.exists():
            folder.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{error.filename or folder}: {error.strerror or error}; free space, or assemble elsewhere; nothing was left"
            ) from error
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else []:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class _Assembly:
    """One release in the making: writes files and remembers their hashes."""

    def __init__(self, run: Path, checkpoint: Checkpoint, folder: Path, options: AssembleOptions) -> None:
        assert checkpoint.run is not None
        self.run_folder, self.checkpoint, self.folder, self.options = run, checkpoint, folder, options
        self.config: TrainConfig = checkpoint.run
        self.state = checkpoint.state
        self.step: int = self.state["step"]
        self.files: dict[str, dict[str, Any]] = {}

    def build(self) -> Release:
        """Everything in order; the manifest comes last."""
        texts = training_texts(self.run_folder, self.checkpoint.folder, self.config, self.state["data"]["order"])
        evaluations = [_public(e) for e in read_evaluations(self.run_folder) if e.step <= self.step]
        for name, text in texts.items():
            self._write(name, text)
        starts = json.loads(texts[f"{TRAINING}/provenance.json"])["starts"]
        history = History()
        self._lines("metrics.jsonl", history.add)
        self._lines("data.jsonl", lambda line: None)
        weights = self._weights()
        if self.options.optimizer_state:
            self._optimizer_state()
        self._write(EVALUATIONS, _json([asdict(evaluation) for evaluation in evaluations]))
        release = self._describe(weights, starts, evaluations)
        self._card(release, starts, evaluations, history)
        release.files = dict(sorted(self.files.items()))
        self._finish(release)
        return release

    def _weights(self) -> HFFiles:
        dtype = None if self.options.dtype is None else FLOAT_DTYPES[self.options.dtype]
        whole = self.folder / ".weights"  # write_hf makes a folder of its own
        weights = write_hf(self.checkpoint, whole, HFOptions(dtype))
        for name in weights.files:
            os.rename(whole / name, self.folder / name)
        whole.rmdir()
        self.files |= weights.files
        return weights

    def _lines(self, name: str, use: Callable[[dict[str, Any]], None]) -> None:
        """The lines of a file of the run up to this step, if it has them."""
        source, path = self.run_folder / name, f"{TRAINING}/{name}"
        if not source.exists():
            return
        last = -1
        for line in copy_lines(source, self.folder / path, self.step):
            use(line)
            last = line["step"]
        if last < self.step and self.step > 0:
            raise CheckpointError(
                f"{source} ends at step {max(last, 0)}, before step {self.step}; restore it, or move it away and publish "
                "without it"
            )
        if last == -1:
            (self.folder / path).unlink()
        else:
            self.files[path] = hash_of(self.folder / path)

    def _optimizer_state(self) -> None:
        """Linked where the file system can: it may be three times the weights. Their hashes are those of the step folder."""
        for name, entry in read_manifest(self.checkpoint.folder)["files"].items():
            if is_optimizer_file(name):
                source, target = self.checkpoint.folder / name, self.folder / TRAINING / name
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copyfile(source, target)
                self.files[f"{TRAINING}/{name}"] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}

    def _describe(self, weights: HFFiles, starts: list[dict[str, Any]], evaluations: list[Evaluation]) -> Release:
        counts, state = count_params(self.config.model), self.state
        published = {DTYPES[entry["dtype"]] for entry in weights.tensors.values()}
        saved = {self.checkpoint.weights.dtype(shape.name) for shape in param_shapes(self.config.model)}
        git = starts[-1].get("git") if starts else None
        return Release(
            name=revision_name(self.options.stage, self.step, state["tokens"]), run=self.config.run_name,
            stage=self.options.stage, step=self.step, tokens=state["tokens"], loss=_finite(state["loss"]),
            architecture=ARCHITECTURES[hf_model_type(self.config.model)],
            dtype=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in published)), is_exact=published == saved,
            parameters={"total": counts.total, "active": counts.active}, weights_sha256=weights_digest(weights.tensors),
            parent=parent_of(self.options.parent, self.config, starts), code=git,
            data={"order": state["data"]["order"], "next_position": state["data"]["next_position"]},
            evaluations=[_without_step(evaluation) for evaluation in evaluations if evaluation.step == self.step],
            has_optimizer=self.options.optimizer_state, tensors=weights.tensors,
        )  # fmt: skip

    def _card(self, release: Release, starts: list[dict[str, Any]], evaluations: list[Evaluation], history: History) -> None:
        plots = draw_plots(history, evaluations, self.config.data.global_batch_size, self.folder / PLOTS)
        for plot in plots:
            self.files[f"{PLOTS}/{plot.file}"] = hash_of(self.folder / PLOTS / plot.file)
        data = self.run_folder / "data"
        data_config = self.config.data
        corpora = {name: source_corpus(data_config, name, data) for name in data_config.sources}
        order = DataOrder(open_sources(data_config, data), self.config.seed, data_config.seq_len, data_config.global_batch_size)
        facts = Facts(
            release, self.config, self.state, starts, corpora, order, evaluations, history, plots, self.options.license,
            "tokenizer.json" in self.files,
        )  # fmt: skip
        self._write("README.md", write_card(facts).encode())

    def _finish(self, release: Release) -> None:
        """The manifest, once every file is known to be in it."""
        there = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        assert there == set(self.files), there ^ set(self.files)
        assert not there & set(UNLISTED), there
        text = release.to_bytes()
        if self.options.sign is not None:
            (self.folder / SIGNATURE).write_bytes(sign_release(text, self.options.sign))
        (self.folder / MANIFEST).write_bytes(text)

    def _write(self, name: str, text: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        self.files[name] = hash_of(path)


def _public(evaluation: Evaluation) -> Evaluation:
    """Without private paths, and without numbers that JSON does not have."""
    metrics = {name: _finite(value) for name, value in evaluation.metrics.items()}
    return Evaluation(evaluation.step, evaluation.suite, redact(evaluation.label), metrics, redact(evaluation.settings))


def _without_step(evaluation: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in asdict(evaluation).items() if name != "step"}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
