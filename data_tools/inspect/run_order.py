"""The data order of a run, from its folder alone: the function that the trainer asked, asked again."""

from pathlib import Path

from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import open_sources
from olmo_train.data.order import DataOrder
from olmo_train.schema import read_yaml


def open_run(folder: str) -> tuple[TrainConfig, DataOrder]:
    """The config of a run and the order of its data.

    Raises:
        ConfigError: no run is there. ShardError: its shards are not.
    """
    run = read_yaml(Path(folder) / "config.yaml", TrainConfig)
    sources = open_sources(run.data, Path(folder) / "data")
    return run, DataOrder(sources, run.seed, run.data.seq_len, run.data.global_batch_size)


def is_left_out(run: TrainConfig, document_id: str, step: int) -> bool:
    """Whether a run has end-of-text in the place of a document at a step (`data.without`)."""
    without = run.data.without
    return without is not None and step > without.after_step and document_id in without.documents
