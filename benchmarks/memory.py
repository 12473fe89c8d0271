"""Memory of a training step, predicted (`olmo size`) and counted: on fake tensors anywhere and at any size, or on GPUs.

    python -m benchmarks.memory [--ranks 8] [name=value of the training config ...]
    python -m benchmarks.memory --on-gpu [name=value ...]       (or torchrun -m benchmarks.memory --on-gpu ...)

On fake tensors the trainer's own model, sharding, loss and optimizer states are there without data, forward and backward passes
run, and every storage is counted while it lives: FSDP2's buffers, what autograd keeps, what compiled blocks keep (by the default
partitioner of torch.compile; their graphs then run operator by operator, so what comes and goes inside them is more than after
fusion). Fake tensors are CPU tensors here, so the prediction beside them is for a CPU's kernels. On GPUs: the trainer's own
step, by the statistics of torch's allocator.
"""

import argparse
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import describe_machine, table
from benchmarks.workload import compose, load, open_loader, write_corpus
from olmo_train.config.train import TrainConfig
from olmo_train.kernels.choose import Kernels
from olmo_train.metrics import PhaseTimer
from olmo_train.model.memory import Memory, predict
from olmo_train.model.transformer import Losses, Transformer
from olmo_train.optim.build import build_optimizer
from olmo_train.optim.guard import Guard
from olmo_train.parallel import fsdp
from olmo_train.parallel.mesh import Layout, init_distributed, world
from olmo_train.parallel.weights import weights_of
from olmo_train.train import _parts, build
from olmo_train.train_step import TrainStep

CPU_KERNELS = Kernels("sdpa", "loop", "chunked")
SAME_PARTITIONER = "aot_eager_decomp_partition"
"""What compiled blocks keep is decided as for inductor, without code for a device."""


KINDS = ("weights", "gradients", "moments")


