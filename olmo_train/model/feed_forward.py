"""The dense SwiGLU layer."""

from torch import Tensor, nn


class FeedForward(nn.Module):
    """w_out (silu(g) * u), [g; u] = w_in x. Source: Shazeer, arXiv 2002.05202, equation 6."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(d_model, 2 * width, bias=False)
        self.w_out = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = self.w_in(x).chunk(2, -1)
        return self.w_out(nn.functional.silu(gate) * up)
