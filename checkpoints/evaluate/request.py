"""What is asked of the checkpoints, and what a result depends on beside the weights."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints.evaluate.subjects import Subject
from olmo_train.config.data import DataConfig
from olmo_train.config.dtypes import FloatType

DTYPES = {FloatType.FLOAT32: torch.float32, FloatType.BFLOAT16: torch.bfloat16}
MAX_INSTANCES = 64
"""Held-out instances per source, where no run says how many."""


@dataclass(frozen=True)
class Request:
    """The suites and their limits; None: as in training, or all where no run says."""

    device: torch.device
    heldout: bool = False
    tasks: tuple[str, ...] = ()
    """Labels of ai2-olmo-eval."""
    lm_eval: tuple[str, ...] = ()
    """Tasks, groups and tags of lm-eval."""
    lm_eval_path: Path | None = None
    """Folder with tasks of the user's own."""
    shards: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    dtype: FloatType | None = None
    max_instances: int | None = None
    limit: int | None = None
    """Requests of a task (ai2-olmo-eval) or its documents (lm-eval)."""
    rows: int | None = None
    """Sequences in one forward pass."""

    def dtype_of(self, subject: Subject) -> FloatType:
        """Of weights and activations: as the run computed."""
        run = subject.checkpoint.run
        return self.dtype or (run.parallel.compute_dtype if run is not None else FloatType.FLOAT32)

    def rows_of(self, subject: Subject) -> int:
        """As many as a micro-batch of the run had."""
        run = subject.checkpoint.run
        return self.rows or (run.data.micro_batch_size // run.data.seq_len if run is not None else 1)

    def data_of(self, subject: Subject) -> DataConfig:
        """Geometry of the forward passes, without sources."""
        run, seq_len = subject.checkpoint.run, subject.checkpoint.seq_len
        size = self.rows_of(subject) * seq_len
        masking = run is not None and run.data.document_masking
        return DataConfig(seq_len=seq_len, global_batch_size=size, micro_batch_size=size, document_masking=masking)

    def settings_of(self, subject: Subject, packages: tuple[str, ...] = ()) -> dict[str, Any]:
        """What every suite's numbers depend on: number format, device, length, and versions of torch and `packages`."""
        device = "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        versions = {name: importlib.metadata.version(name) for name in ("torch", *packages)}
        return {
            "dtype": str(self.dtype_of(subject)), "device": device, "seq_len": subject.checkpoint.seq_len, "versions": versions,
        }  # fmt: skip
