"""Ai2's own reader and filter, on the same files: the same instances, the same masks."""

from pathlib import Path

import numpy as np
import pytest

from olmo_train.config.data import DataConfig, SourceConfig
from olmo_train.data.loader import open_sources, read_rows
from olmo_train.data.order import DataOrder
from olmo_train.data.repetition import repeats
from tests.corpora import EOS, VOCAB, Spec, write_corpus

olmo_core_data = pytest.importorskip("olmo_core.data")
T = 32


@pytest.fixture
def dataset(tmp_path: Path):  # type: ignore[no-untyped-def]
    write_corpus(tmp_path / "shards", Spec(heldout_frac=0.0))
    files = sorted((tmp_path / "shards").glob("*/*.npy"))
    tokenizer = olmo_core_data.TokenizerConfig(vocab_size=VOCAB, eos_token_id=EOS, pad_token_id=EOS)
    config = olmo_core_data.NumpyFSLDatasetConfig(
        tokenizer=tokenizer, paths=[str(f) for f in files], sequence_length=T, work_dir=str(tmp_path / "work"),
        dtype=olmo_core_data.NumpyDatasetDType.uint16, generate_doc_lengths=True,
        instance_filter_config=olmo_core_data.numpy_dataset.InstanceFilterConfig(repetition_max_period=13, repetition_min_period=1, repetition_max_count=4),
    )  # fmt: skip
    built = config.build()
    built.prepare()
    return built


def our_rows(shards: Path):  # type: ignore[no-untyped-def]
    """One epoch of ours, by place."""
    config = DataConfig(sources={"all": SourceConfig(path=str(shards))})
    order = DataOrder(open_sources(config, shards), 1, T, T)
    (n,) = order.instances_per_epoch().values()
    instances = [order.batch(step)[0] for step in range(1, n + 1)]
    instances.sort(key=lambda i: (str(i.pieces[0].file.path), i.pieces[0].start))
    return read_rows([i.pieces for i in instances], T, True, None)


def test_the_instances_of_an_epoch_are_theirs(dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = our_rows(tmp_path / "shards")
    assert len(dataset) == len(rows.ids)
    for i in range(len(dataset)):
        assert dataset[i]["input_ids"].tolist() == rows.ids[i].tolist()
        lengths = [n for n in dataset[i]["doc_lens"].tolist() if n]
        assert np.bincount(rows.documents[i]).tolist() == lengths


def test_the_repetition_mask_is_theirs(dataset) -> None:  # type: ignore[no-untyped-def]
    """Theirs compares rows of a reshaped array and sees some repeats a little short; where it masks, so do we."""
    ids = np.stack([dataset[i]["input_ids"].numpy() for i in range(len(dataset))])
    planted = ids.copy()
    rng = np.random.default_rng(0)
    for row in planted[::3]:
        period = int(rng.integers(1, 5))
        row[:] = np.resize(rng.integers(1, VOCAB, period), T)
    import torch

    theirs = [not dataset._validate_instance(torch.tensor(row), dataset.instance_filter_config) for row in planted]
    ours = repeats(planted, 1, 13, 4).tolist()
    assert ours == theirs
    assert sum(ours) >= len(planted) // 3
