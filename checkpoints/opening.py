"""What a user calls a checkpoint, opened: a run, a step folder, a Hugging Face folder, a release on a hub or in a store.

runs/first                       the newest step of a run (or `step`)
runs/first/steps/step00001000    a step folder
exports/first                    a Hugging Face folder (config.json and safetensors), a release among them
step1000                         a checkpoint of OLMo-core (config.json and model_and_optim; extra `core`): reads a pickle
owner/name, owner/name@REVISION  a hub repository (extra `publish`; HF_ENDPOINT says which hub)
s3://bucket/first/REVISION       a release in a store that fsspec knows (extra `publish`)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.catalog import resolve_step
from checkpoints.convert.core import CoreWeights, core_facts, is_core_folder
from checkpoints.convert.core_config import model_from_core
from checkpoints.fetch import fetch, looks_remote
from checkpoints.hf_names import model_from_hf
from checkpoints.release import TRAINING
from checkpoints.weights import HFWeights, StepWeights, Weights
from olmo_train.checkpoint import read_state
from olmo_train.config.model import ModelConfig
from olmo_train.config.train import TrainConfig
from olmo_train.data.checks import find_tokenizer, readable_corpora
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.schema import read_yaml
from olmo_train.step_folder import MANIFEST


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights and what is known of it."""

    where: str
    """As the user named it, the step added."""
    folder: Path
    """On this machine."""
    model: ModelConfig
    seq_len: int
    """Tokens the model was trained on at a time."""
    weights: Weights
    run: TrainConfig | None
    """None: it does not come from a run of ours."""
    state: dict[str, Any]
    """`state.json` of the step (step, tokens, loss, lr, data, ...); empty where `run` is None."""
    tokenizer: Path | None
    """The tokenizer file, if it is known."""
    is_hf: bool

    @property
    def step(self) -> int | None:
        """Optimizer steps taken; None if unknown."""
        return self.state.get("step")


def open_checkpoint(where: str, step: int | None = None, with_optimizer: bool = False) -> Checkpoint:
    """Open what `where` names (see the module); `step` goes with a run. Reads no weights.

    `with_optimizer`: fetch the optimizer and random states too, if the release is elsewhere.

    Raises:
        ConfigError: nothing is there, or it is no checkpoint. CheckpointError: it is not whole.
    """
    if not Path(where).exists() and looks_remote(where):
        if step is not None:
            raise ConfigError(f"--step={step} goes with the folder of a run; name the revision: {where.split('@')[0]}@REVISION")
        return open_hf_folder(fetch(where, with_optimizer), where)
    path = Path(where)
    if (path / "config.json").exists():
        if step is not None:
            raise ConfigError(f"--step={step} goes with the folder of a run; {path} is one checkpoint already")
        return open_core_folder(path) if is_core_folder(path) else open_hf_folder(path, where)
    if not path.exists():
        raise ConfigError(
            f"{where} does not exist, and is no hub repository (owner/name@revision) or URL; give the folder of a run, of a step "
            "or a Hugging Face folder"
        )
    return open_step_folder(resolve_step(path, step))


def open_step_folder(folder: Path) -> Checkpoint:
    """One step folder."""
    weights = StepWeights(folder)
    run = read_yaml(folder / "config.yaml", TrainConfig)
    return Checkpoint(
        str(folder), folder, run.model, run.data.seq_len, weights, run, read_state(folder), tokenizer_of(folder, run), is_hf=False
    )


def open_core_folder(folder: Path) -> Checkpoint:
    """A checkpoint of OLMo-core."""
    values = _read_config(folder)
    try:
        model = model_from_core(values)
    except ConfigError as error:
        raise ConfigError([f"{folder / 'config.json'}: {problem}" for problem in error.problems]) from None
    seq_len, state = core_facts(folder, values)
    return Checkpoint(str(folder), folder, model, seq_len, CoreWeights(folder, model), None, state, None, is_hf=False)


def open_hf_folder(folder: Path, where: str | None = None) -> Checkpoint:
    """A folder as `save_pretrained` or `olmo convert` writes it; with the run it comes from, if it is a release."""
    values = _read_config(folder)
    run, state = None, {}
    if (folder / TRAINING / "config.yaml").exists():
        run, state = read_yaml(folder / TRAINING / "config.yaml", TrainConfig), read_state(folder / TRAINING)
    try:
        model = run.model if run is not None else model_from_hf(values)
    except ConfigError as error:
        raise ConfigError([f"{folder / 'config.json'}: {problem}" for problem in error.problems]) from None
    seq_len = run.data.seq_len if run is not None else int(values.get("max_position_embeddings", 2048))
    tokenizer = folder / "tokenizer.json"
    found = tokenizer if tokenizer.exists() else None
    return Checkpoint(where or str(folder), folder, model, seq_len, HFWeights(folder, model), run, state, found, is_hf=True)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "config.json").read_text())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}; fetch the folder again") from error
    return values


def tokenizer_of(folder: Path, run: TrainConfig) -> Path | None:
    """The tokenizer of a step folder: beside it where it was converted, else the one its shards were made with."""
    beside = folder / "tokenizer.json"
    return beside if beside.exists() else find_tokenizer(readable_corpora(run.data))


def is_step_folder(folder: Path) -> bool:
    """Whether a folder is a finished step folder."""
    return (folder / MANIFEST).exists() and (folder / "state.json").exists()
