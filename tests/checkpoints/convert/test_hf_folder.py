"""What is written as a Hugging Face folder is what was trained: bit for bit, and to the last logit in transformers."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.convert import pieces as pieces_module
from checkpoints.convert.hf_folder import HFFiles, HFOptions, write_hf
from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_checkpoint, open_hf_folder, open_step_folder
from olmo_train.config.model import ModelConfig
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.model.shapes import param_shapes
from tests.checkpoints.convert.memory import Watched, most_memory
from tests.checkpoints.convert.models import MODELS, SEQ_LEN, random_params, write_model

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
ALL = pytest.mark.parametrize("case", MODELS)


def made(tmp_path: Path, case: str, dtype: torch.dtype = torch.float32) -> tuple[Checkpoint, dict[str, Tensor]]:
    params = random_params(MODELS[case], dtype)
    return open_step_folder(write_model(tmp_path / "step", MODELS[case], params)), params


def ids_of(model: ModelConfig, n: int = 40) -> Tensor:
    return torch.randint(0, model.vocab_size, (2, n), generator=torch.Generator().manual_seed(1))


def their_logits(folder: Path, ids: Tensor) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits


def our_logits(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = load_model(checkpoint, CPU)(ids)
    assert isinstance(logits, Tensor)
    return logits


# ---- the same weights, the same numbers -----------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint, params = made(tmp_path, case, dtype)
    write_hf(checkpoint, tmp_path / "hf", HFOptions(shard_bytes=60_000))
    again = open_hf_folder(tmp_path / "hf")
    assert set(again.weights.shapes) == set(params)
    for name, param in params.items():
        assert again.weights.dtype(name) == dtype
        assert torch.equal(again.weights.read(name), param), name
        assert torch.equal(again.weights.read(name, (1, len(param))), param[1:]), name
    write_hf(again, tmp_path / "hf2", HFOptions(shard_bytes=60_000))
    for path in (tmp_path / "hf").glob("model*"):
        assert (tmp_path / "hf2" / path.name).read_bytes() == path.read_bytes()


@ALL
def test_transformers_computes_the_same_from_it(case: str, tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path, case)
    write_hf(checkpoint, tmp_path / "hf")
    ids = ids_of(checkpoint.model)
    theirs, ours = their_logits(tmp_path / "hf", ids), our_logits(checkpoint, ids)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert torch.equal(our_logits(open_hf_folder(tmp_path / "hf"), ids), ours)


THEIRS: dict[str, dict[str, Any]] = {
    "OlmoeConfig": {"intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True, "clip_qkv": 0.5},
    "OlmoConfig": {"intermediate_size": 40, "tie_word_embeddings": True, "clip_qkv": 0.5},
    "Olmo2Config": {"intermediate_size": 40, "num_key_value_heads": 2, "rope_theta": 9000.0},
    "Olmo3Config": {"intermediate_size": 40, "num_hidden_layers": 8, "sliding_window": 5},
}


@pytest.mark.parametrize("config", THEIRS)
@pytest.mark.parametrize("layout", ["files", "module"])
def test_a_folder_of_transformers_has_the_same_logits_here_and_after_going_through(
    config: str, layout: str, tmp_path: Path
) -> None:
    shape = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**{**shape, **THEIRS[config]}), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for param in theirs.parameters():
            param.normal_(1.0, 0.2) if param.ndim == 1 else param.normal_(0.0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    if layout == "module":  # as modules of transformers 5 have them: experts stacked
        for path in (tmp_path / "theirs").glob("model*"):
            path.unlink()
        unique = {name: param.detach().clone() for name, param in theirs.named_parameters()}
        save_file(unique, tmp_path / "theirs/model.safetensors", {"format": "pt"})
    ids = torch.randint(0, 90, (2, 30))
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
    checkpoint = open_checkpoint(str(tmp_path / "theirs"))
    ours = our_logits(checkpoint, ids)
    assert float((ours - expected).norm() / expected.norm()) < 1e-5
    write_hf(checkpoint, tmp_path / "again")
    saved = load_file(tmp_path / "again/model.safetensors")
    theirs.save_pretrained(tmp_path / "whole")
    whole = load_file(tmp_path / "whole/model.safetensors")
    assert set(saved) == set(whole)
    assert all(torch.equal(saved[name], whole[name]) for name in whole)
    assert torch.equal(their_logits(tmp_path / "again", ids), expected)


def test_bfloat16_is_the_nearest_and_float16_refuses_what_is_too_large(tmp_path: Path) -> None:
    checkpoint, params = made(tmp_path, "olmoe")
    write_hf(checkpoint, tmp_path / "hf", HFOptions(torch.bfloat16))
    again = open_hf_folder(tmp_path / "hf")
    assert all(torch.equal(again.weights.read(name), param.bfloat16()) for name, param in params.items())
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"
    write_hf(checkpoint, tmp_path / "half", HFOptions(torch.float16))
    params["norm.weight"][3] = 1e5
    large = open_step_folder(write_model(tmp_path / "large", MODELS["olmoe"], params))
    with pytest.raises(CheckpointError, match=r"norm\.weight has values up to 1e\+05, float16 ends at 6\.55e\+04; use bfloat16"):
        write_hf(large, tmp_path / "never", HFOptions(torch.float16))
    assert left_over(tmp_path) == []


# ---- the files ------------------------------------------------------------------------------------------------------------


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or path.name == "never"]


def test_every_file_and_tensor_is_listed_with_its_hash(tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path, "olmoe")
    written = write_hf(checkpoint, tmp_path / "hf", HFOptions(shard_bytes=15_000))
    there = {path.name: path for path in (tmp_path / "hf").iterdir()}
    assert set(written.files) == set(there)
    for name, entry in written.files.items():
        data = there[name].read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    index = json.loads(there["model.safetensors.index.json"].read_text())
    assert index["weight_map"] == {name: entry["file"] for name, entry in sorted(written.tensors.items())}
    n_files = len(set(index["weight_map"].values()))
    assert n_files > 3
    total = 0
    for name, entry in written.tensors.items():
        tensor = load_file(there[entry["file"]])[name]
        total += tensor.numel() * 4
        data = tensor.numpy().tobytes()
        assert (entry["dtype"], entry["shape"], entry["sha256"]) == (
            "F32", list(tensor.shape), hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
        assert entry["file"].endswith(f"-of-{n_files:05d}.safetensors")
        assert there[entry["file"]].stat().st_size < 15_000 + 3000 or len(load_file(there[entry["file"]])) == 1
    assert index["metadata"]["total_size"] == total
    again = write_hf(checkpoint, tmp_path / "again", HFOptions(shard_bytes=15_000))
    assert again == written  # the same bytes


def test_the_config_says_what_was_trained(tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path, "olmoe padded")
    write_hf(checkpoint, tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.vocab_size, config.max_position_embeddings, config.num_experts_per_tok) == (128, SEQ_LEN, 1)
    assert (config.pad_token_id, config.eos_token_id, config.dtype) == (None, None, torch.float32)  # no tokenizer is known
    values = json.loads((tmp_path / "hf/config.json").read_text())
    assert values["architectures"] == ["OlmoeForCausalLM"]
    assert values["pad_token_id"] is None  # the class would say 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_shared_experts": 1}, "model.moe.n_shared_experts: OlmoeForCausalLM cannot express it"),
        ({"gate": "sigmoid"}, "model.moe.gate=sigmoid: OlmoeForCausalLM cannot express it"),
        ({"bias_update_rate": 1e-3}, "model.moe.bias_update_rate: OlmoeForCausalLM cannot express it"),
    ],
)
def test_what_no_class_computes_is_refused_before_anything_is_written(change: Any, reason: str, tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path, "olmoe")
    assert checkpoint.model.moe is not None
    model = replace(checkpoint.model, moe=replace(checkpoint.model.moe, **change))
    with pytest.raises(ConfigError) as caught:
        write_hf(replace(checkpoint, model=model), tmp_path / "never")
    assert reason in str(caught.value)
    assert left_over(tmp_path) == []


def test_options_and_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path, "olmo2")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists already and is never overwritten; give another name"):
        write_hf(checkpoint, tmp_path / "there")
    with pytest.raises(ConfigError, match=r"dtype torch\.int32 is not one of float32, bfloat16, float16"):
        write_hf(checkpoint, tmp_path / "never", HFOptions(torch.int32))
    with pytest.raises(ConfigError, match="shard_bytes=0 must be positive"):
        write_hf(checkpoint, tmp_path / "never", HFOptions(shard_bytes=0))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/never cannot be written: Not a directory; give another folder"):
        write_hf(checkpoint, tmp_path / "file/never")


# ---- damage ---------------------------------------------------------------------------------------------------------------


def test_a_damaged_step_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path, "olmoe")
    path = tmp_path / "step/model-00001-of-00003.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"the model file cannot be read: .* check it with `olmo checkpoints verify"):
        write_hf(checkpoint, tmp_path / "never")
    path.unlink()
    with pytest.raises(CheckpointError, match="the model file cannot be read: No such file"):
        write_hf(checkpoint, tmp_path / "never")
    path.write_bytes(whole)
    for change, reason in (
        ({"d_ff": 12, "moe": None, "norm_order": "post"}, r"blocks\.0\.feed_forward\.w_in\.weight is missing"),
        ({"tie_embeddings": True}, r"lm_head\.weight is not in its config"),
        ({"d_model": 16}, r"embedding\.weight has shape \(101, 32\), its config says \(101, 16\); .* \(and 18 more\)"),
    ):
        other = replace(checkpoint, model=replace(checkpoint.model, **change))  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=f"its weights are not those of its config: .*{reason}"):
            write_hf(other, tmp_path / "never")
    assert left_over(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """On a real file system of 64 KiB, where root may mount one."""
    checkpoint, _ = made(tmp_path, "olmoe")
    target = tmp_path / "small"
    target.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=64k tmpfs {target} 2>/dev/null") != 0:
        pytest.skip("needs a small file system")
    try:
        with pytest.raises(CheckpointError, match="small/never cannot be written: No space left on device; .* free space"):
            write_hf(checkpoint, target / "never")
        assert list(target.iterdir()) == []
    finally:
        os.system(f"umount {target}")


# ---- memory ---------------------------------------------------------------------------------------------------------------


def test_memory_holds_a_piece_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 2 * 2**20)
    moe = replace(MODELS["olmoe"].moe, n_experts=32, d_expert=256)  # type: ignore[type-var]
    model = replace(MODELS["olmoe"], d_model=512, n_layers=2, vocab_size=5000, moe=moe)
    params = {shape.name: torch.ones(shape.shape) for shape in param_shapes(model)}
    size = sum(param.numel() * 4 for param in params.values())
    checkpoint = open_step_folder(write_model(tmp_path / "step", model, params, n_ranks=2))
    del params
    watched = Watched(checkpoint.weights)
    write: list[HFFiles] = []
    options = HFOptions(torch.bfloat16, shard_bytes=10**7)
    peak = most_memory(lambda: write.append(write_hf(replace(checkpoint, weights=watched), tmp_path / "hf", options)))
    assert len([name for name in write[0].files if name.endswith(".safetensors")]) > 4
    one_expert = 2 * 256 * 512 * 4
    assert watched.largest <= max(2 * 2**20, one_expert)
    assert size > 120e6
    assert peak < 0.15 * size
