"""transformers' tokenizer of a converted folder gives the ids that the model was trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpoints.convert.hf_folder import write_hf
from checkpoints.opening import Checkpoint, open_checkpoint, open_hf_folder, open_step_folder
from olmo_train.errors import ConfigError
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer
from tests.checkpoints.convert.models import MODELS, SEQ_LEN, random_params, write_model
from tests.texts import VOCAB, TextCorpus

transformers = pytest.importorskip("transformers")
HOSTILE = [
    "", " ", "the cat  sees\tthe\n\n\ndog ", "  indented\r\n", "\u00e9 e\u0301 \ufb01 \u200b\ufeff", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd \u4f60\u597d", "\x00\x01\x7f\ud7ff\U0010ffff",
    "1234567 don't I'LL we've", f"{END_OF_TEXT} a {END_OF_TEXT}{END_OF_TEXT}", "<|endoftext", "<s></s>[CLS]<pad>", "a" * 500, "\n" * 70,
]  # fmt: skip


def theirs_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_and_text_are_ours(run: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(run))
    write_hf(checkpoint, tmp_path / "hf")
    assert checkpoint.tokenizer is not None
    ours, theirs = Tokenizer(checkpoint.tokenizer), theirs_of(tmp_path / "hf")
    for text in HOSTILE:
        assert theirs(text)["input_ids"] == ours.encode(text), repr(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)), repr(text)
    assert (tmp_path / "hf/tokenizer.json").read_bytes() == checkpoint.tokenizer.read_bytes()
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == (END_OF_TEXT, ours.eos_id, VOCAB)
    assert theirs.model_max_length == checkpoint.seq_len
    assert len(theirs(["a", "a cat"], padding=True)["input_ids"][0]) == len(theirs("a cat")["input_ids"])


def test_special_ids_are_the_tokenizers(run: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(run))
    write_hf(checkpoint, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    generation = json.loads((tmp_path / "hf/generation_config.json").read_text())
    eos = theirs_of(tmp_path / "hf").eos_token_id
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == (eos, eos, None)
    assert generation == {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}


def step_with(tokenizer: Path, tmp_path: Path, vocab_size: int = VOCAB) -> Checkpoint:
    model = replace(MODELS["olmo2"], vocab_size=vocab_size)
    return open_step_folder(write_model(tmp_path / "step", model, random_params(model), tokenizer=tokenizer))


def test_a_padding_token_of_its_own_is_used_and_limits_of_an_evaluation_are_taken_out(corpus: TextCorpus, tmp_path: Path) -> None:
    values = json.loads(corpus.tokenizer.read_text("utf-8"))
    pad = {**values["added_tokens"][0], "id": VOCAB, "content": "<|padding|>"}
    values["added_tokens"].append(pad)
    values["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": VOCAB, "pad_type_id": 0,
        "pad_token": "<|padding|>",
    }  # fmt: skip
    (tmp_path / "limited.json").write_text(json.dumps(values), "utf-8")
    checkpoint = step_with(tmp_path / "limited.json", tmp_path, VOCAB + 1)
    write_hf(checkpoint, tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["pad_token_id"] == VOCAB
    assert json.loads((tmp_path / "hf/tokenizer.json").read_text("utf-8")) == {**values, "truncation": None, "padding": None}
    ours, theirs = Tokenizer(tmp_path / "limited.json"), theirs_of(tmp_path / "hf")
    assert theirs.pad_token_id == VOCAB
    for text in HOSTILE:
        assert theirs(text)["input_ids"] == ours.encode(text), repr(text)


def test_a_folder_of_others_keeps_its_tokenizer_files_and_ids(run: Path, tmp_path: Path) -> None:
    write_hf(open_checkpoint(str(run)), tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    config |= {"eos_token_id": [3, 4], "pad_token_id": 1, "bos_token_id": None}
    (tmp_path / "theirs/config.json").write_text(json.dumps(config))
    (tmp_path / "theirs/chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "theirs/generation_config.json").write_text('{"temperature": 0.3}')
    write_hf(open_hf_folder(tmp_path / "theirs"), tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    values = json.loads((tmp_path / "again/config.json").read_text())
    assert (values["eos_token_id"], values["pad_token_id"], values["bos_token_id"]) == ([3, 4], 1, None)


def test_a_tokenizer_that_is_too_large_or_damaged_is_refused(corpus: TextCorpus, tmp_path: Path) -> None:
    checkpoint = step_with(corpus.tokenizer, tmp_path, 101)
    with pytest.raises(ConfigError, match="300 ids, the model has 101 rows; give --tokenizer the one of the run's shards"):
        write_hf(checkpoint, tmp_path / "never")
    shutil.rmtree(tmp_path / "step")
    checkpoint = step_with(corpus.tokenizer, tmp_path)
    (tmp_path / "step/tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizers file"):
        write_hf(checkpoint, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    assert checkpoint.seq_len == SEQ_LEN
