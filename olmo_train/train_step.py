"""One optimizer step: micro-batches through the model, global sums, clipping, the guard's verdict, the update.

Every number is normalised by a count over the whole global batch, so that ranks and micro-batches are only a way to share out the
work: the loss by the positions predicted, router losses by the tokens routed.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from olmo_train.config.dtypes import FloatType
from olmo_train.config.model import BalanceScope
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Rows
from olmo_train.evaluate import to_device
from olmo_train.kernels.attention import Documents
from olmo_train.metrics import PhaseTimer
from olmo_train.model.losses import load_balancing_loss, router_z_loss, updated_bias
from olmo_train.model.transformer import Losses, RouterStats, Transformer
from olmo_train.optim.build import Optimizer
from olmo_train.optim.guard import OK, Guard
from olmo_train.parallel.fsdp import Float32Gradients, begin_micro_step, local
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.stragglers import CollectiveClock, inside

Batch = tuple[Tensor, Tensor, Documents | None]


@dataclass
class StepResult:
    """Global values of one step, as tensors on the device; nothing has waited for them."""

    loss: Tensor
    """Cross entropy in nats per predicted token."""
    z: Tensor
    """logsumexp(logits)^2 per predicted token."""
    grad_norm: Tensor
    """L2 over all parameters, before clipping."""
    verdict: Tensor
    """Of the guard: OK or why the step was skipped."""
    skips_in_a_row: Tensor
    n_targets: Tensor
    router: RouterStats | None
    """Summed over the global batch, float64."""


class TrainStep:
    """Takes optimizer steps on this rank's share of the global batch."""

    def __init__(
        self,
        model: Transformer,
        optimizer: Optimizer,
        guard: Guard,
        layout: Layout,
        run: TrainConfig,
        clock: CollectiveClock | None = None,
    ) -> None:
        """`clock`: counts the time in collectives; None: nobody asks."""
        self.model, self.optimizer, self.guard, self.layout, self.run = model, optimizer, guard, layout, run
        self.moe = run.model.moe
        self.rows_per_batch = run.data.micro_batch_size // run.data.seq_len
        self.tokens = run.data.global_batch_size
        self.sums = Float32Gradients(model, layout) if _adds_up_apart(run, layout.n_ranks) else None
        self.clock = clock
        if clock is not None:
            clock.install(model, layout.has_replicas, None if self.sums is None else self.sums.see_block)

    def __call__(self, rows: Rows, lr: float, timer: PhaseTimer, loss_factor: float | None = None) -> StepResult:
        """Train on `rows` and return what happened. Parameters, moments and the guard are updated in place.

        `loss_factor`: for drills; multiplies the loss of this rank's first micro-batch.
        """
        with timer.phase("forward_backward"):
            n_targets = self._global_targets(rows)
            sums = self._forward_backward(rows, n_targets, loss_factor)
        with timer.phase("optimizer"):
            ce, z, router = self._reduce(sums)
            return self._update(ce / n_targets, z / n_targets, router, n_targets, lr)

    def rehearse(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward pass of the first micro-batch, and nothing else: weights, moments and the guard stay.

        Returns the sum of the losses of this rank's own rows, and its rows of their gradient summed over all ranks.
        """
        first = rows.slice(0, self.rows_per_batch)
        n_targets = torch.tensor(max(float(first.n_targets), 1.0), dtype=torch.float64, device=self.layout.device)
        (sums,) = self._forward_backward(first, n_targets)
        grads = self._gradients()
        for param in self.model.parameters():
            param.grad = None
        return sums.loss, grads

    # ---- forward and backward ----------------------------------------------------------------------

    def _forward_backward(self, rows: Rows, n_targets: Tensor, loss_factor: float | None = None) -> list[Losses]:
        """Accumulate gradients over the micro-batches; return the detached sums of each."""
        batches = [
            to_device(rows.slice(start, start + self.rows_per_batch), self.layout.device)
            for start in range(0, len(rows.ids), self.rows_per_batch)
        ]
        whole = self._whole_counts(batches)
        running: Tensor | None = None
        sums = []
        for i, batch in enumerate(batches):
            begin_micro_step(self.model, i == len(batches) - 1, self.run.parallel)
            out: Losses = self.model(*batch)
            if loss_factor is not None and i == 0:
                out = Losses(out.loss * loss_factor, out.cross_entropy * loss_factor, out.z, out.router)
            loss = out.loss / n_targets
            if out.router is not None and self.moe is not None:
                counts, n_counted = out.router.counts, float(batch[0].numel())
                match self.moe.load_balancing_scope:
                    case BalanceScope.GLOBAL:
                        counts, n_counted = (
                            whole if whole is not None else self._sum_over_ranks(counts),
                            float(self.tokens),
                        )
                    case BalanceScope.RUNNING:
                        counts = self._sum_over_ranks(counts)
                        running = counts if running is None else running + counts
                        counts, n_counted = running, n_counted * self.layout.n_ranks * (i + 1)
                loss = loss + self._router_loss(out.router, counts, n_counted)
            loss.backward()
            sums.append(_detached(out))
        return sums

    def _router_loss(self, router: RouterStats, counts_LE: Tensor, n_counted: float) -> Tensor:
        """This micro-batch's part of the router losses of the global batch."""
        assert self.moe is not None
        balance = load_balancing_loss(counts_LE, router.probs, n_counted, self.tokens, self.moe.top_k)
        return self.moe.load_balancing_loss_weight * balance + self.moe.router_z_loss_weight * router_z_loss(
            router.z, self.tokens
        )

    def _whole_counts(self, batches: list[Batch]) -> Tensor | None:
        """Expert loads over the global batch, where they must be known before the first backward pass: a forward pass of its own.

        None where that is not needed: with one micro-batch its own forward pass already has them.
        """
        moe = self.moe
        if (
            moe is None
            or moe.load_balancing_scope != BalanceScope.GLOBAL
            or moe.load_balancing_loss_weight == 0
            or len(batches) == 1
        ):
            return None
        with torch.no_grad():
            counts = [self.model(ids, documents=documents, router_only=True).counts for ids, _, documents in batches]
        return self._sum_over_ranks(torch.stack(counts).sum(0))

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()
        with inside(self.clock):
            dist.all_reduce(tensor)
        return tensor

    def _global_targets(self, rows: Rows) -> Tensor:
        """Positions predicted in the global batch, a float64 scalar on the device; at least 1, for a batch masked whole."""
        count = torch.tensor(float(rows.n_targets), dtype=torch.float64)
        if self.run.data.repetition_mask is None:
            count *= self.layout.n_ranks
        else:
            with inside(self.clock, on_host=True):
                dist.all_reduce(count, group=self.layout.control)
        return count.clamp_min_(1.0).to(self.layout.device, non_blocking=True)

    # ---- update ------------------------------------------------------------------------------------

    def _reduce(self, sums: list[Losses]) -> tuple[Tensor, Tensor, RouterStats | None]:
        """Cross entropy, z and router sums over micro-batches and ranks, in one all-reduce of float64."""
        ce, z = (torch.stack([getattr(s, name) for s in sums]).double().sum() for name in ("cross_entropy", "z"))
        routers = [s.router for s in sums if s.router is not None]
        parts = [torch.stack(tensors).double().sum(0) for tensors in zip(*routers, strict=True)]
        flat = torch.cat([torch.stack([ce, z]), *(part.flatten() for part in parts)])
        with inside(self.clock):
            dist.all_reduce(flat)
        router = None
        if parts:
            split = flat[2:].split([part.numel() for part in parts])
            router = RouterStats(*(piece.view_as(part) for piece, part in zip(split, parts, strict=True)))
        return flat[0], flat[1], router

    def _update(self, loss: Tensor, z: Tensor, router: RouterStats | None, n_targets: Tensor, lr: float) -> StepResult:
        grads = self._gradients()
        grad_norm = self._grad_norm(list(grads.values()))
        verdict = self.guard.judge(loss, grad_norm)
        skip = (verdict != OK).float()
        scale = torch.ones((), device=self.layout.device)
        if self.run.optim.max_grad_norm is not None:
            # The same coefficient as torch.nn.utils.clip_grad_norm_, applied as a divisor inside the optimizer's kernel.
            scale = ((grad_norm + 1e-6) / self.run.optim.max_grad_norm).clamp_min(1.0).float()
        self.optimizer.step(grads, lr, scale, skip)
        for param in self.model.parameters():
            param.grad = None
        if router is not None:
            self._update_biases(router.counts, skip)
        return StepResult(loss, z, grad_norm, verdict, self.guard.skips_in_a_row, n_targets, router)

    def _gradients(self) -> dict[str, Tensor]:
        """This rank's rows of the gradient of the global batch."""
        if self.sums is not None:
            return self.sums.take()
        return {name: local(param.grad) for name, param in self.model.named_parameters() if param.grad is not None}

    def _grad_norm(self, grads: list[Tensor]) -> Tensor:
        """L2 norm over the shards of all ranks, float64. Replicas hold equal gradients, so only the shard axis is summed."""
        # Of bfloat16 gradients in float32: their own norms would be rounded to 8 bits.
        norms = torch._foreach_norm(grads, 2.0, torch.float32)
        squared = torch.linalg.vector_norm(torch.stack(norms)).double().square()
        with inside(self.clock):
            dist.all_reduce(squared, group=self.layout.shard_group)
        return squared.sqrt()

    @torch.no_grad()
    def _update_biases(self, counts_LE: Tensor, skip: Tensor) -> None:
        """Aux-loss-free balancing: once per optimizer step, on the loads of the global batch; not on a skipped step."""
        if self.moe is None or self.moe.bias_update_rate == 0:
            return
        routers = self.model.routers()
        for router, counts_E in zip(routers, counts_LE, strict=True):
            updated = updated_bias(router.bias, counts_E.float(), self.moe)
            router.bias.copy_(torch.where(skip > 0, router.bias, updated))


def _adds_up_apart(run: TrainConfig, n_ranks: int) -> bool:
    """Whether gradients are added up here, because autograd (on one rank) or FSDP2 would do it in bfloat16."""
    optim, data, parallel = run.optim, run.data, run.parallel
    if optim.grad_dtype != FloatType.FLOAT32 or data.global_batch_size == data.micro_batch_size * n_ranks:
        return False
    if n_ranks == 1:
        return parallel.compute_dtype == FloatType.BFLOAT16
    return parallel.reduce_every_micro_step and optim.weight_dtype == FloatType.BFLOAT16


def _detached(out: Losses) -> Losses:
    router = None if out.router is None else RouterStats(*(t.detach() for t in out.router))
    return Losses(out.loss.detach(), out.cross_entropy.detach(), out.z.detach(), router)
