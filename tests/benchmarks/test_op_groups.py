"""Rules that sort a trace's kernels and operators into what they are for."""

import pytest

from benchmarks import op_groups as g
from benchmarks.op_groups import Sizes, Work, busy_us, group_of, read_trace

SIZES = Sizes(vocab=50304, n_experts=64)
MOE, MOE_BACK = ("phase:forward_backward", "olmo_train::moe_mlp"), ("olmo_train::moe_mlp_backward",)
# (kernel, operators around it, sizes of the innermost one's inputs, group)
KERNELS = [
    ("kernel_cutlass_kernel_quackgemm_act_sm90GemmActSm90_object_at_tensorptrbf16gmem", MOE, (), g.EXPERTS),
    ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::GemmUniversal>>", MOE_BACK, (), g.EXPERTS),
    ("_gather_sum", MOE, (), g.EXPERT_REST),
    ("_swiglu_backward", MOE_BACK, (), g.EXPERT_REST),
    ("_place", MOE, (), g.ROUTER),
    ("_count", MOE, (), g.ROUTER),
    ("kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90_object_at", (), (), g.ATTENTION),
    ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 128, 64, 4>>", ("aten::mm",), (), g.ATTENTION),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3_128x128x128_4x1x1_cga1x1x1_kernel0_0", (), (), g.ATTENTION),
    ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", ("aten::mm",), (16384, 2048, 6144), g.PROJECTIONS),
    ("nvjet_sm90_tst_64x64_64x16_1x2_h_bz_TNT", ("aten::linear", "aten::mm"), (16384, 2048, 2048, 64), g.ROUTER),
    ("nvjet_sm90_tst_256x128_64x4_2x1_v_bz_coopB_TNN", ("_Chunked", "aten::mm"), (5337, 2048, 2048, 50304), g.LOSS_MATMUL),
    ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64_cublas", ("aten::mm",), (16384, 50304), g.LOSS_MATMUL),
    ("_rows", ("_Chunked",), (), g.LOSS_REST),
    ("void at::native::elementwise_kernel<128, 2>", ("_ChunkedBackward", "aten::mul"), (), g.LOSS_REST),
    ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", ("## Call CompiledFxGraph fabc ##",), (), g.ELEMENTWISE),
    ("_top_k", ("olmo_train::top_k",), (), g.ROUTER),
    ("triton_per_fused__softmax_5", (), (), g.ROUTER),
    ("void at::native::(anonymous namespace)::indexSelectLargeIndex", ("aten::embedding",), (), g.EMBEDDING),
    ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel", ("aten::embedding_dense_backward",), (), g.EMBEDDING),
    ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", ("phase:optimizer", "aten::_fused_adamw_"), (), g.OPTIMIZER),
    ("void at::native::reduce_kernel<512, 1>", ("phase:optimizer", "aten::linalg_vector_norm"), (), g.OPTIMIZER),
    ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", ("phase:forward_backward",), (), g.FSDP),
    ("void at::native::split_with_sizes_copy_out_contiguous_no_cast_kernel", ("FSDP::all_gather_copy_out",), (), g.FSDP),
    ("Memcpy HtoD (Pinned -> Device)", ("aten::copy_",), (), g.COPIES),
]  # fmt: skip


@pytest.mark.parametrize(("name", "around", "dims", "group"), KERNELS, ids=[k[0][:40] for k in KERNELS])
def test_a_kernel_belongs_to_its_group(name: str, around: tuple[str, ...], dims: tuple[int, ...], group: str) -> None:
    category = "gpu_memcpy" if name.startswith("Memcpy") else "kernel"
    assert group_of(Work(name, 0.0, 1.0, around, dims, category), SIZES) == group


def op(name: str, start: float, end: float, tid: int = 1, dims: list[list[int]] | None = None) -> dict:
    return {
        "cat": "cpu_op",
        "name": name,
        "ts": start,
        "dur": end - start,
        "pid": 1,
        "tid": tid,
        "args": {"Input Dims": dims or []},
    }


def kernel(name: str, start: float, end: float, correlation: int) -> dict:
    return {
        "cat": "kernel",
        "name": name,
        "ts": start,
        "dur": end - start,
        "pid": 0,
        "tid": 7,
        "args": {"correlation": correlation},
    }


def launch(at: float, correlation: int, tid: int = 1) -> dict:
    return {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": at, "dur": 1, "pid": 1, "tid": tid, "args": {"correlation": correlation}}  # fmt: skip


def test_a_kernel_is_found_under_the_operators_that_launched_it() -> None:
    events = [
        op("outer", 0, 100), op("aten::mm", 10, 20, dims=[[3, 4], [4, 5]]), op("aten::mul", 30, 40), op("backward", 0, 100, tid=2),
        launch(15, 1), launch(50, 2), launch(35, 3), launch(60, 4, tid=2), launch(200, 5),
        kernel("a", 300, 310, 1), kernel("b", 320, 330, 2), kernel("c", 330, 345, 3), kernel("d", 345, 350, 4), kernel("e", 360, 361, 5),
    ]  # fmt: skip
    work = {w.name: w for w in read_trace(events)}
    assert {name: w.around for name, w in work.items()} == {
        "a": ("outer", "aten::mm"), "b": ("outer",), "c": ("outer", "aten::mul"), "d": ("backward",), "e": (),
    }  # fmt: skip
    assert work["a"].dims == (3, 4, 4, 5)
    assert work["c"].duration_us == 15


def test_without_kernels_operators_count_with_their_own_time() -> None:
    work = {w.name: w for w in read_trace([op("outer", 0, 100), op("inner", 10, 40), op("leaf", 20, 25), op("next", 40, 50)])}
    assert {name: w.duration_us for name, w in work.items()} == {"outer": 60, "inner": 25, "leaf": 5, "next": 10}
    assert work["leaf"].around == ("outer", "inner")


def test_overlapping_kernels_are_busy_once() -> None:
    pieces = [Work("x", start, duration, (), (), "kernel") for start, duration in ((0, 10), (5, 10), (30, 5), (31, 1))]
    assert busy_us(pieces) == 20
