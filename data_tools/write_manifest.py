"""Describe published shards (Dolma, OLMo, OLMo-core) without touching them.

olmo data manifest 'sources={wiki: [/data/wiki/*.npy]}' folder=manifests/wiki dtype=uint16 vocab_size=50280 eos_id=50279
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from olmo_train.data.describe import DescribeOptions, describe_shards
from olmo_train.errors import run_command
from olmo_train.schema import load_config


@dataclass
class ManifestConfig:
    """`configs/manifest.yaml`."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """Name of a source: globs of its token files, which are taken in sorted order."""
    folder: str = MISSING
    """Where the manifest and the document indexes go."""
    dtype: str = MISSING
    """uint8, uint16, uint32 or uint64. OLMoE and OLMo-1: uint16; OLMo-2 and OLMo-3: uint32."""
    vocab_size: int = MISSING
    """Ids are below this. OLMoE and OLMo-1: 50280; OLMo-2 and OLMo-3: 100278."""
    eos_id: int | None = None
    """End of text. OLMoE and OLMo-1: 50279 (not the 0 of OLMoE's training config); OLMo-2 and OLMo-3: 100257."""
    heldout_frac: float = 0.0
    read_tokens: bool = True
    """Hash every file and check every id. False is quick, but then only sizes are checked later."""
    infer_documents: bool = False
    """Where a `.csv.gz` is missing, end documents at eos_id."""
    processes: int | None = None
    """None: one per core."""


def main(argv: list[str]) -> None:
    """Write the manifest and say what it holds."""
    config = load_config("manifest", ManifestConfig, argv, _problems)
    options = DescribeOptions(
        config.dtype, config.vocab_size, config.eos_id, config.heldout_frac, config.read_tokens, config.infer_documents
    )
    manifest = describe_shards(config.sources, Path(config.folder), options, config.processes or len(os.sched_getaffinity(0)))
    for source, row in manifest.totals().items():
        print(f"{source}: {row['documents']:,} documents, {row['tokens']:,} tokens, held out {row['heldout_tokens']:,}")
    print(f"{Path(config.folder) / 'manifest.json'}: fingerprint {manifest.fingerprint()[:16]}...")


def _problems(config: ManifestConfig) -> list[str]:
    problems = [] if config.sources else ["sources is empty; give 'sources={name: [glob, ...]}'"]
    if config.vocab_size < 1:
        problems.append(f"vocab_size={config.vocab_size} must be positive")
    if not 0 <= config.heldout_frac < 1:
        problems.append(f"heldout_frac={config.heldout_frac} is not in [0, 1)")
    if config.infer_documents and config.eos_id is None:
        problems.append("infer_documents=true needs eos_id, the id that ends a document")
    if config.eos_id is not None and not 0 <= config.eos_id < config.vocab_size:
        problems.append(f"eos_id={config.eos_id} is not in 0 .. {config.vocab_size - 1}, the ids of the vocabulary")
    if config.processes is not None and config.processes < 1:
        problems.append(f"processes={config.processes} must be positive; null takes one per core")
    return problems


if __name__ == "__main__":
    raise SystemExit(run_command(main))
