"""Small corpora for tests: documents of a language that a model can learn, written as shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from olmo_train.data.manifest import Manifest
from olmo_train.data.shards import ShardWriter, WriterOptions

VOCAB = 97
EOS = 0


@dataclass(frozen=True)
class Spec:
    """What to write."""

    n_documents: int = 300
    sources: tuple[str, ...] = ("a", "b")
    heldout_frac: float = 0.05
    max_tokens_per_file: int = 6000
    max_length: int = 120
    dtype: str = "uint16"
    seed: int = 0
    token_bytes: bool = True


def document_ids(rng: np.random.Generator, max_length: int) -> np.ndarray:
    """A walk that mostly goes up by one or two: predictable, but not wholly; one in ten repeats itself. Ends in EOS."""
    length = int(rng.integers(1, max_length))
    if rng.random() < 0.1:
        return np.append(np.resize(rng.integers(1, VOCAB, 3), length), EOS)
    steps = rng.choice([1, 2, 7], size=length, p=[0.6, 0.3, 0.1])
    walk = 1 + (int(rng.integers(1, VOCAB)) + np.cumsum(steps)) % (VOCAB - 1)
    return np.append(walk, EOS)


def write_corpus(folder: Path, spec: Spec = Spec()) -> Manifest:
    """Write shards; documents alternate between the sources and are named <source>/<number>."""
    rng = np.random.default_rng(spec.seed)
    options = WriterOptions(spec.dtype, VOCAB, EOS, spec.heldout_frac, spec.max_tokens_per_file)
    with ShardWriter(folder, options) as writer:
        for n in range(spec.n_documents):
            source = spec.sources[n % len(spec.sources)]
            ids = document_ids(rng, spec.max_length)
            writer.add(source, (f"{source}/{n}", f"{source}.jsonl", n + 1), ids, 2 * len(ids))
        return writer.close(token_bytes=np.full(VOCAB, 2) if spec.token_bytes else None)
