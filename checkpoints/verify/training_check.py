"""Whether what a release says of its training fits together: config, state, order of the data, ledgers, step folder."""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from checkpoints.hf_names import ARCHITECTURES, hf_config, hf_model_type, hf_names
from checkpoints.release import MANIFEST, TRAINING, Release
from checkpoints.verify.ledger import Ledger, data_values, metrics_values, read_ledger
from olmo_train.checkpoint import DTYPES
from olmo_train.config.train import TrainConfig
from olmo_train.data.manifest import NAME, read_manifest
from olmo_train.errors import ConfigError, ShardError
from olmo_train.model.shapes import param_shapes
from olmo_train.model.size import count_params
from olmo_train.schema import read_yaml

CONFIG, STATE, STEP = f"{TRAINING}/config.yaml", f"{TRAINING}/state.json", f"{TRAINING}/step.json"
METRICS, DATA = f"{TRAINING}/metrics.jsonl", f"{TRAINING}/data.jsonl"
LEDGERS = (METRICS, DATA)
TEXTS = re.compile(rf"config\.json|{TRAINING}/(config\.yaml|state\.json|step\.json|data/[^/]+/{NAME})")
"""Files that are read whole, because others are judged by them."""
AGAIN = "publish the release again from its run"


class RunFacts(Protocol):
    """What the series wants to know of a release's run."""

    save_every: int | None
    batch: int | None


