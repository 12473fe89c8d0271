"""RMSNorm, and OLMo-1's LayerNorm without weights."""

import torch
from torch import Tensor, nn

from olmo_train.config.model import ModelConfig, Norm


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dim, computed in float32. Source: Zhang and Sennrich, arXiv 1910.07467, equation 4."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape and dtype."""
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class PlainLayerNorm(nn.Module):
    """(x - mean) / std over the last dim, computed in float32, no weight. Source: OLMo, arXiv 2402.00838, section 2.2."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape and dtype."""
        return nn.functional.layer_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


def build_norm(model: ModelConfig, width: int) -> nn.Module:
    """The norm of a config, over `width`."""
    return RMSNorm(width, model.norm_eps) if model.norm == Norm.RMS else PlainLayerNorm(model.norm_eps)
