"""Step folders of small models of every architecture, with random weights, cut over several ranks as training cuts them."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from olmo_train.checkpoint import PERMANENT, Shard, commit, write_rank
from olmo_train.config.model import ModelConfig, MoEConfig, Norm, NormOrder, QKNorm, YarnConfig
from olmo_train.config.train import TrainConfig
from olmo_train.model.shapes import param_shapes
from olmo_train.schema import load_config, to_yaml

SEQ_LEN = 64
_MOE = MoEConfig(n_experts=5, top_k=2, d_expert=12, load_balancing_loss_weight=0.01, router_z_loss_weight=1e-3)
_BASE = ModelConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=101)
_OLMOE = replace(_BASE, qk_norm=QKNorm.FULL, moe=_MOE)
_OLMO = replace(_BASE, norm=Norm.LAYER_NORM_PLAIN, d_ff=40)
_OLMO2 = replace(_BASE, norm_order=NormOrder.POST, qk_norm=QKNorm.FULL, d_ff=40, norm_eps=1e-6)
_OLMO3 = replace(_OLMO2, n_layers=5, sliding_window=6, rope_theta=500_000.0)
MODELS = {
    "olmoe": _OLMOE,
    "olmoe normalised": replace(_OLMOE, moe=replace(_MOE, normalize_top_k=True)),
    "olmoe gqa clipped": replace(_OLMOE, n_kv_heads=2, clip_qkv=0.4),
    "olmoe padded": replace(_OLMOE, padded_vocab_size=128, moe=replace(_MOE, top_k=1)),
    "olmoe tied": replace(_OLMOE, tie_embeddings=True, rope_theta=777.0),
    "olmo": replace(_OLMO, tie_embeddings=True),
    "olmo untied gqa clipped": replace(_OLMO, n_kv_heads=1, clip_qkv=0.3, padded_vocab_size=104),
    "olmo2": _OLMO2,
    "olmo2 gqa wide heads": replace(_OLMO2, n_kv_heads=2, d_head=12),
    "olmo2 yarn": replace(_OLMO2, rope_yarn=YarnConfig(4.0, 16)),
    "olmo2 tied padded": replace(_OLMO2, tie_embeddings=True, padded_vocab_size=110),
    "olmo3": _OLMO3,
    "olmo3 every second": replace(_OLMO3, full_attention_every=2, n_kv_heads=2),
    "olmo3 yarn": replace(_OLMO3, rope_yarn=YarnConfig(8.0, 16, attention_factor=1.3)),
    "olmo3 all windowed": replace(_OLMO3, full_attention_every=6),
}


def random_params(model: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Norms are not all ones and routing is no tie."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for shape in param_shapes(model):
        values = torch.randn(shape.shape, generator=generator)
        out[shape.name] = (1 + 0.2 * values if len(shape.shape) == 1 else 0.1 * values).to(dtype)
    return out


def write_model(
    folder: Path, model: ModelConfig, params: dict[str, Tensor], n_ranks: int = 3, tokenizer: Path | None = None
) -> Path:
    """A step folder without optimizer state; ranks without rows of a tensor do not mention it."""
    run = load_config("train", TrainConfig, ["run_name=made"])
    run.model, run.data.sources, run.data.seq_len = model, {}, SEQ_LEN
    state = {"step": 7, "tokens": 7000, "loss": 2.5, "lr": 1e-3, "peak_lr": 1e-3, "optimizer_steps": 7}
    texts = {"config.yaml": to_yaml(run), "state.json": json.dumps(state), "provenance.json": '{"starts": []}'}
    if tokenizer is not None:
        texts["tokenizer.json"] = tokenizer.read_text("utf-8")
    temporary = folder.with_name(f".{folder.name}.tmp")
    for rank in range(n_ranks):
        shards = {}
        for name, tensor in params.items():
            size = -(-len(tensor) // n_ranks)
            start = min(rank * size, len(tensor))
            shards[name] = Shard(tensor[start : start + size], start, tuple(tensor.shape))
        write_rank(temporary, rank, n_ranks, {"model": shards})
    info = {"step": 7, "kind": PERMANENT, "n_ranks": n_ranks}
    assert commit(temporary, folder, n_ranks, info, texts, threading.Event())
    return folder
