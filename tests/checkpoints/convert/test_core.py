"""Checkpoints of OLMo-core compute here what they compute there, and their optimizer state comes along."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints.convert.core import CoreWeights, need_olmo_core
from checkpoints.convert.core_config import model_from_core
from checkpoints.convert.hf_folder import write_hf
from checkpoints.convert.step_folder import StepFiles, write_step
from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_checkpoint, open_step_folder
from olmo_train.checkpoint import load_rows, read_manifest, read_state
from olmo_train.config.model import BalanceScope, NormOrder, QKNorm
from olmo_train.errors import CheckpointError, ConfigError

os.environ.setdefault("OLMO_DISABLE_PER_RANK_TRITON_CACHE", "1")
pytest.importorskip("olmo_core")
transformers = pytest.importorskip("transformers")

from olmo_core.distributed.checkpoint import save_model_and_optim_state  # noqa: E402
from olmo_core.nn.attention import AttentionBackendName  # noqa: E402
from olmo_core.nn.layer_norm import LayerNormConfig, LayerNormType  # noqa: E402
from olmo_core.nn.rope import YaRNRoPEScalingConfig  # noqa: E402
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig  # noqa: E402
from olmo_core.optim import SkipStepAdamWConfig  # noqa: E402

VOCAB = 64
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def dense(**kwargs: Any) -> TransformerConfig:
    """OLMo-2's block at a small size."""
    shape = {"d_model": 32, "vocab_size": VOCAB, "n_layers": 2, "n_heads": 4, "layer_norm_eps": 1e-6, "rope_theta": 500_000}
    block = {"block_name": TransformerBlockType.reordered_norm, "qk_norm": True}
    return TransformerConfig.llama_like(**{**shape, **block, **kwargs})


def windowed(n_layers: int) -> TransformerConfig:
    """OLMo-3's windows; the last layer is always a full one there."""
    config = TransformerConfig.olmo3_14M(vocab_size=VOCAB, n_layers=n_layers)
    mixer: Any = config.block.sequence_mixer  # type: ignore[union-attr]
    mixer.sliding_window.pattern = [7, 7, 7, -1]
    mixer.backend = AttentionBackendName.torch
    return config


def moe(reordered_norm: bool = False, normalize: float | None = None) -> TransformerConfig:
    config = TransformerConfig.llama_like_moe(
        vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, num_experts=5, top_k=2, expert_hidden_size=12, dropless=True,
        reordered_norm=reordered_norm, qk_norm=True,
    )  # fmt: skip
    config.block.feed_forward_moe.router.normalize_expert_weights = normalize  # type: ignore[union-attr]
    return config


CASES = {
    "olmo2": lambda: dense(),
    "olmo2 gqa wide heads": lambda: dense(n_kv_heads=2, head_dim=12),
    "olmo3": lambda: windowed(4),
    "olmo3 yarn": lambda: windowed(4).with_rope_scaling(YaRNRoPEScalingConfig(factor=4.0, old_context_len=64)),
    "pre-norm tied": lambda: dense(block_name=TransformerBlockType.default, qk_norm=False, tie_word_embeddings=True),
    "head norm": lambda: dense(use_head_qk_norm=True),
    "clipped": lambda: clipped(),
    "moe": lambda: moe(),
    "moe post-norm normalised": lambda: moe(True, 1.0),
}
WITH_CLASS = ("olmo2", "olmo2 gqa wide heads", "olmo3", "olmo3 yarn", "moe")
"""Those that a class of transformers computes too."""


def clipped() -> TransformerConfig:
    config = dense(qk_norm=False)
    config.block.sequence_mixer.clip_qkv = 0.3  # type: ignore[union-attr]
    return config


