"""`olmo convert` says what it wrote and what to try next, and what its flags have wrong."""

import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

from checkpoints.convert.command import continue_words, main
from checkpoints.convert.hf_folder import write_hf
from checkpoints.convert.step_folder import write_step
from checkpoints.opening import open_checkpoint, open_hf_folder, open_step_folder
from checkpoints.release import weights_digest
from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.schema import load_config
from tests.checkpoints.convert.models import MODELS, random_params, write_model
from tests.texts import TextCorpus

Out = pytest.CaptureFixture[str]


def test_to_hf_and_to_step_and_back(run: Path, tmp_path: Path, capsys: Out) -> None:
    main([str(run), str(tmp_path / "hf"), "--shard-gb", "2e-5"])
    said = capsys.readouterr().out.splitlines()
    assert "tensors in F32, bit for bit" in said[0]
    written = write_hf(open_checkpoint(str(run)), tmp_path / "again")
    assert said[1] == f"SHA-256 of the weights: {weights_digest(written.tensors)}"
    assert said[3] == f"  olmo generate {tmp_path / 'hf'} --prompt 'Once'"
    assert len(list((tmp_path / "hf").glob("model-*"))) > 3
    main([str(tmp_path / "hf"), str(tmp_path / "step"), "--to", "step"])
    said = capsys.readouterr().out.splitlines()
    assert "weights, no optimizer state" in said[0]
    words = shlex.split(said[-1])
    assert words[:2] == ["olmo", "train"]
    model = load_config("train", TrainConfig, words[2:]).model
    assert model == open_step_folder(tmp_path / "step").model
    main([str(tmp_path / "step"), str(tmp_path / "back"), "--dtype", "bfloat16"])
    assert set(load_file(tmp_path / "back/model.safetensors")) == set(load_file(tmp_path / "again/model.safetensors"))
    assert "tensors in BF16, rounded where they were wider" in capsys.readouterr().out


def test_a_step_of_a_run_and_a_tokenizer_can_be_named(run: Path, corpus: TextCorpus, tmp_path: Path, capsys: Out) -> None:
    step = write_model(tmp_path / "made", MODELS["olmoe"], random_params(MODELS["olmoe"]))
    main([str(step), str(tmp_path / "hf")])
    assert "No tokenizer is known, so there is none in the folder: --tokenizer tokenizer.json adds it." in capsys.readouterr().out
    main([str(run), str(tmp_path / "fifth"), "--step", "5", "--tokenizer", str(corpus.tokenizer)])
    assert (tmp_path / "fifth/tokenizer.json").read_bytes() == corpus.tokenizer.read_bytes()
    found = open_hf_folder(tmp_path / "fifth").weights.read("norm.weight")
    assert found.equal(open_checkpoint(str(run), 5).weights.read("norm.weight"))


def test_to_gguf(run: Path, tmp_path: Path, capsys: Out) -> None:
    pytest.importorskip("gguf")
    main([str(run), str(tmp_path / "first.gguf"), "--to", "gguf", "--quantization", "f32"])
    said = capsys.readouterr().out
    assert f"{tmp_path / 'first.gguf'}: " in said
    assert "matrices in f32" in said


def test_every_flag_that_does_not_fit_is_told_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        main([str(run), str(run), "--to", "step", "--dtype", "float16", "--shard-gb", "-1", "--quantization", "q8_0"])
    text = str(caught.value)
    for part in (
        "--dtype=float16 goes with --to hf, not with --to step",
        "--quantization=q8_0 goes with --to gguf, not with --to step",
        "--shard-gb=-1.0 must be positive",
        f"{run} exists already and is never overwritten",
    ):
        assert part in text
    with pytest.raises(ConfigError, match="is a step folder already; cp -r copies it"):
        main([str(run), str(tmp_path / "never"), "--to", "step"])
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("case", ["olmoe padded", "olmo untied gqa clipped", "olmo3 yarn"])
def test_the_next_command_has_the_very_model(case: str, tmp_path: Path) -> None:
    write_hf(open_step_folder(write_model(tmp_path / "made", MODELS[case], random_params(MODELS[case]))), tmp_path / "hf")
    write_step(open_hf_folder(tmp_path / "hf"), tmp_path / "step")
    words = continue_words(tmp_path / "step", with_optimizer=False)
    assert load_config("train", TrainConfig, words).model == open_step_folder(tmp_path / "step").model
