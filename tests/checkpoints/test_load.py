"""A model comes out of a step folder as it was trained, whole and on one device, with the tokenizer of its shards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.load import load_model, load_tokenizer
from checkpoints.opening import open_step_folder, tokenizer_of
from olmo_train.checkpoint import load_rows, read_manifest
from olmo_train.data.loader import open_sources, read_rows
from olmo_train.data.order import HeldoutStream
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.transformer import Losses
from olmo_train.tokenizer import Tokenizer
from tests.runs import metrics
from tests.texts import VOCAB, TextCorpus

CPU = torch.device("cpu")


def test_the_weights_of_all_ranks_come_together(run: Path) -> None:
    folder = run / "steps/step00000010"
    checkpoint = open_step_folder(folder)
    model, config = load_model(checkpoint, CPU), checkpoint.run
    assert config is not None
    manifest = read_manifest(folder)
    assert {name for name, _ in model.named_parameters()} == set(manifest["tensors"]["model"])
    for name, param in model.named_parameters():
        assert torch.equal(param, load_rows(folder, manifest, "model", {name: None})[name])
        assert param.dtype == torch.float32
    assert not model.training
    assert (config.run_name, config.model.vocab_size) == ("first", VOCAB)


def test_the_loaded_model_has_the_held_out_loss_that_training_wrote(run: Path) -> None:
    written = {line["step"]: line["eval"]["heldout"]["animals"] for line in metrics(run) if "eval" in line}
    for step in (0, 5, 10):
        checkpoint = open_step_folder(run / f"steps/step{step:08d}")
        model, config = load_model(checkpoint, CPU), checkpoint.run
        assert config is not None
        (source,) = open_sources(config.data, run / "data")
        files = [file for file in source.files if file.entry.source == "animals"]
        stream = HeldoutStream(files, config.data.seq_len)
        n = min(stream.n, config.eval.max_instances)
        rows = read_rows([stream.pieces(i) for i in range(n)], config.data.seq_len, False, None)
        with torch.no_grad():
            out = model(torch.from_numpy(rows.ids), torch.from_numpy(rows.labels))
        assert isinstance(out, Losses)
        assert float(out.cross_entropy) / rows.n_targets == pytest.approx(written[step]["loss"], rel=1e-5)


def test_a_folder_that_is_no_step_is_refused(run: Path, copy: Path, corpus: TextCorpus) -> None:
    with pytest.raises(CheckpointError, match="has no manifest.json: not a finished step folder"):
        open_step_folder(run)
    with pytest.raises(CheckpointError, match=r"is not of format olmo_train.step version 1"):
        open_step_folder(corpus.shards)
    (copy / "steps/step00000010/config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"step00000010/config.yaml does not exist"):
        open_step_folder(copy / "steps/step00000010")


def test_weights_of_another_model_are_refused(copy: Path) -> None:
    config = copy / "steps/step00000010/config.yaml"
    text = config.read_text()
    config.write_text(text.replace("n_layers: 2", "n_layers: 3"))
    with pytest.raises(CheckpointError, match=r"no model tensor 'blocks\.2\..* it was written by another model"):
        load_model(open_step_folder(config.parent), CPU)
    config.write_text(text.replace("vocab_size: 300", "vocab_size: 200"))
    with pytest.raises(CheckpointError, match=r"its weights do not fit its config: (?s:.)*size mismatch for embedding"):
        load_model(open_step_folder(config.parent), CPU)


def test_the_tokenizer_is_the_shards_own_unless_one_is_given(run: Path, corpus: TextCorpus, shards: Path, tmp_path: Path) -> None:
    checkpoint = open_step_folder(run / "steps/step00000010")
    own = load_tokenizer(checkpoint, None)
    assert own.path == corpus.shards / "tokenizer.json"
    assert own.sha256 == Tokenizer(corpus.tokenizer).sha256
    other = tmp_path / "other.json"
    other.write_bytes(corpus.tokenizer.read_bytes())
    assert load_tokenizer(checkpoint, other).path == other
    with pytest.raises(ConfigError, match="nowhere.json: No such file or directory; train a tokenizer with"):
        load_tokenizer(checkpoint, tmp_path / "nowhere.json")
    config = checkpoint.run
    assert config is not None
    for without in (shards, tmp_path):  # a manifest that names none, and no manifest
        config.data.sources["demo"].path = str(without)
        nameless = replace(checkpoint, tokenizer=tokenizer_of(checkpoint.folder, config))
        with pytest.raises(ConfigError, match="no tokenizer is known; give --tokenizer tokenizer.json"):
            load_tokenizer(nameless, None)
