"""A whole model, unsharded, from a step folder."""

from dataclasses import asdict
from pathlib import Path

import torch

from olmo_train.checkpoint import load_rows, read_manifest
from olmo_train.config.train import KernelsConfig, TrainConfig
from olmo_train.data.checks import find_tokenizer
from olmo_train.data.shards import Corpus
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.kernels.choose import choose_kernels
from olmo_train.model.kernel_needs import kernel_needs
from olmo_train.model.transformer import Transformer
from olmo_train.schema import read_yaml
from olmo_train.tokenizer import Tokenizer


def load_model(folder: Path, device: torch.device) -> tuple[Transformer, TrainConfig]:
    """The model of a step folder in float32, in evaluation mode, and the config of its run.

    Raises:
        CheckpointError: the folder is not whole.
    """
    manifest = read_manifest(folder)
    run = read_yaml(folder / "config.yaml", TrainConfig)
    with torch.device("meta"):
        needs = kernel_needs(run.model, run.data.seq_len, False, device, torch.float32)
        model = Transformer(run.model, choose_kernels(asdict(KernelsConfig()), needs))
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    tensors = load_rows(folder, manifest, "model", dict.fromkeys(sorted(names)))
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its weights do not fit its config.yaml: {error}") from error
    return model.to(device).eval(), run


def tokenizer_of(run: TrainConfig, given: Path | None) -> Tokenizer:
    """The tokenizer a run's shards were made with, by its manifests; `given` takes precedence."""
    if given is not None:
        return Tokenizer(given)
    path = find_tokenizer(Corpus(source.path) for source in run.data.sources.values() if source.path)
    if path is None:
        raise ConfigError("no manifest of this run names a tokenizer; give --tokenizer tokenizer.json")
    return Tokenizer(path)
