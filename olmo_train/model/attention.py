"""Self-attention: fused qkv projection, QK-norm, clipping, rotary positions, and the attention kernel."""

from torch import Tensor, nn

from olmo_train.config.model import ModelConfig, QKNorm
from olmo_train.kernels.attention import Mask, attention
from olmo_train.model.norm import build_norm
from olmo_train.model.rope import Rotation, rotate
from olmo_train.model.shapes import d_head, n_kv_heads


class Attention(nn.Module):
    """Multi-head or grouped-query attention of one block."""

    def __init__(self, model: ModelConfig, backend: str) -> None:
        super().__init__()
        self.c, self.h, self.g = d_head(model), model.n_heads, n_kv_heads(model)
        self.clip, self.qk_norm, self.backend = model.clip_qkv, model.qk_norm, backend
        self.w_qkv = nn.Linear(model.d_model, (self.h + 2 * self.g) * self.c, bias=False)
        self.w_out = nn.Linear(self.h * self.c, model.d_model, bias=False)
        if model.qk_norm != QKNorm.NONE:
            per_head = model.qk_norm == QKNorm.HEAD
            self.q_norm = build_norm(model, self.c if per_head else self.h * self.c)
            self.k_norm = build_norm(model, self.c if per_head else self.g * self.c)

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Mask) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        b, t, _ = x_BTD.shape
        q_BTHC, k_BTGC, v_BTGC = self.project(x_BTD)
        q_BTHC, k_BTGC = rotate(q_BTHC, rotation), rotate(k_BTGC, rotation)
        out_BTHC = attention(q_BTHC, k_BTGC, v_BTGC, mask, self.backend)
        return self.w_out(out_BTHC.reshape(b, t, self.h * self.c))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, C), keys and values (B, T, G, C), normed and clipped; not yet turned."""
        b, t, _ = x_BTD.shape
        q, k, v = self.w_qkv(x_BTD).split([self.h * self.c, self.g * self.c, self.g * self.c], -1)
        if self.qk_norm == QKNorm.FULL:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.clip is not None:
            q, k, v = (part.clamp(-self.clip, self.clip) for part in (q, k, v))
        q_BTHC, k_BTGC, v_BTGC = (
            q.view(b, t, self.h, self.c),
            k.view(b, t, self.g, self.c),
            v.view(b, t, self.g, self.c),
        )
        if self.qk_norm == QKNorm.HEAD:
            q_BTHC, k_BTGC = self.q_norm(q_BTHC), self.k_norm(k_BTGC)
        return q_BTHC, k_BTGC, v_BTGC