@dataclass(frozen=True)
class Held:
    """Bytes of one rank."""

    weights: int
    """With the copy that one rank computes with, if it is of another type."""
    moments: int
    gradients: int
    """After the backward pass."""
    kept: int
    """Between forward and backward pass, beside the states: activations, what the loss keeps, weights that stay gathered."""
    peak: int
    """Of the forward and backward pass, everything included."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages from their creation by an operator to their end."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: weakref.WeakKeyDictionary[torch.UntypedStorage, list[int]] = weakref.WeakKeyDictionary()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Lets torch.compile compile in here."""
        return True

    def see(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, or its new size."""
        size = self._sizes.get(storage)
        if size is None:
            size = self._sizes[storage] = [0]
            weakref.finalize(storage, self._forget, size)
        self.now += storage.nbytes() - size[0]
        size[0] = storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _forget(self, size: list[int]) -> None:
        self.now -= size[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                tensor = leaf._local_tensor if isinstance(leaf, DTensor) else leaf
                if tensor.device.type != "meta":
                    self.see(tensor.untyped_storage())
        return out


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Count in this block. FSDP2 frees weights by resizing their storage, which is no operator, so that is watched too."""
    live, resize = LiveBytes(), torch.UntypedStorage.resize_

    def resize_and_see(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        result = resize(storage, size)
        live.see(storage)
        return result

    torch.UntypedStorage.resize_ = resize_and_see  # type: ignore[method-assign, assignment]
    try:
        with live:
            yield live
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]


def fake_layout(run: TrainConfig, n_ranks: int) -> Layout:
    """Rank 0 of `n_ranks` that are not there: collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=n_ranks, store=FakeStore())
    n_shards = run.parallel.shard_size or n_ranks
    if n_shards == n_ranks:
        mesh = init_device_mesh("cpu", (n_ranks,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh("cpu", (n_ranks // n_shards, n_shards), mesh_dim_names=("replicate", "shard"))
    group = dist.group.WORLD
    assert group is not None
    return Layout(0, n_ranks, torch.device("cpu"), mesh, group)


def count(run: TrainConfig, layout: Layout, on_fake: bool) -> Held:
    """Forward and backward passes on CPU tensors: one or, in steps of several, two, of which the last is counted."""
    micro_steps = min(2, run.data.global_batch_size // (run.data.micro_batch_size * layout.n_ranks))
    with ExitStack() as stack:
        if on_fake:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        live = stack.enter_context(live_bytes())
        model = _model(run, layout)
        weights = weights_of(model, layout, fsdp.DTYPES[run.optim.weight_dtype])
        weight_bytes = live.now
        optimizer = build_optimizer(_parts(run, weights), run.optim, run.seed, layout.shard_group)
        states = live.now
        step = TrainStep(model, optimizer, Guard(None, layout.device), layout, run)  # adds up gradients where the trainer does
        ids_BT = torch.zeros(run.data.micro_batch_size // run.data.seq_len, run.data.seq_len, dtype=torch.long)
        for number in range(micro_steps):
            fsdp.begin_micro_step(model, number == micro_steps - 1, run.parallel)
            before, live.peak = live.now, live.now
            out = model(ids_BT, ids_BT)
            kept = live.now - before
            loss = _loss(out)
            del out
            loss.backward()
        gradients = sum(grad.nbytes for grad in step._gradients().values())
        return Held(weight_bytes, states - weight_bytes, gradients, kept, live.peak)


def _model(run: TrainConfig, layout: Layout) -> Transformer:
    """As olmo_train.train builds it, with the prefetching that a GPU would do."""
    with torch.device("meta"):
        model = Transformer(run.model, CPU_KERNELS)
    units: list[nn.Module] = model.fsdp_units()
    run.parallel.compile_backend = SAME_PARTITIONER
    fsdp.shard(model, units, layout, run.parallel, run.optim.weight_dtype)
    if layout.n_ranks > 1:
        fsdp.materialize(model, layout.device)
        fsdp._prefetch(model, units, run.parallel.prefetch)
    else:
        replace_by_fakes(model, layout.device)
    return model


def replace_by_fakes(model: nn.Module, device: torch.device) -> None:
    """`fsdp.materialize` of plain parameters under FakeTensorMode, where Module.to_empty cannot replace them."""
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(param, device=device)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=device))


def _loss(out: Losses) -> Tensor:
    return out.loss if out.router is None else out.loss + out.router.probs.sum() + out.router.z.sum()


def count_fake(run: TrainConfig, n_ranks: int) -> Held:
    """`count` on fake tensors, as rank 0 of a process group of its own."""
    layout = fake_layout(run, n_ranks)
    try:
        return count(run, layout, on_fake=True)
    finally:
        dist.destroy_process_group()


def expected(memory: Memory) -> Held:
    """The same quantities as predicted."""
    kept = sum(memory.kept.values()) + memory.gathered
    peak = max(sum(parts.values()) for name, parts in memory.phases.items() if name != "optimizer")
    weights, gradients, moments = (sum(size for name, size in memory.states.items() if name.startswith(kind)) for kind in KINDS)
    return Held(weights, moments, gradients, kept, peak)


# ---- on a GPU ----------------------------------------------------------------------------------------------------------------


def measure_step(run: TrainConfig) -> tuple[Held, dict[str, Any]]:
    """Steps of the trainer on this GPU: bytes by torch's allocator, and what it reserved and the process took beside it."""
    layout = init_distributed(run.parallel)
    loader = open_loader(run)  # every rank trains on the same rows; memory does not care
    live = build(run, layout, loader.order)
    for weight in live.weights.values():
        weight.fill(torch.randn(weight.tensor.shape, device=layout.device).mul_(0.02))
    torch.cuda.empty_cache()
    moments = sum(tensor.nbytes for tensor in live.optimizer.moments().values())
    states = torch.cuda.memory_allocated()
    after_forward: list[int] = []
    before_update: list[int] = []
    live.model.register_forward_hook(lambda *_: after_forward.append(torch.cuda.memory_allocated()))
    update = live.optimizer.step

    def observed_update(*arguments: Any) -> None:
        before_update.append(torch.cuda.memory_allocated())
        update(*arguments)

    live.optimizer.step = observed_update  # type: ignore[method-assign, assignment]
    step = TrainStep(live.model, live.optimizer, live.guard, layout, run)
    for number, rows in loader.steps(1, 4):
        if number == 3:  # by now all is compiled and tuned
            torch.cuda.reset_peak_memory_stats()
        step(rows.slice(0, len(rows.ids) // layout.n_ranks), 1e-4, PhaseTimer(layout.device))
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    gradients = before_update[-1] - states
    accumulated = gradients if len(rows.ids) // layout.n_ranks * run.data.seq_len > run.data.micro_batch_size else 0
    kept = after_forward[-1] - states - accumulated
    held = Held(states - moments, moments, gradients, kept, torch.cuda.max_memory_allocated())
    beside = {"reserved by the allocator": torch.cuda.max_memory_reserved(),
              "outside the allocator": total - free - torch.cuda.memory_reserved()}  # fmt: skip
    dist.destroy_process_group()
    return held, beside


def report(predicted: Held, found: Held) -> str:
    """A table of both, in GB, and their ratio."""
    rows = []
    for name, bytes_found in asdict(found).items():
        bytes_predicted = asdict(predicted)[name]
        rows.append([name, f"{bytes_predicted / 1e9:.3f}", f"{bytes_found / 1e9:.3f}", f"{bytes_predicted / bytes_found:.3f}"])
    return table(["GB", "predicted", "found", "ratio"], rows)


def main() -> None:
    """Compose, count or measure, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1, help="on fake tensors: ranks that share the model")
    parser.add_argument("--on-gpu", action="store_true", help="measure the trainer's step on CUDA devices")
    args, overrides = parser.parse_known_args()
    config = compose(True, overrides)
    print(" ".join(config))
    if not args.on_gpu:
        run = load(config)
        found = count_fake(run, args.ranks)
        print(report(expected(predict(run, args.ranks, on_gpu=False)), found))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = [*config, f"run_dir={folder}/run", f"data.sources.demo.path={folder}/shards"]
        write_corpus(Path(folder) / "shards", config, 5)
        run = load(config)
        found, beside = measure_step(run)
        print(describe_machine(torch.device("cuda")))
        print(report(expected(predict(run, world()[1])), found))
        print("  ".join(f"{name}: {size / 1e9:.3f} GB" for name, size in beside.items()))


if __name__ == "__main__":
    main()
