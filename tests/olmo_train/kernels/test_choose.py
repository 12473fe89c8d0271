"""Which backend runs: the best that proves itself, or the one asked for, or an error. Never a silent fallback."""

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from olmo_train.kernels import attention, choose, moe_mlp, self_check
from olmo_train.kernels import needs as kernel_needs
from olmo_train.kernels.choose import Kernels, choose_kernels, find_kernel_problems
from olmo_train.kernels.needs import Needs

AUTO = {"attention": "auto", "moe_mlp": "auto", "cross_entropy": "auto"}
CPU = Needs(
    torch.device("cpu"), torch.float32, d_model=64, n_heads=4, n_kv_heads=2, d_head=16, seq_len=128, d_expert=32, n_experts=4,
    top_k=2, vocab_rows=96,
)  # fmt: skip
HOPPER = dataclasses.replace(CPU, device=torch.device("cuda"), dtype=torch.bfloat16)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package installed, a GPU of compute capability 9.0, and no check run on it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(kernel_needs, "find_spec", lambda name: name)
    monkeypatch.setattr(attention, "_missing", lambda _: None)
    monkeypatch.setattr(choose, "find_fault", lambda *_: None)


def test_auto_on_a_cpu() -> None:
    kernels = choose_kernels(AUTO, CPU)
    assert kernels.describe() == "attention=sdpa, moe_mlp=loop, cross_entropy=chunked"
    assert kernels.passed_over == ()
    assert choose_kernels({**AUTO, "moe_mlp": "reference"}, CPU).moe_mlp == "reference"


@pytest.mark.usefixtures("hopper")
def test_auto_on_a_hopper_gpu_takes_the_fused_kernels() -> None:
    assert choose_kernels(AUTO, HOPPER) == Kernels("flash4", "quack", "quack")
    assert choose_kernels(AUTO, dataclasses.replace(HOPPER, has_z_loss=True)).cross_entropy == "triton"
    assert choose_kernels(AUTO, dataclasses.replace(HOPPER, d_expert=None)).moe_mlp == "loop"  # a dense model: never called
    single = choose_kernels(AUTO, dataclasses.replace(HOPPER, dtype=torch.float32))
    assert single == Kernels("sdpa", "grouped_mm", "triton")


@pytest.mark.usefixtures("hopper")
def test_auto_passes_over_what_fails_its_check_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {("moe_mlp", "quack"), ("attention", "flash4"), ("attention", "flash3")}
    monkeypatch.setattr(
        choose, "find_fault", lambda kernel, backend, _: f"{kernel}={backend} is off" if (kernel, backend) in broken else None
    )
    kernels = choose_kernels(AUTO, HOPPER)
    assert kernels == Kernels("cudnn", "grouped_mm", "quack")
    assert kernels.passed_over == ("attention=flash4 is off", "attention=flash3 is off", "moe_mlp=quack is off")


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    ("kernel", "backend"), [("attention", "sdpa"), ("moe_mlp", "loop"), ("moe_mlp", "grouped_mm"), ("cross_entropy", "chunked")]
)
def test_backends_that_work_pass_their_check(kernel: str, backend: str, documents: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        needs = dataclasses.replace(CPU, dtype=dtype, has_documents=documents, has_windows=documents, has_z_loss=documents)
        assert self_check.find_fault(kernel, backend, needs) is None


def test_a_check_finds_wrong_numbers_and_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_tenth(*inputs: Any) -> tuple[Tensor, Tensor]:
        y, counts = moe_mlp.moe_mlp(*inputs)
        return (y * 1.1 if inputs[-1] == "loop" else y), counts

    monkeypatch.setattr(self_check, "moe_mlp", off_by_a_tenth)
    assert (
        self_check.find_fault("moe_mlp", "loop", CPU)
        == "kernels.moe_mlp=loop failed its check: relative error 1.0e-01, limit 1e-03"
    )
    monkeypatch.setattr(self_check, "moe_mlp", lambda *_: 1 / 0)
    found = self_check.find_fault("moe_mlp", "loop", CPU)
    assert found == "kernels.moe_mlp=loop failed its check: ZeroDivisionError: division by zero"


def problems(needs: Needs, **wanted: str) -> list[str]:
    return find_kernel_problems({**AUTO, **wanted}, needs)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    assert problems(CPU, moe_mlp="fast", cross_entropy="liger") == [
        "kernels.moe_mlp=fast is not one of auto, quack, grouped_mm, megablocks, loop, reference",
        "kernels.cross_entropy=liger is not one of auto, quack, triton, chunked, reference",
    ]


def test_what_a_cpu_cannot_run_is_refused() -> None:
    assert problems(CPU, moe_mlp="quack", cross_entropy="triton") == [
        "kernels.moe_mlp=quack needs a CUDA device, this is cpu; use auto",
        "kernels.cross_entropy=triton needs a CUDA device, this is cpu; use auto",
    ]


@pytest.mark.usefixtures("hopper")
def test_missing_packages_are_named_with_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_needs, "find_spec", lambda _: None)
    assert problems(HOPPER, moe_mlp="megablocks", cross_entropy="quack") == [
        "kernels.moe_mlp=megablocks needs the package megablocks[gg], which is not installed; pip install 'megablocks[gg]', or use auto",
        "kernels.cross_entropy=quack needs the package quack-kernels, which is not installed; pip install quack-kernels, or use auto",
    ]


@pytest.mark.usefixtures("hopper")
def test_formats_and_shapes_that_a_backend_cannot_take_are_refused() -> None:
    single = dataclasses.replace(HOPPER, dtype=torch.float32)
    assert problems(single, moe_mlp="quack", cross_entropy="quack") == [
        "kernels.moe_mlp=quack computes in bfloat16, and parallel.compute_dtype is another type; set it, or use grouped_mm",
        "kernels.cross_entropy=quack computes in bfloat16, and parallel.compute_dtype is another type; set it, or use chunked",
    ]
    odd = dataclasses.replace(HOPPER, d_expert=6, vocab_rows=97)
    assert problems(odd, moe_mlp="grouped_mm", cross_entropy="quack") == [
        "kernels.moe_mlp=grouped_mm: model.moe.d_expert=6 * 2 bytes is no multiple of 16; change it, or use loop",
        (
            "kernels.cross_entropy=quack needs multiples of 8: model.d_model=64, rows of the output projection=97; "
            "pad model.padded_vocab_size, or use triton"
        ),
    ]
    assert problems(dataclasses.replace(HOPPER, has_z_loss=True), cross_entropy="quack") == [
        "kernels.cross_entropy=quack has no z-loss, and model.z_loss_weight is not 0; use triton"
    ]


@pytest.mark.usefixtures("hopper")
def test_older_gpus_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    needs = "needs a Hopper GPU or newer (compute capability 9.0), this one has 8.0"
    assert problems(HOPPER, moe_mlp="quack", cross_entropy="quack") == [
        f"kernels.moe_mlp=quack {needs}; use grouped_mm",
        f"kernels.cross_entropy=quack {needs}; use triton",
    ]


def test_grouped_mm_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    assert problems(CPU, moe_mlp="grouped_mm") == [
        f"kernels.moe_mlp=grouped_mm needs torch 2.10 or newer, this is {torch.__version__}; use auto"
    ]
