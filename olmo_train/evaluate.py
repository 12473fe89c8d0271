"""Held-out loss by source, in nats per token and bits per byte, during training."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from olmo_train.config.data import DataConfig
from olmo_train.data.loader import IGNORE, Rows, document_offsets, heldout_batches
from olmo_train.data.order import HeldoutStream, Source
from olmo_train.data.shards import ShardFile
from olmo_train.kernels.attention import Documents
from olmo_train.parallel.fsdp import evaluating
from olmo_train.parallel.mesh import Layout


class HeldoutEvaluator:
    """Evaluates a model on the held-out documents of each source. All ranks take part."""

    def __init__(
        self,
        sources: list[Source],
        token_bytes: dict[str, np.ndarray | None],
        config: DataConfig,
        layout: Layout,
        max_instances: int,
    ) -> None:
        """`token_bytes`: by run source, bytes per id (Corpus.token_bytes), or None where unknown."""
        self.streams: dict[str, tuple[HeldoutStream, np.ndarray | None]] = {}
        for source in sources:
            for name, files in _by_corpus_source(source).items():
                # The names of the documents' own sources; told apart by the run's where two of its sources hold the same.
                key = name if name not in self.streams else f"{source.name}/{name}"
                self.streams[key] = HeldoutStream(files, config.seq_len), token_bytes[source.name]
        self.config, self.layout, self.max_instances = config, layout, max_instances

    @property
    def has_data(self) -> bool:
        """Whether any source holds documents out."""
        return any(stream.n for stream, _ in self.streams.values())

    def run(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """By source, and "all": loss (nats per token), bits_per_byte (None if bytes are unknown), tokens (targets evaluated)."""
        with evaluating(model):
            sums = {name: self._source_sums(model, *stream) for name, stream in self.streams.items() if stream[0].n}
        total = torch.stack(list(sums.values())).sum(0) if len(sums) > 1 else None
        results = {name: _result(values, self.streams[name][1] is not None) for name, values in sums.items()}
        if total is not None:
            results["all"] = _result(total, all(self.streams[name][1] is not None for name in sums))
        return results

    def _source_sums(self, model: nn.Module, stream: HeldoutStream, table: np.ndarray | None) -> Tensor:
        """float64 (3,): nats, targets, bytes of the targets, over all ranks."""
        sums = torch.zeros(3, dtype=torch.float64)
        idle = _idle_rows(self.config)
        for rows in heldout_batches(stream, self.config, (self.layout.rank, self.layout.n_ranks), self.max_instances):
            out = model(*to_device(rows or idle, self.layout.device))
            if rows is None:
                continue
            labels = rows.labels[rows.labels != IGNORE]
            n_bytes = 0 if table is None else int(table[labels].astype(np.int64).sum())
            sums += torch.tensor([float(out.cross_entropy), len(labels), n_bytes], dtype=torch.float64)
        dist.all_reduce(sums, group=self.layout.control)
        return sums


def _by_corpus_source(source: Source) -> dict[str, list[ShardFile]]:
    files: dict[str, list[ShardFile]] = {}
    for file in source.files:
        files.setdefault(file.entry.source, []).append(file)
    return files


def to_device(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor, Documents | None]:
    """(ids, labels, documents) as the model takes them."""

    def move(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    documents = None
    if rows.documents is not None:
        documents = Documents(move(rows.documents), move(document_offsets(rows.documents)))
    return move(rows.ids), move(rows.labels), documents


def _idle_rows(config: DataConfig) -> Rows:
    """One row without targets, for a rank that has none left: its weights are still needed by the others."""
    shape = (1, config.seq_len)
    documents = np.zeros(shape, np.int32) if config.document_masking else None
    return Rows(np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64), documents, np.zeros(1, bool))


def _result(sums: Tensor, has_bytes: bool) -> dict[str, Any]:
    nats, targets, n_bytes = sums.tolist()
    bits_per_byte = nats / math.log(2) / n_bytes if has_bytes and n_bytes else None
    return {"loss": nats / max(targets, 1.0), "bits_per_byte": bits_per_byte, "tokens": int(targets)}
