"""A run's newest checkpoint opened once, its held-out tokens, and what it does with them."""

from pathlib import Path

import pytest
import torch

from checkpoints.inspect.heldout import Heldout, HeldoutOptions, read_heldout
from checkpoints.inspect.observe import Observation, observe
from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_checkpoint
from olmo_train.model.transformer import Transformer
from tests.stores import hub

__all__ = ["hub"]
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def newest(run: Path) -> Checkpoint:
    """Step 10."""
    return open_checkpoint(str(run))


@pytest.fixture(scope="session")
def model(newest: Checkpoint) -> Transformer:
    """Of step 10. Nobody changes it."""
    return load_model(newest, CPU)


@pytest.fixture(scope="session")
def heldout(newest: Checkpoint) -> Heldout:
    """Two sources; the last row of each is shorter than the others."""
    return read_heldout(newest, HeldoutOptions())


@pytest.fixture(scope="session")
def seen(model: Transformer, heldout: Heldout) -> Observation:
    """What step 10 does with the held-out tokens."""
    return observe(model, heldout)
