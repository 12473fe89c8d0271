"""Tensors of a Hugging Face folder are those its config asks for, no fewer, no more, and of the right shapes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.convert.hf_folder import HFOptions, write_hf
from checkpoints.opening import open_hf_folder, open_step_folder
from checkpoints.weights import HFWeights, hf_tensor_files
from olmo_train.errors import CheckpointError
from tests.checkpoints.convert.models import MODELS, random_params, write_model

CASE = "olmoe gqa clipped"
GATE = "model.layers.0.mlp.experts.2.gate_proj.weight"
Q, K = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in one file."""
    step = write_model(tmp_path / "step", MODELS[CASE], random_params(MODELS[CASE]))
    write_hf(open_step_folder(step), tmp_path / "hf")
    return tmp_path / "hf"


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Replace tensors of the file (None: leave out)."""
    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    found |= {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(
        {name: tensor for name, tensor in found.items() if tensors.get(name, tensor) is not None}, folder / "model.safetensors"
    )


def test_any_rows_are_those_of_the_whole(folder: Path) -> None:
    weights = open_hf_folder(folder).weights
    for name, shape in weights.shapes.items():
        whole = weights.read(name)
        assert tuple(whole.shape) == shape
        for start in range(0, shape[0], 3):
            for stop in (start + 1, shape[0]):
                assert torch.equal(weights.read(name, (start, stop)), whole[start:stop]), (name, start, stop)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({GATE: None}, f"no tensor '{GATE}' \\(and 0 more\\), which its config.json asks for; the folder is not whole"),
        ({"lm_head.weight": None}, "no tensor 'lm_head.weight'"),
        ({Q.replace("weight", "bias"): torch.ones(3)}, "tensor 'model.layers.1.self_attn.q_proj.bias' .* has no place in the model"),
        ({GATE: torch.ones(12, 31)}, r"gate_proj.weight has shape \(12, 31\), its config.json says \(12, 32\)"),
        # as many rows together as there should be, but not of each
        ({Q: torch.ones(16, 32), K: torch.ones(32, 32)}, r"q_proj.weight has shape \(16, 32\), its config.json says \(32, 32\)"),
        ({K: torch.ones(16, 32).bfloat16()}, r"k_proj.weight is BF16, model.layers.1.self_attn.q_proj.weight is F32"),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int16)}, "model.norm.weight is I16, not one of F64, F32, BF16, F16"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_the_configs_are_refused(tensors: dict[str, Tensor | None], message: str, folder: Path) -> None:
    change(folder, **tensors)
    with pytest.raises(CheckpointError, match=message):
        open_hf_folder(folder)


def test_what_older_versions_saved_too_is_passed_over(tmp_path: Path) -> None:
    case = "olmoe tied"
    write_hf(open_step_folder(write_model(tmp_path / "step", MODELS[case], random_params(MODELS[case]))), tmp_path / "hf")
    change(
        tmp_path / "hf", **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": torch.ones(101, 32)}
    )
    assert "lm_head.weight" not in open_hf_folder(tmp_path / "hf").weights.shapes


def test_another_architecture_under_the_same_config_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    write_hf(
        open_step_folder(write_model(tmp_path / "dense/step", MODELS["olmo2"], random_params(MODELS["olmo2"]))), tmp_path / "d"
    )
    (folder / "config.json").write_bytes((tmp_path / "d/config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.0\.mlp\.down_proj\.weight' \(and 7 more\)"):
        open_hf_folder(folder)


def test_a_missing_or_cut_file_is_named(tmp_path: Path) -> None:
    step = write_model(tmp_path / "step", MODELS[CASE], random_params(MODELS[CASE]))
    write_hf(open_step_folder(step), tmp_path / "hf", HFOptions(shard_bytes=30_000))
    file = sorted((tmp_path / "hf").glob("model-*"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=f"{file.name} cannot be read: .*; fetch the folder again"):
        open_hf_folder(tmp_path / "hf")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"index.json names {file.name}, which is not there; fetch the folder again"):
        open_hf_folder(tmp_path / "hf")
    index = tmp_path / "hf/model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(CheckpointError, match="its safetensors cannot be read: .*; fetch the folder again"):
        hf_tensor_files(tmp_path / "hf")
    index.unlink()
    with pytest.raises(
        CheckpointError, match=r"has neither .* nor model\.safetensors: no weights in safetensors; `save_pretrained`"
    ):
        hf_tensor_files(tmp_path / "hf")


def test_an_index_that_names_the_wrong_file_is_told(tmp_path: Path) -> None:
    step = write_model(tmp_path / "step", MODELS[CASE], random_params(MODELS[CASE]))
    write_hf(open_step_folder(step), tmp_path / "hf", HFOptions(shard_bytes=30_000))
    index = tmp_path / "hf/model.safetensors.index.json"
    values = json.loads(index.read_text())
    first, last = sorted(set(values["weight_map"].values()))[:: len(set(values["weight_map"].values())) - 1]
    values["weight_map"] = {name: last if file == first else file for name, file in values["weight_map"].items()}
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{last} cannot be read: .* fetch the folder again"):
        HFWeights(tmp_path / "hf", MODELS[CASE])
