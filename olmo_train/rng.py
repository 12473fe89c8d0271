"""Random numbers that do not depend on the layout, and the state of those that a run consumes."""

import hashlib
import json
import random
from typing import Any

import numpy as np
import torch


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from anything JSON can write: the same on every machine and Python version."""
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, numpy and torch; every rank differently, because what they draw must not be alike."""
    value = seed_of("run", seed, rank)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of all generators, as uint8 tensors."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state()
    assert isinstance(numpy_state, tuple)
    plain = [version, list(words), gauss, [str(numpy_state[0]), numpy_state[1].tolist(), *numpy_state[2:]]]
    state = {
        "python_numpy": torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `rng_state` returned."""
    version, words, gauss, numpy_state = json.loads(bytes(state["python_numpy"].tolist()))
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = numpy_state
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
