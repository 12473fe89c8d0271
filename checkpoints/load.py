"""A whole model, unsharded, from a checkpoint."""

from dataclasses import asdict
from pathlib import Path

import torch

from checkpoints.opening import Checkpoint
from checkpoints.weights import state_dict
from olmo_train.config.train import KernelsConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.kernels.choose import choose_kernels
from olmo_train.model.kernel_needs import kernel_needs
from olmo_train.model.shapes import vocab_rows
from olmo_train.model.transformer import Transformer
from olmo_train.tokenizer import Tokenizer


def load_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype = torch.float32, with_documents: bool = False
) -> Transformer:
    """The model of a checkpoint with parameters in `dtype`, in evaluation mode. Holds one copy.

    `with_documents`: it will be given documents that attention must not cross.

    Raises:
        CheckpointError: the checkpoint is not whole.
    """
    with torch.device("meta"):
        needs = kernel_needs(checkpoint.model, checkpoint.seq_len, with_documents, device, dtype)
        model = Transformer(checkpoint.model, choose_kernels(asdict(KernelsConfig()), needs))
    wanted = [name for name, _ in model.named_parameters()]
    tensors = state_dict(checkpoint.weights, wanted, lambda tensor: tensor.to(device, dtype))
    tensors |= state_dict(checkpoint.weights, [name for name, _ in model.named_buffers()], lambda tensor: tensor.to(device))
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.where}: its weights do not fit its config: {error}") from error
    return model.to(device).eval()


def load_tokenizer(checkpoint: Checkpoint, given: Path | None) -> Tokenizer:
    """The tokenizer of a checkpoint; `given` takes precedence.

    Raises:
        ConfigError: none is known, or it has more ids than the model has rows.
    """
    path = given if given is not None else checkpoint.tokenizer
    if path is None:
        raise ConfigError(f"{checkpoint.where}: no tokenizer is known; give --tokenizer tokenizer.json")
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size > vocab_rows(checkpoint.model):
        raise ConfigError(
            f"{tokenizer.path}: {tokenizer.vocab_size} ids, the model has {vocab_rows(checkpoint.model)} rows; "
            "give --tokenizer the one of the run's shards"
        )
    return tokenizer