def saved(config: TransformerConfig, folder: Path, **sections: Any) -> Any:
    """Their model with random weights, after one step of their AdamW, saved by their own function."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(1.0, 0.2) if param.ndim == 1 and param.numel() < 100 else param.normal_(0.0, 0.1)
    optimizer = SkipStepAdamWConfig(lr=3e-3).build(model)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    folder.mkdir(parents=True)
    save_model_and_optim_state(folder / "model_and_optim", model, optimizer)
    (folder / "config.json").write_text(json.dumps({"model": config.as_config_dict(), **sections}))
    return model.eval(), optimizer


def their_logits(model: Any, ids: Tensor) -> Tensor:
    """Of a dense model as it is; their experts need a GPU, so those are ten lines."""
    with torch.no_grad():
        if not hasattr(next(iter(model.blocks.values())), "feed_forward_moe"):
            logits: Tensor = model(ids)
            return logits
        x = model.embeddings(ids)
        for block in model.blocks.values():
            if "Reordered" in type(block).__name__:
                x = x + block.attention_norm(block.attention(x))
                x = x + block.feed_forward_norm(naive_experts(block.feed_forward_moe, x))
            else:
                x = x + block.attention(block.attention_norm(x))
                x = x + naive_experts(block.feed_forward_moe, block.feed_forward_norm(x))
        return model.lm_head(x)  # type: ignore[no-any-return]


def naive_experts(module: Any, x: Tensor) -> Tensor:
    router, mlp = module.router, module.experts.mlp
    gates, chosen = router.get_expert_logits(x).softmax(-1).topk(router.top_k)
    gates = gates if router.normalize_expert_weights is None else gates / gates.sum(-1, keepdim=True)
    w1, w2, w3 = (w.view(router.num_experts, -1, x.shape[-1]) for w in (mlp.w1, mlp.w2, mlp.w3))
    out = torch.zeros_like(x)
    for k in range(router.top_k):
        a, b, c = w1[chosen[..., k]], w2[chosen[..., k]], w3[chosen[..., k]]
        hidden = torch.nn.functional.silu(torch.einsum("bthd,btd->bth", a, x)) * torch.einsum("bthd,btd->bth", c, x)
        out += gates[..., k, None] * torch.einsum("bthd,bth->btd", b, hidden)
    return out


def our_logits(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = load_model(checkpoint, CPU)(ids)
    assert isinstance(logits, Tensor)
    return logits


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm() / b.norm()) < 1e-5


# ---- the same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_logits_are_theirs_here_in_transformers_and_as_a_step_folder(case: str, tmp_path: Path) -> None:
    theirs, optimizer = saved(
        CASES[case](), tmp_path / "step42", dataset={"sequence_length": 48}, data_loader={"global_batch_size": 96}
    )
    ids = torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = their_logits(theirs, ids)
    checkpoint = open_checkpoint(str(tmp_path / "step42"))
    assert (checkpoint.step, checkpoint.state["tokens"], checkpoint.seq_len) == (42, 42 * 96, 48)
    assert close(our_logits(checkpoint, ids), expected)

    assert write_step(checkpoint, tmp_path / "ours") == StepFiles(is_rebuilt=False, has_optimizer=True)
    step = open_step_folder(tmp_path / "ours")
    assert torch.equal(our_logits(step, ids), our_logits(checkpoint, ids))
    state = read_state(tmp_path / "ours")
    assert (state["step"], state["optimizer_steps"], state["lr"]) == (42, 1, pytest.approx(3e-3))
    if case in WITH_CLASS:
        write_hf(checkpoint, tmp_path / "hf")
        hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
        with torch.no_grad():
            assert close(hf(input_ids=ids).logits, expected)
    else:
        with pytest.raises(ConfigError, match="no Hugging Face class computes the same"):
            write_hf(checkpoint, tmp_path / "hf")
    compare_moments(optimizer, theirs, tmp_path / "ours")


def compare_moments(optimizer: Any, theirs: Any, folder: Path) -> None:
    """A few tensors of each kind of layout, put together by hand."""
    state = {name: optimizer.state[param] for name, param in theirs.named_parameters() if param in optimizer.state}
    manifest = read_manifest(folder)
    for moment in ("exp_avg", "exp_avg_sq"):
        ours = load_rows(folder, manifest, "optim", dict.fromkeys(manifest["tensors"]["optim"]))
        parts = [state[f"blocks.1.attention.w_{x}.weight"][moment] for x in "qkv"]
        assert torch.equal(ours[f"{moment}/blocks.1.attention.w_qkv.weight"], torch.cat(parts))
        assert torch.equal(ours[f"{moment}/embedding.weight"], state["embeddings.weight"][moment])
        if f"{moment}/blocks.0.moe.w_in" in ours:
            w1, w2, w3 = (state[f"blocks.0.feed_forward_moe.experts.mlp.w{i}"][moment] for i in (1, 2, 3))
            assert torch.equal(ours[f"{moment}/blocks.0.moe.w_in"][3], torch.cat([w1[36:48], w3[36:48]]))
            assert torch.equal(ours[f"{moment}/blocks.0.moe.w_out"][3], w2[36:48].T)


def test_rows_are_rows_of_the_whole(tmp_path: Path) -> None:
    saved(CASES["moe"](), tmp_path / "step1")
    weights = open_checkpoint(str(tmp_path / "step1")).weights
    assert isinstance(weights, CoreWeights)
    for name, shape in weights.shapes.items():
        whole = weights.read(name)
        assert tuple(whole.shape) == shape
        assert torch.equal(weights.read(name, (1, 3)), whole[1:3])
        assert weights.dtype(name) == torch.float32


def test_what_their_config_says_of_losses_is_kept(tmp_path: Path) -> None:
    config = CASES["moe"]().as_config_dict()
    config["block"]["feed_forward_moe"] |= {"scale_loss_by_num_layers": False, "lb_loss_weight": 0.02, "z_loss_weight": 0.003}
    model = model_from_core({"model": config, "train_module": {"z_loss_multiplier": 1e-5}})
    assert model.moe is not None
    assert (model.moe.load_balancing_loss_weight, model.moe.router_z_loss_weight) == (0.04, 0.006)  # theirs adds up 2 layers
    assert (model.z_loss_weight, model.moe.load_balancing_scope) == (1e-5, BalanceScope.LOCAL)
    assert (model.norm_order, model.qk_norm, model.moe.normalize_top_k) == (NormOrder.PRE, QKNorm.FULL, False)


def test_optimizers_that_are_not_ours_are_left_with_a_reason(tmp_path: Path) -> None:
    config = dense()
    model = config.build()
    for name, optimizer in (("step1", None), ("step2", torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))):
        if optimizer is not None:
            for param in model.parameters():
                param.grad = torch.ones_like(param)
            optimizer.step()
        (tmp_path / name).mkdir()
        save_model_and_optim_state(tmp_path / name / "model_and_optim", model, optimizer)
        (tmp_path / name / "config.json").write_text(json.dumps({"model": config.as_config_dict()}))
        written = write_step(open_checkpoint(str(tmp_path / name)), tmp_path / f"ours-{name}")
        assert written == StepFiles(is_rebuilt=False, has_optimizer=False, note="the checkpoint has no state of AdamW")


def test_parameters_updated_unequally_often_are_left_with_a_reason(tmp_path: Path) -> None:
    config = dense()
    model = config.build()
    optimizer = SkipStepAdamWConfig(lr=1e-3).build(model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[model.embeddings.weight]["step"].fill_(9.0)
    (tmp_path / "step1").mkdir()
    save_model_and_optim_state(tmp_path / "step1/model_and_optim", model, optimizer)
    (tmp_path / "step1/config.json").write_text(json.dumps({"model": config.as_config_dict()}))
    written = write_step(open_checkpoint(str(tmp_path / "step1")), tmp_path / "ours")
    assert written.note == "its parameters were updated between 1 and 9 times, ours all equally often"
    del optimizer.state[model.embeddings.weight]["exp_avg"]
    shutil.rmtree(tmp_path / "step1/model_and_optim")
    save_model_and_optim_state(tmp_path / "step1/model_and_optim", model, optimizer)
    note = write_step(open_checkpoint(str(tmp_path / "step1")), tmp_path / "again").note
    assert note.startswith("its optimizer is not AdamW over all parameters: ")
    assert "optim.state.embeddings.weight.exp_avg is missing" in note


# ---- what ours is not -----------------------------------------------------------------------------------------------------

MIXER, FF, MOE = ("block", "sequence_mixer"), ("block", "feed_forward"), ("block", "feed_forward_moe")
REFUSED = [
    ("olmo2", ("block",), {"name": "peri_norm"}, "block.name=peri_norm is not default or moe or reordered_norm or"),
    ("olmo2", ("block",), {"attention_residual_alpha": 0.5}, "block.attention_residual_alpha=0.5; our model cannot express it"),
    ("olmo2", MIXER, {"name": "fused"}, "block.attention.name=fused is not default"),
    ("olmo2", MIXER, {"type": "gated_delta_net"}, "block.attention.type=gated_delta_net is not attention"),
    ("olmo2", MIXER, {"attention_sinks": True}, "block.attention.attention_sinks=True"),
    ("olmo2", MIXER, {"bias": True}, "block.attention.bias=True"),
    ("olmo2", MIXER, {"rope": None}, "block.attention.rope.name=None is not default"),
    ("olmo2", MIXER, {"clip_qkv": 8.0}, "block.attention.clip_qkv with qk_norm: theirs clamps before the norm, ours after it"),
    ("olmo2", (*MIXER, "rope"), {"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25 is not 1.0"),
    ("olmo2", (*MIXER, "rope"), {"scaling": {"_CLASS_": "x.PIRoPEScalingConfig"}}, "scaling=x.PIRoPEScalingConfig is not YaRN"),
    ("olmo2", (*MIXER, "rope"), {"theta": 100, "scaling": {"_CLASS_": "YaRNRoPEScalingConfig", "old_context_len": 10**6}},
     "old_context_len=1000000 with theta=100: the ramp ends elsewhere"),
    ("olmo2", (*MIXER, "qk_norm"), {"eps": 0.1}, "block.attention.qk_norm is another norm than block.layer_norm"),
    ("olmo2", ("block", "layer_norm"), {"name": "l2_norm"}, "block.layer_norm.name=l2_norm (elementwise_affine=True) is neither"),
    ("olmo2", FF, {"activation": "relu2"}, "block.feed_forward: default with relu2 is not a SwiGLU"),
    ("olmo2", (), {"name": "normalized"}, "model.name=normalized with lm_head default is not a plain transformer"),
    ("olmo2", (), {"embed_scale": 2.0}, "embed_scale=2.0"),
    ("olmo2", ("lm_head", "layer_norm"), {"eps": 0.1}, "model.lm_head.layer_norm is another norm than that of the blocks"),
    ("moe", MOE, {"name": "default"}, "feed_forward_moe.name=default: it drops tokens beyond a capacity, ours is dropless"),
    ("moe", MOE, {"shared_mlp": {"hidden_size": 4}}, "block.feed_forward_moe.shared_mlp="),
    ("moe", (*MOE, "router"), {"gating_function": "sigmoid"}, "default with sigmoid is not a softmax over experts"),
    ("moe", (*MOE, "router"), {"normalize_expert_weights": 2.0}, "normalize_expert_weights=2.0: ours divides by the sum (1.0)"),
    ("moe", (*MOE, "router"), {"bias_gamma": 1e-3}, "block.feed_forward_moe.router.bias_gamma=0.001"),
    ("olmo3", (*MIXER, "sliding_window"), {"pattern": [7, 9, -1]}, "ours has one width, and full attention at every k-th layer"),
    ("olmo3", (*MIXER, "sliding_window"), {"force_full_attention_on_first_layer": True}, "windows [None, 7, 7, None]"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "path", "change", "reason"), REFUSED)
def test_what_ours_does_not_compute_is_refused(case: str, path: tuple[str, ...], change: Any, reason: str) -> None:
    values = json.loads(json.dumps(CASES[case]().as_config_dict()))
    section = values
    for name in path:
        section = section[name]
    section.update(change)
    with pytest.raises(ConfigError) as caught:
        model_from_core({"model": values})
    assert reason in str(caught.value)


def test_layers_that_differ_are_refused() -> None:
    values = json.loads(json.dumps(CASES["olmo2"]().as_config_dict()))
    other = json.loads(json.dumps(values["block"]))
    other["feed_forward"]["hidden_size"] = 8
    with pytest.raises(ConfigError, match="block_overrides or block_pattern: layers differ in more than their window"):
        model_from_core({**values, "block_overrides": {"1": other}})
    with pytest.raises(ConfigError, match="layers differ in more than their window"):
        model_from_core({**values, "block": {"a": values["block"], "b": other}, "block_pattern": ["a", "b"]})
    same = model_from_core({**values, "block": {"a": values["block"]}, "block_pattern": ["a"]})
    assert same == model_from_core(values)
    scaled = json.loads(json.dumps(values["block"]))
    scaled["sequence_mixer"]["rope"]["scaling"] = {"_CLASS_": "YaRNRoPEScalingConfig"}
    with pytest.raises(ConfigError, match="YaRN must be on all layers of full attention alike, and on no other"):
        model_from_core({**values, "block_overrides": {"0": scaled}})


def test_several_reasons_come_together_and_older_spellings_are_read() -> None:
    values = json.loads(json.dumps(CASES["olmo2"]().as_config_dict()))
    values["block"]["sequence_mixer"] |= {"bias": True, "attention_sinks": True}
    with pytest.raises(ConfigError) as caught:
        model_from_core(values)
    assert len(caught.value.problems) == 2
    values["block"]["sequence_mixer"] |= {"bias": False, "attention_sinks": False}
    older = json.loads(json.dumps(values))
    older["block"]["attention"] = older["block"].pop("sequence_mixer")
    assert model_from_core(older) == model_from_core(values)
    with pytest.raises(ConfigError, match="KeyError: 'block': not a config of OLMo-core's Transformer"):
        model_from_core({"model": {"d_model": 3}})


def test_plain_layer_norm_is_olmo_1s() -> None:
    norm = LayerNormConfig(name=LayerNormType.default, elementwise_affine=False, bias=False)
    config = dense(block_name=TransformerBlockType.default, qk_norm=False)
    config = replace(config, block=replace(config.block, layer_norm=norm), lm_head=replace(config.lm_head, layer_norm=norm))  # type: ignore[type-var]
    assert model_from_core(config.as_config_dict()).norm == "layer_norm_plain"


# ---- damage ---------------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    saved(dense(), tmp_path / "step1")
    config = json.loads((tmp_path / "step1/config.json").read_text())
    for change, reason in (
        ({"n_layers": 3}, r"model\.blocks\.2\.attention\.w_q\.weight is missing; .* the checkpoint is not whole"),
        ({"vocab_size": 65}, r"model\.embeddings\.weight has another size than its config\.json says"),
    ):
        (tmp_path / "step1/config.json").write_text(json.dumps({"model": {**config["model"], **change}}))
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint(str(tmp_path / "step1"))
    (tmp_path / "step1/config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: not a JSON object"):
        open_checkpoint(str(tmp_path / "step1"))
    (tmp_path / "step1/config.json").write_text(json.dumps({"model": {**config["model"], "embed_scale": 2}}))
    with pytest.raises(ConfigError, match=r"step1/config\.json: model\.embed_scale=2; our model cannot express it"):
        open_checkpoint(str(tmp_path / "step1"))
    (tmp_path / "step1/config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(tmp_path / "step1"))
    for file in (tmp_path / "step1/model_and_optim").glob("*.distcp"):
        file.unlink()
    for write in (write_hf, write_step):
        with pytest.raises(CheckpointError, match=r"cannot be read: .*; copy the checkpoint again"):
            write(checkpoint, tmp_path / "never")
    (tmp_path / "step1/model_and_optim/.metadata").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"model_and_optim/\.metadata cannot be read: .*; copy the checkpoint again"):
        open_checkpoint(str(tmp_path / "step1"))
    assert [path.name for path in tmp_path.iterdir()] == ["step1"]


def test_the_environment_stays_as_it_is() -> None:
    code = (
        "import os; before = dict(os.environ)\n"
        "from pathlib import Path; from checkpoints.convert.core import need_olmo_core\n"
        "need_olmo_core(Path('x')); assert dict(os.environ) == before, set(os.environ) ^ set(before)\n"
    )
    environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def test_without_olmo_core_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "olmo_core.distributed.checkpoint", None)
    with pytest.raises(ConfigError, match=r"is not installed; pip install 'olmo-train\[core\]'"):
        need_olmo_core(Path("step1"))
