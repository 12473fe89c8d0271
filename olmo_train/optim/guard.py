"""Decide whether a step may touch the weights: never when loss or gradient is not finite, and not when they are outliers.

Decisions are tensors on the device, so that a GPU never waits for the host. All ranks see the same global loss and norm and so
decide alike.
"""

from typing import Any

import torch
from torch import Tensor

from olmo_train.config.optim import SkipConfig

OK, NONFINITE, LOSS, GRAD_NORM = 0, 1, 2, 3
REASONS = {OK: None, NONFINITE: "nonfinite", LOSS: "loss", GRAD_NORM: "grad_norm"}


class Guard:
    """Mean and deviation of the last finite losses and gradient norms.

    Source: OLMo-core SkipStepOptimizer (mean + 6 sigma over 128 steps); unlike there, a non-finite value never enters the
    window, where it would switch the guard off for as long as it stays, and the window is part of the checkpoint.
    """

    def __init__(self, config: SkipConfig | None, device: torch.device) -> None:
        self.config = config
        size = config.window if config else 1
        self._window = torch.zeros(2, size, dtype=torch.float64, device=device)
        self._seen = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """OK, NONFINITE, LOSS or GRAD_NORM as an int64 scalar; and remember the values."""
        values = torch.stack([loss.double(), grad_norm.double()])
        finite = values.isfinite().all()
        reason = torch.where(finite, OK, NONFINITE)
        if self.config is not None:
            size = self._window.shape[1]
            known = self._seen.clamp_max(size)
            slots = torch.arange(size, device=values.device)
            kept = (slots < known).double()
            mean = (self._window * kept).sum(1) / known.clamp_min(1)
            deviation = (((self._window - mean[:, None]).square() * kept).sum(1) / (known - 1).clamp_min(1)).sqrt()
            high = (values > mean + self.config.sigma * deviation) & (self._seen >= self.config.min_history)
            outlier = torch.where(high[0], LOSS, torch.where(high[1], GRAD_NORM, OK))
            reason = torch.where(finite, outlier, reason)
            # A mask and not an index: indexing with a device scalar would wait for it.
            self._window = torch.where((slots == self._seen % size) & finite, values[:, None], self._window)
            self._seen += finite
        self._in_a_row = torch.where(reason == OK, 0, self._in_a_row + 1)
        return reason

    @property
    def skips_in_a_row(self) -> Tensor:
        """Steps skipped since the last good one, an int64 scalar."""
        return self._in_a_row

    def state(self) -> dict[str, Any]:
        """For the checkpoint; floats survive JSON bit for bit."""
        return {"window": self._window.tolist(), "seen": int(self._seen), "in_a_row": int(self._in_a_row)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; a window of another size starts empty."""
        window = torch.tensor(state["window"], dtype=torch.float64)
        if self.config is not None and window.shape == self._window.shape:
            self._window.copy_(window)
            self._seen.fill_(state["seen"])
        self._in_a_row.fill_(state["in_a_row"])
