"""A few rows at a time on a CPU, as a step of generation has them: products, norms, experts. Elsewhere the ordinary ones.

A step reads every weight that it uses once, and small models spend it on starting operations. So:
- MKL's product of one row with a large matrix runs on one thread, and on AMD's cores at a third of the speed of two rows with the
  *matrix on the left*, `w @ x.T`. One row is computed twice then, and a few as they are. For some more rows its batched product
  of blocks of the matrix is faster than its product of the whole.
- Experts with small matrices are gathered and multiplied in two operations; of larger ones each thread takes its own, one by one.
docs/generate.md has the measurements. No gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from olmo_train.kernels.cpu_threads import run_each
from olmo_train.kernels.moe_mlp import moe_mlp

LARGE = 2**17
"""Elements of a matrix from which on it pays to do other than torch."""
LEFT_ROWS = 4
"""Rows up to which a matrix stands on the left; with one thread only if it has at most NARROW columns."""
NARROW = 1024
BLOCK_ROWS = 16
"""Rows up to which several threads take a matrix in BLOCKS blocks."""
BLOCKS = 8
MOST_TOKENS = 16
"""Above this most experts have several tokens each, and training's kernel is as fast."""
GATHERED = 2**20
"""Elements of experts' matrices up to which gathering them is faster than going through them."""
LITTLE = 2**26
"""Multiply-adds of a step up to which it has one thread: several gain little, and lose much where others have a core."""


@contextmanager
def threads_for(multiply_adds: int, device: torch.device) -> Iterator[None]:
    """One thread for a step of little work, torch's own number for others."""
    before = torch.get_num_threads()
    if device.type != "cpu" or multiply_adds > LITTLE or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def linear(x: Tensor, w_OI: Tensor) -> Tensor:
    """x w^T of any (..., I): (..., O)."""
    n_out, width = w_OI.shape
    if n_out * width < LARGE or not _by_mkl(x):
        return F.linear(x, w_OI)
    x_NI = x.reshape(-1, width)
    n, is_alone = len(x_NI), torch.get_num_threads() == 1
    if n <= LEFT_ROWS and not (is_alone and width > NARROW):
        if n == 1:
            x_NI = torch.cat([x_NI, x_NI])
        return torch.mm(w_OI, x_NI.t())[:, :n].t().reshape(*x.shape[:-1], n_out)
    if n <= BLOCK_ROWS and not is_alone and n_out % BLOCKS == 0:
        parts = torch.bmm(x_NI.expand(BLOCKS, n, width), w_OI.view(BLOCKS, n_out // BLOCKS, width).mT)
        return parts.transpose(0, 1).reshape(*x.shape[:-1], n_out)
    return F.linear(x, w_OI)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dim, in float32, as the LayerNorm of [x, -x], whose mean is zero: one kernel where torch has six."""
    width = x.shape[-1]
    if x.device.type != "cpu" or x.numel() > MOST_TOKENS * width:
        return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
    wide = x.float()
    normed = F.layer_norm(torch.cat([wide, -wide], -1), (2 * width,), eps=eps)
    return (normed[..., :width] * weight.float()).to(x.dtype)


def experts(x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor, backend: str) -> Tensor:
    """The expert MLP of `moe_mlp` (arguments there): (N, D)."""
    n, k = gates_NK.shape
    is_small = n * k * w_in_EFD[0].numel() <= GATHERED
    if x_ND.device.type == "cpu" and n <= MOST_TOKENS and is_small:
        return _gathered(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK)
    if _by_mkl(x_ND) and n <= MOST_TOKENS and x_ND.shape[1] <= NARROW:
        return _one_by_one(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK)
    with torch.inference_mode(False), torch.no_grad():  # its threads would not be in inference mode
        return moe_mlp(x_ND, w_in_EFD, w_out_EDF, gates_NK, expert_ids_NK, backend)[0]


def _gathered(x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor) -> Tensor:
    """Every pair of token and expert with matrices of its own."""
    n, k = gates_NK.shape
    x_S1D, chosen = x_ND.repeat_interleave(k, 0)[:, None], expert_ids_NK.flatten()
    gate, up = torch.bmm(x_S1D, w_in_EFD.index_select(0, chosen).mT).chunk(2, -1)
    y_S1D = torch.bmm(F.silu(gate).mul_(up), w_out_EDF.index_select(0, chosen).mT)
    return torch.bmm(gates_NK[:, None], y_S1D.view(n, k, -1).to(gates_NK.dtype))[:, 0].to(x_ND.dtype)


def _one_by_one(x_ND: Tensor, w_in_EFD: Tensor, w_out_EDF: Tensor, gates_NK: Tensor, expert_ids_NK: Tensor) -> Tensor:
    """Experts one per thread, each with the rows that chose it and its matrices on the left; one row takes the next along."""
    n, k = gates_NK.shape
    pairs, runs = _group(expert_ids_NK)
    tokens = pairs // k
    x_SD = torch.cat([x_ND.index_select(0, tokens), x_ND[-1:]])
    y_DS = x_ND.new_empty(x_ND.shape[1], n * k)
    is_inference = torch.is_inference_mode_enabled()  # which a thread does not inherit

    def one(run: tuple[int, int, int]) -> None:
        e, first, end = run
        with torch.inference_mode(is_inference):
            gate, up = torch.mm(w_in_EFD[e], x_SD[first : max(end, first + 2)].t()).chunk(2)
            a_SF = F.silu(gate).mul_(up).t().contiguous()
            y_DS[:, first:end] = torch.mm(w_out_EDF[e], a_SF.t())[:, : end - first]

    run_each(one, runs)
    y_SD = y_DS.t() * gates_NK.reshape(-1, 1).index_select(0, pairs)
    return torch.zeros_like(x_ND).index_add_(0, tokens, y_SD)


def _group(expert_ids_NK: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Pairs (token n's k-th choice is n * K + k) in the order of their experts, and per expert chosen (id, first, end)."""
    ids = expert_ids_NK.flatten().tolist()
    pairs = sorted(range(len(ids)), key=ids.__getitem__)
    starts = [i for i, pair in enumerate(pairs) if i == 0 or ids[pair] != ids[pairs[i - 1]]]
    return torch.tensor(pairs), [(ids[pairs[a]], a, b) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def _by_mkl(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkl.is_available()
