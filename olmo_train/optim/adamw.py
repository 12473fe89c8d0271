"""AdamW over this rank's shards: torch's fused kernel, with clipping and skipping inside the one pass it makes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from olmo_train.config.optim import OptimConfig, ParamKind

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """`torch.optim.AdamW(fused=True)` on the local parts of the parameters.

    Local tensors instead of DTensors: the update is elementwise, and torch's fused kernel takes `grad_scale` (we pass the
    clipping factor) and `found_inf` (we pass "skip this step") as device scalars only with plain tensors. A skipped step leaves
    weights, moments and the step count untouched, without a host synchronisation.
    """

    def __init__(self, params: Mapping[str, Tensor], kinds: Mapping[str, ParamKind], config: OptimConfig) -> None:
        """`params`: this rank's parts, float32, by name; updated in place."""
        self._params = {name: nn.Parameter(part.detach()) for name, part in params.items()}
        decayed = [p for name, p in self._params.items() if kinds[name] not in config.no_decay]
        exempt = [p for name, p in self._params.items() if kinds[name] in config.no_decay]
        groups = [{"params": ps, "weight_decay": decay} for ps, decay in ((decayed, config.weight_decay), (exempt, 0.0)) if ps]
        # foreach/fused choice is explicit: the same kernel whatever the number or size of the tensors.
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
        for param in self._params.values():
            moments = {name: torch.zeros_like(param) for name in MOMENTS}
            self._optimizer.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device),
                **moments,
            }

    def step(self, grads: Mapping[str, Tensor], lr: float, grad_scale: Tensor, skip: Tensor) -> None:
        """Update with gradients divided by `grad_scale`, unless `skip` is 1 (both float32 scalars on the device)."""
        for name, param in self._params.items():
            param.grad = grads[name]
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.grad_scale = grad_scale  # type: ignore[attr-defined]  # the protocol of torch.amp.GradScaler
        self._optimizer.found_inf = skip  # type: ignore[attr-defined]
        self._optimizer.step()
        for param in self._params.values():
            param.grad = None

    @property
    def steps_taken(self) -> int:
        """Updates applied, skipped ones not counted. Synchronises."""
        return int(next(iter(self._optimizer.state.values()))["step"])

    def moments(self) -> dict[str, Tensor]:
        """`exp_avg/<parameter>` and `exp_avg_sq/<parameter>`: the live local tensors."""
        return {f"{moment}/{name}": self._optimizer.state[p][moment] for name, p in self._params.items() for moment in MOMENTS}

    @torch.no_grad()
    def load(self, moments: Mapping[str, Tensor], steps_taken: int) -> None:
        """Take over the moments and the step count."""
        for name, tensor in self.moments().items():
            tensor.copy_(moments[name])
        for state in self._optimizer.state.values():
            state["step"].fill_(steps_taken)
