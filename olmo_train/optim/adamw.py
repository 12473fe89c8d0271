"""AdamW over this rank's shards, clipping and skipping inside its one pass: torch's kernel, or ours for smaller states."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from olmo_train.config.optim import OptimConfig, ParamKind
from olmo_train.kernels.adamw import adamw_update, corrections
from olmo_train.kernels.rounding import key_of
from olmo_train.kernels.update import Control, Draw, Moments, Rates
from olmo_train.optim import moments as formats
from olmo_train.optim.parts import Part, publish
from olmo_train.rng import seed_of


class AdamW:
    """`torch.optim.AdamW(fused=True)` on the local parts of the parameters: float32 weights, float32 moments.

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
            self._optimizer.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device),
                formats.FIRST: torch.zeros_like(param),
                formats.SECOND: torch.zeros_like(param),
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
        return formats.all_named(self._moments())

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor], steps_taken: int) -> None:
        """Take over moments, of whatever number format, and the step count."""
        for name, moments in self._moments().items():
            formats.load(moments, name, saved)
        for state in self._optimizer.state.values():
            state["step"].fill_(steps_taken)

    def _moments(self) -> dict[str, Moments]:
        states = {name: self._optimizer.state[param] for name, param in self._params.items()}
        return {name: Moments(state[formats.FIRST], state[formats.SECOND]) for name, state in states.items()}


class CompactAdamW:
    """AdamW with weights in float32 or bfloat16 and moments in float32, bfloat16 or 8 bits, by `kernels/adamw.py`.

    The step count lives on the device, since only the device knows which steps were skipped.
    """

    def __init__(self, parts: Mapping[str, Part], config: OptimConfig, seed: int) -> None:
        """`seed`: of the run, for stochastic rounding. Parts are updated in place."""
        self._parts, self._config = parts, config
        self._draws = {name: draw_of(seed, name, part) for name, part in parts.items()}
        self._moments = {name: formats.allocate(part.tensor, config.moment_dtype) for name, part in parts.items()}
        self._count = torch.zeros((), dtype=torch.int64, device=next(iter(parts.values())).tensor.device)

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], lr: float, grad_scale: Tensor, skip: Tensor) -> None:
        """Update with gradients (float32 or bfloat16) divided by `grad_scale`, unless `skip` is 1 (float32 device scalars)."""
        c = self._config
        self._count += skip == 0
        control = Control(grad_scale, skip, self._count, corrections(self._count, c.beta1, c.beta2))
        for name, part in self._parts.items():
            settings = Rates(lr, c.beta1, c.beta2, c.eps, c.decay_of(part.kind)), self._draws[name]
            adamw_update(part.tensor, grads[name], self._moments[name], control, settings)
        publish(self._parts.values())

    @property
    def steps_taken(self) -> int:
        """Updates applied, skipped ones not counted. Synchronises."""
        return int(self._count)

    def moments(self) -> dict[str, Tensor]:
        """The live local tensors, named as optim/moments.py says."""
        return formats.all_named(self._moments)

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor], steps_taken: int) -> None:
        """Take over moments, of whatever number format, and the step count."""
        for name, moments in self._moments.items():
            formats.load(moments, name, saved)
        self._count.fill_(steps_taken)


def draw_of(seed: int, name: str, part: Part) -> Draw:
    """Where the random bits of a part come from: equal on replicas, and independent of how the parameter is cut."""
    return Draw(key_of(seed_of("rounding", seed, name)), part.first)
