"""Whatever names a checkpoint here opens as the same thing."""

import json
from pathlib import Path

import pytest
import torch

from checkpoints.convert.hf_folder import write_hf
from checkpoints.opening import is_step_folder, open_checkpoint, open_hf_folder
from olmo_train.errors import CheckpointError, ConfigError
from tests.texts import TextCorpus


def test_a_run_opens_at_its_newest_or_a_given_step_and_a_step_as_itself(run: Path, corpus: TextCorpus) -> None:
    newest, fifth = open_checkpoint(str(run)), open_checkpoint(str(run), 5)
    assert (newest.step, fifth.step, newest.seq_len, newest.is_hf) == (10, 5, 16, False)
    assert fifth.folder == run / "steps/step00000005"
    assert open_checkpoint(str(fifth.folder)).state == fifth.state
    assert newest.tokenizer == corpus.shards / "tokenizer.json"
    with pytest.raises(ConfigError, match="--step=3 is not saved in"):
        open_checkpoint(str(run), 3)
    assert is_step_folder(fifth.folder)
    assert not is_step_folder(run)


def test_a_hugging_face_folder_opens_without_a_run(run: Path, tmp_path: Path) -> None:
    step = open_checkpoint(str(run))
    write_hf(step, tmp_path / "hf")
    found = open_checkpoint(str(tmp_path / "hf"))
    assert (found.run, found.state, found.step, found.is_hf) == (None, {}, None, True)
    assert found.seq_len == step.seq_len
    assert found.tokenizer == tmp_path / "hf/tokenizer.json"
    assert all(torch.equal(found.weights.read(name), step.weights.read(name)) for name in step.weights.shapes)
    (tmp_path / "hf/tokenizer.json").unlink()
    assert open_hf_folder(tmp_path / "hf").tokenizer is None


def test_what_is_not_there_or_no_checkpoint_is_told(run: Path, tmp_path: Path) -> None:
    write_hf(open_checkpoint(str(run)), tmp_path / "hf")
    with pytest.raises(ConfigError, match="--step=3 goes with the folder of a run; .* is one checkpoint already"):
        open_checkpoint(str(tmp_path / "hf"), 3)
    with pytest.raises(ConfigError, match="nowhere/at/all does not exist, and is no hub repository .* or a Hugging Face folder"):
        open_checkpoint("nowhere/at/all")
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        open_checkpoint(str(tmp_path))
    config = tmp_path / "hf/config.json"
    values = json.loads(config.read_text())
    for text, reason in (("{", "Expecting property name"), ("[1]", "not a JSON object")):
        config.write_text(text)
        with pytest.raises(CheckpointError, match=rf"hf/config\.json cannot be read: {reason}.*; fetch the folder again"):
            open_checkpoint(str(tmp_path / "hf"))
    config.write_text(json.dumps({**values, "model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"hf/config\.json: model_type=llama is not one of olmoe, olmo, olmo2, olmo3"):
        open_checkpoint(str(tmp_path / "hf"))
