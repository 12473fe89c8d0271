"""A training step never waits for the GPU: shown on fake tensors, whose values nobody can ask for, and on a real GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.memory import replace_by_fakes
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import Rows
from olmo_train.kernels.choose import Kernels
from olmo_train.metrics import PhaseTimer
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Transformer
from olmo_train.optim.build import build_optimizer
from olmo_train.optim.guard import Guard
from olmo_train.optim.parts import Part
from olmo_train.parallel.fsdp import shard
from olmo_train.parallel.mesh import Layout
from olmo_train.parallel.weights import weights_of
from olmo_train.schema import load_config
from olmo_train.train_step import StepResult, TrainStep
from tests.distributed import spawn
from tests.runs import SMALL, small

KERNELS = Kernels("flash4", "quack", "triton")  # what a Hopper GPU gets


def fake_step(overrides: list[str]) -> StepResult:
    """One step of the trainer on tensors without values: `.item()`, a condition, an index by a mask raise an error.

    Their device is the CPU (a torch built without CUDA cannot pretend to have one), the kernels those of a GPU; inside an operator
    of ours nothing runs here, that is the GPU test's.
    """
    run = load_config("train", TrainConfig, [*SMALL, "run_name=x", "data.sources.demo.path=none", *overrides])
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=1)
    device = torch.device("cpu")
    group = dist.group.WORLD
    assert group is not None
    layout = Layout(0, 1, device, init_device_mesh("cpu", (1,), mesh_dim_names=("shard",)), group)
    n, t = run.data.global_batch_size // run.data.seq_len, run.data.seq_len
    ids = np.random.default_rng(0).integers(0, 97, (n, t))
    documents = np.repeat(np.arange(t, dtype=np.int32)[None] // 5, n, 0) if run.data.document_masking else None
    rows = Rows(ids, ids.copy(), documents, np.zeros(n, bool))
    with torch.device("meta"):
        model = Transformer(run.model, KERNELS)
    shard(model, model.fsdp_units(), layout, run.parallel, run.optim.weight_dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        replace_by_fakes(model, device)
        weights = weights_of(model, layout, torch.float32)
        parts = {s.name: Part(weights[s.name].tensor, s.kind, s.shape, 0) for s in param_shapes(run.model)}
        optimizer = build_optimizer(parts, run.optim, run.seed, layout.shard_group)
        step = TrainStep(model, optimizer, Guard(run.optim.skip, device), layout, run)
        return step(rows, 1e-3, PhaseTimer(device))


CASES = {
    "micro-steps": [],
    "one micro-step": ["data.micro_batch_size=256"],
    "documents": ["data.document_masking=true"],
    "bias balancing": ["model.moe.bias_update_rate=1e-3", "model.moe.gate=sigmoid", "model.moe.normalize_top_k=true"],
    "running loads": ["model.moe.load_balancing_scope=running"],
    "dense, windows, z-loss": ["model.moe=null", "model.d_ff=64", "model.sliding_window=4", "model.z_loss_weight=1e-5"],
    "recompute": ["parallel.recompute=selective"],
    "skipping": ["optim.skip={sigma: 6.0, window: 16, min_history: 4}"],
}


def all_cases() -> list[str]:
    """Cases whose result is not a value nobody knows."""
    return [name for name, overrides in CASES.items() if not isinstance(fake_step(overrides).loss, FakeTensor)]


def waits() -> bool:
    try:
        fake_step([]).loss.item()
    except DataDependentOutputException:
        return True
    return False


def test_no_step_of_any_kind_asks_for_a_value() -> None:
    assert spawn(all_cases, 1) == [[]]


def test_asking_would_be_noticed() -> None:
    assert spawn(waits, 1) == [True]


@pytest.mark.gpu
def test_no_step_on_a_real_gpu_waits_for_it(shards: Path, tmp_path: Path) -> None:
    """With the very kernels, the optimizer's included: CUDA itself reports what would synchronise."""
    assert spawn(real_gpu_steps, 1, small(shards, tmp_path / "run", "parallel.compute_dtype=bfloat16")) == [True]


def real_gpu_steps(overrides: list[str]) -> bool:
    from olmo_train.data.loader import Loader, open_sources
    from olmo_train.data.order import DataOrder
    from olmo_train.parallel.mesh import init_distributed
    from olmo_train.train import build, draw_weights

    run = load_config(
        "train", TrainConfig, [*overrides, "optim.moment_dtype=bfloat16", "model.d_model=128", "model.moe.d_expert=64"]
    )
    layout = init_distributed(run.parallel)
    order = DataOrder(open_sources(run.data, Path()), run.seed, run.data.seq_len, run.data.global_batch_size)
    live = build(run, layout, order)
    draw_weights(run, live)
    step, timer = TrainStep(live.model, live.optimizer, live.guard, layout, run), PhaseTimer(layout.device)
    for number, rows in Loader(order, run.data, 0, 1).steps(1, 4):
        torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")  # compiling and tuning may wait
        step(rows, 1e-3, timer)
    torch.cuda.set_sync_debug_mode("default")
    return True
