"""Muon for the matrices of the blocks, AdamW for the rest: momentum, orthogonalisation, an update of AdamW's size.

Source: Jordan 2024, kellerjordan.github.io/posts/muon; scale and weight decay: Moonlight, arXiv 2502.16982.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from olmo_train.config.dtypes import MomentType
from olmo_train.config.optim import MuonConfig, OptimConfig
from olmo_train.kernels.muon import apply_update, momentum_update
from olmo_train.kernels.update import Control
from olmo_train.optim.adamw import AdamW, CompactAdamW, draw_of
from olmo_train.optim.moments import MOMENTUM, as_float32
from olmo_train.optim.newton_schulz import orthogonalize_stacked
from olmo_train.optim.parts import Part, publish

BATCH_ELEMENTS = 2**26
"""Orthogonalised at once on one rank: enough to fill a GPU, and five times as many elements of transient memory."""


class Muon:
    """Muon over this rank's rows of the matrices.

    Expert weights (E, R, C) are cut between experts, so every rank has whole matrices. Of a (R, C) weight each rank has rows: the
    ranks of a shard group send the rows of different matrices to different owners, which orthogonalise them whole and send the
    rows back. Replicas do the same work alike.
    """

    def __init__(
        self,
        matrices: Mapping[str, Part],
        rest: AdamW | CompactAdamW,
        config: OptimConfig,
        seed: int,
        group: dist.ProcessGroup,
    ) -> None:
        """`group`: the ranks among which dim 0 is cut. `rest`: everything that is no matrix of a block."""
        assert config.muon is not None
        self._parts, self._rest, self._config, self._muon = matrices, rest, config, config.muon
        self._group, self._rank, self._n_ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self._draws = {name: draw_of(seed, name, part) for name, part in matrices.items()}
        dtype = torch.bfloat16 if config.moment_dtype == MomentType.BFLOAT16 else torch.float32
        self._momenta = {name: torch.zeros_like(part.tensor, dtype=dtype) for name, part in matrices.items()}
        self._waves = _waves({name: part for name, part in matrices.items() if len(part.shape) == 2}, self._n_ranks)
        device = next(iter(matrices.values())).tensor.device
        self._work_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._lr_factor = _lr_factor(config, self._muon)

    @torch.no_grad()
    def step(self, grads: Mapping[str, Tensor], lr: float, grad_scale: Tensor, skip: Tensor) -> None:
        """Update with gradients divided by `grad_scale`, unless `skip` is 1 (both float32 scalars on the device)."""
        self._rest.step(grads, lr, grad_scale, skip)
        self._count += skip == 0
        control = Control(grad_scale, skip, self._count, torch.empty(0))  # no bias to correct: the momentum's size is lost anyway
        for name, part in self._parts.items():
            if len(part.shape) == 3:
                self._step_experts(name, grads[name], lr, control)
        for i, wave in enumerate(self._waves):
            self._step_wave(wave, (grads, i), lr, control)
        publish(self._parts.values())

    def _step_experts(self, name: str, grad: Tensor, lr: float, control: Control) -> None:
        """Update whole local matrices, some at a time."""
        part = self._parts[name]
        _, rows, columns = part.shape
        at_once = max(1, BATCH_ELEMENTS // (rows * columns))
        for start in range(0, part.tensor.shape[0], at_once):
            chunk = slice(start, start + at_once)
            x = torch.empty_like(grad[chunk], dtype=self._work_dtype)
            self._accelerate(x, grad[chunk], self._momenta[name][chunk], control)
            update = orthogonalize_stacked(x, part.stacked, self._muon.n_iterations)
            self._apply(name, (update, start * rows * columns), lr, control)

    def _step_wave(self, names: list[str], grads: tuple[Mapping[str, Tensor], int], lr: float, control: Control) -> None:
        """Update matrices of one shape, each orthogonalised by one rank. `grads`: and the number of the wave."""
        gradients, turn = grads
        rows, columns = self._parts[names[0]].shape
        per_rank = -(-rows // self._n_ranks)
        per_owner = -(-len(names) // self._n_ranks)
        n_slots = per_owner * self._n_ranks
        slots = [(i + turn * per_owner) % n_slots for i in range(len(names))]  # a short wave does not always fall to rank 0
        device = self._parts[names[0]].tensor.device
        x = torch.zeros(n_slots, per_rank, columns, dtype=self._work_dtype, device=device)
        for slot, name in zip(slots, names, strict=True):
            local_rows = self._parts[name].tensor.shape[0]
            self._accelerate(x[slot, :local_rows], gradients[name], self._momenta[name], control)
        whole = self._exchange(x).view(self._n_ranks, per_owner, per_rank, columns).transpose(0, 1).flatten(1, 2)
        mine = [slot - self._rank * per_owner for slot in slots if slot // per_owner == self._rank]
        if mine:
            stacked = self._parts[names[0]].stacked
            whole[mine, :rows] = orthogonalize_stacked(whole[mine, :rows], stacked, self._muon.n_iterations)
        cut = whole.view(per_owner, self._n_ranks, per_rank, columns).transpose(0, 1).flatten(0, 1)
        updates = self._exchange(cut.contiguous())
        for slot, name in zip(slots, names, strict=True):
            self._apply(name, (updates[slot, : self._parts[name].tensor.shape[0]], 0), lr, control)

    def _exchange(self, x_SRC: Tensor) -> Tensor:
        """Give every rank its equal part of dim 0; what comes back is ordered by sender."""
        if self._n_ranks == 1:
            return x_SRC
        received = torch.empty_like(x_SRC)
        dist.all_to_all_single(received, x_SRC, group=self._group)
        return received

    def _accelerate(self, out: Tensor, grad: Tensor, momentum: Tensor, control: Control) -> None:
        momentum_update(out, grad, momentum, control, (self._muon.momentum, self._muon.nesterov))

    def _apply(self, name: str, update: tuple[Tensor, int], lr: float, control: Control) -> None:
        """Move the rows of a part that begin at a local element index."""
        values, offset = update
        part, draw = self._parts[name], self._draws[name]
        weight = part.tensor.view(-1)[offset : offset + values.numel()]
        draw = replace(draw, first=draw.first + offset)
        rates = lr * self._lr_factor, self._config.decay_of(part.kind)
        apply_update(weight, values.contiguous().view(-1), control, rates, draw)

    @property
    def steps_taken(self) -> int:
        """Updates applied, skipped ones not counted. Synchronises."""
        return int(self._count)

    def moments(self) -> dict[str, Tensor]:
        """`momentum/<parameter>` of the matrices, and AdamW's moments of the rest: the live local tensors."""
        return {f"{MOMENTUM}/{name}": momentum for name, momentum in self._momenta.items()} | self._rest.moments()

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor], steps_taken: int) -> None:
        """Take over momenta and moments, of whatever number format, and the step count."""
        for name, momentum in self._momenta.items():
            momentum.copy_(as_float32(saved, MOMENTUM, name))
        self._rest.load(saved, steps_taken)
        self._count.fill_(steps_taken)


def _waves(matrices: Mapping[str, Part], n_ranks: int) -> list[list[str]]:
    """Names of matrices of one shape, as many as the ranks orthogonalise at once."""
    alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = defaultdict(list)
    for name, part in matrices.items():
        alike[part.shape, part.stacked].append(name)
    waves = []
    for (shape, _), names in alike.items():
        size = n_ranks * max(1, BATCH_ELEMENTS // (shape[0] * shape[1]))
        waves += [names[i : i + size] for i in range(0, len(names), size)]
    return waves


def _lr_factor(config: OptimConfig, muon: MuonConfig) -> float:
    """By how much the rate of the matrices exceeds that of the rest, all through the schedule."""
    if muon.lr is None:
        return 1.0
    assert config.lr is not None  # problems.py
    return muon.lr / config.lr