class LedgerReader:
    """metrics.jsonl and data.jsonl of a release."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.read_so_far: dict[str, Ledger] = {}

    def read(self, name: str, lines: Iterable[bytes]) -> None:
        """Read one of them."""
        step = self.release.step
        batch, rows = self.release.tokens // max(step, 1), self.release.data["order"]["rows"]
        expected = metrics_values(batch) if name == METRICS else data_values(rows)
        self.read_so_far[name] = read_ledger(lines, expected, lambda at: at == step)

    def problems(self) -> Iterator[str]:
        """Of those that were read."""
        for name, ledger in self.read_so_far.items():
            for problem in ledger.problems:
                yield f"{name}: {problem}; {AGAIN}"
            if ledger.last_step != self.release.step:
                yield f"{name}: ends at step {ledger.last_step}, the release is of step {self.release.step}; {AGAIN}"
        ledger = self.read_so_far.get(METRICS, Ledger())
        line = ledger.kept.get(self.release.step)
        if line is not None and self.release.step > 0 and line.get("loss") != self.release.loss:
            yield f"{METRICS}: loss {line.get('loss')} at step {self.release.step}, {MANIFEST} says {self.release.loss}; {AGAIN}"


def training_problems(release: Release, texts: Mapping[str, bytes], ledgers: LedgerReader, facts: RunFacts) -> list[str]:
    """Contradictions between the files of a release; `facts` are filled in. A file that is not in `texts` is judged elsewhere."""
    problems: list[str] = []
    state, step, config = (_json(texts, name, problems) for name in (STATE, STEP, "config.json"))
    run = _run_config(texts, problems)
    if run is not None:
        facts.save_every, facts.batch = run.checkpoint.save_every, run.data.global_batch_size
        problems += _against_run(release, run)
        problems += _model(release, run, config)
    problems += _data_manifests(release, texts)
    if state is not None:
        problems += _state(release, state)
    if step is not None:
        problems += _step_folder(release, step)
    return problems + list(ledgers.problems())


def _json(texts: Mapping[str, bytes], name: str, problems: list[str]) -> dict[str, Any] | None:
    if name not in texts:
        return None
    try:
        value = json.loads(texts[name])
        if isinstance(value, dict):
            return value
        problems.append(f"{name}: not a JSON object; {AGAIN}")
    except ValueError as error:
        problems.append(f"{name}: cannot be read as JSON: {error}; {AGAIN}")
    return None


def _run_config(texts: Mapping[str, bytes], problems: list[str]) -> TrainConfig | None:
    if CONFIG not in texts:
        return None
    with tempfile.TemporaryDirectory() as folder:  # its owner reads files
        file = Path(folder) / "config.yaml"
        file.write_bytes(texts[CONFIG])
        try:
            return read_yaml(file, TrainConfig)
        except ConfigError as error:
            problems += [f"{problem.replace(str(file), CONFIG)}; {AGAIN}" for problem in error.problems]
    return None


def _against_run(release: Release, run: TrainConfig) -> Iterator[str]:
    batch, order = run.data.global_batch_size, release.data["order"]
    if release.tokens != release.step * batch:
        yield (
            f"{MANIFEST}: tokens={release.tokens}, {release.step} steps of data.global_batch_size={batch} ({CONFIG}) are "
            f"{release.step * batch}; {AGAIN}"
        )
    wanted = {"seed": run.seed, "seq_len": run.data.seq_len, "rows": batch // run.data.seq_len}
    for name, value in wanted.items():
        if order.get(name) != value:
            yield f"{MANIFEST}: data.order.{name}={order.get(name)}, {CONFIG} makes it {value}; {AGAIN}"


def _model(release: Release, run: TrainConfig, config: dict[str, Any] | None) -> Iterator[str]:
    try:
        wanted, architecture = hf_config(run.model, run.data.seq_len), ARCHITECTURES[hf_model_type(run.model)]
    except ConfigError as error:
        yield from (f"{CONFIG}: {problem}" for problem in error.problems)
        return
    if config is not None:
        for name, value in wanted.items():
            if config.get(name) != value:
                yield f"config.json: {name}={config.get(name)}, the model of {CONFIG} has {value}; {AGAIN}"
    if release.architecture != architecture:
        yield f"{MANIFEST}: architecture={release.architecture}, the model of {CONFIG} is {architecture}; {AGAIN}"
    counts = count_params(run.model)
    if release.parameters != {"total": counts.total, "active": counts.active}:
        said = f"total {counts.total}, active {counts.active}"
        yield f"{MANIFEST}: parameters={release.parameters}, the model of {CONFIG} has {said}; {AGAIN}"
    yield from _tensors(release, run)


def _tensors(release: Release, run: TrainConfig) -> Iterator[str]:
    names = {name for shape in param_shapes(run.model) for group in hf_names(shape, run.model) for name in group}
    for name in sorted(names - release.tensors.keys()):
        yield f"{MANIFEST}: no tensor {name}, which the model of {CONFIG} has; {AGAIN}"
    for name in sorted(release.tensors.keys() - names):
        yield f"{MANIFEST}: tensor {name} is none of the model of {CONFIG}; {AGAIN}"
    found = sorted({entry["dtype"] for entry in release.tensors.values()})
    dtypes = ", ".join(sorted(str(DTYPES.get(name, name)).removeprefix("torch.") for name in found))
    if dtypes != release.dtype:
        yield f"{MANIFEST}: dtype={release.dtype}, its tensors are {dtypes}; {AGAIN}"


def _state(release: Release, state: dict[str, Any]) -> Iterator[str]:
    for name in ("step", "tokens", "loss"):
        if state.get(name) != getattr(release, name):
            yield f"{STATE}: {name}={state.get(name)}, {MANIFEST} says {getattr(release, name)}; {AGAIN}"
    data = state.get("data", {})
    if data.get("order") != release.data["order"]:
        yield f"{STATE}: the data order's key is not that of {MANIFEST}; {AGAIN}"
    position = release.step * release.data["order"]["rows"]
    for name, found in ((STATE, data.get("next_position")), (MANIFEST, release.data.get("next_position"))):
        if found != position:
            yield f"{name}: data.next_position={found}, {release.step} steps end at {position}; {AGAIN}"


def _data_manifests(release: Release, texts: Mapping[str, bytes]) -> Iterator[str]:
    """Every source of the order needs a manifest of its fingerprint; folders' names may be quoted, so they do not count."""
    found: dict[str, str] = {}
    for name, text in texts.items():
        if not name.startswith(f"{TRAINING}/data/"):
            continue
        with tempfile.TemporaryDirectory() as folder:  # its owner reads files
            (Path(folder) / NAME).write_bytes(text)
            try:
                found[read_manifest(folder).fingerprint()] = name
            except ShardError as error:
                yield f"{name}: {str(error).replace(folder, 'it: ')}; {AGAIN}"
    wanted = {source["manifest"]: source["name"] for source in release.data["order"]["sources"]}
    for fingerprint in wanted.keys() - found.keys():
        yield (
            f"{TRAINING}/data: no manifest has the fingerprint {fingerprint} that the data order has for source "
            f"{wanted[fingerprint]}; {AGAIN}"
        )
    for fingerprint in found.keys() - wanted.keys():
        yield f"{found[fingerprint]}: fingerprint {fingerprint} is that of no source of the data order; {AGAIN}"


def _step_folder(release: Release, step: dict[str, Any]) -> Iterator[str]:
    """The manifest of the step folder that the release was made from."""
    if step.get("step") != release.step:
        yield f"{STEP}: step={step.get('step')}, {MANIFEST} says {release.step}; {AGAIN}"
    changed = (CONFIG, f"{TRAINING}/provenance.json")  # private paths are taken out of them
    for name, entry in step.get("files", {}).items():
        path = f"{TRAINING}/{name}"
        published = release.files.get(path)
        if published is None:
            if release.has_optimizer and not name.startswith("model-"):
                yield f"{STEP}: {name} is not published, but has_optimizer promises that training can go on; {AGAIN}"
        elif path not in changed and published != entry:
            yield f"{path}: SHA-256 {published['sha256']}, the run's step folder ({STEP}) had {entry.get('sha256')}; {AGAIN}"
