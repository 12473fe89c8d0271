"""Sums over rows, in pieces, are those over whole tensors; matrices are cut where the model cuts them."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from checkpoints.inspect import row_sums
from checkpoints.inspect.matrices import matrices_of
from checkpoints.inspect.norms import weight_norms
from checkpoints.inspect.row_sums import row_differences, row_stats
from checkpoints.inspect.totals import Total, matrix_total, sum_totals
from checkpoints.opening import Checkpoint
from olmo_train.model.shapes import param_shapes


class InMemory:
    """Tensors by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.largest_read = 0

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        part = self.tensors[name][slice(*rows) if rows else slice(None)]
        self.largest_read = max(self.largest_read, part.numel())
        return part


SHAPES = [(7,), (5, 8), (3, 4, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_stats_of_rows_are_those_of_the_whole_tensor(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "PIECE_ELEMENTS", 16)
    monkeypatch.setattr(row_sums, "BLOCK_ELEMENTS", 10)
    x = torch.randn(shape, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    weights = InMemory({"x": x})
    stats, exact = row_stats(weights, "x"), x.double()
    for found, expected in (
        (stats.square, exact.square().sum(-1)), (stats.total, exact.sum(-1)), (stats.low, exact.amin(-1)),
        (stats.high, exact.amax(-1)),
    ):  # fmt: skip
        torch.testing.assert_close(found, expected)
    assert weights.largest_read <= max(16, math.prod(shape[1:]))  # one row of dim 0 at least


@pytest.mark.parametrize("shape", SHAPES)
def test_differences_of_rows_are_those_of_the_whole_tensors(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "PIECE_ELEMENTS", 16)
    monkeypatch.setattr(row_sums, "BLOCK_ELEMENTS", 10)
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    b[..., :3] = a[..., :3]
    found = row_differences(InMemory({"x": a}), InMemory({"x": b}), "x")
    x, y = a.double(), b.double()
    torch.testing.assert_close(found.square_difference, (x - y).square().sum(-1))
    torch.testing.assert_close(found.dot, (x * y).sum(-1))
    torch.testing.assert_close(found.max_abs, (x - y).abs().amax(-1))
    assert torch.equal(found.n_bits, (a != b).sum(-1).double())
    assert torch.equal(found.n_rounded, found.n_bits)


def test_bits_are_compared_not_values() -> None:
    """-0 equals 0 and NaN does not equal itself; bit for bit it is the other way round."""
    a, b = torch.tensor([0.0, math.nan, 1.0]), torch.tensor([-0.0, math.nan, 1.0])
    assert int(row_differences(InMemory({"x": a}), InMemory({"x": b}), "x").n_bits) == 1


def test_other_number_formats_are_compared_after_rounding() -> None:
    a = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    b = a.bfloat16()
    found = row_differences(InMemory({"x": a}), InMemory({"x": b}), "x")
    assert found.n_bits.sum() == 32
    assert found.n_rounded.sum() == 0
    b[2, 3] = 5.0
    back = row_differences(InMemory({"x": b}), InMemory({"x": a}), "x")
    assert back.n_rounded.tolist() == [0, 0, 1, 0]


def test_the_matrices_of_a_parameter_cover_it_once(newest: Checkpoint) -> None:
    for param in param_shapes(newest.model):
        covered = torch.zeros(param.shape[:-1])
        for matrix in matrices_of(param.name, param.shape, newest.model):
            covered[matrix.slices()] += 1
            assert matrix.layer == param.layer
        assert (covered == 1).all(), param.name


def test_matrices_are_named_after_what_they_do(newest: Checkpoint) -> None:
    shapes = {param.name: param.shape for param in param_shapes(newest.model)}

    def names(name: str) -> list[tuple[str, str]]:
        return [(matrix.name, matrix.kind) for matrix in matrices_of(name, shapes[name], newest.model)]

    qkv = "blocks.1.attention.w_qkv.weight"
    assert names(qkv) == [(f"{qkv}.{part}", f"attention.{part}") for part in "qkv"]
    assert names("blocks.0.moe.w_in")[:3] == [
        ("blocks.0.moe.w_in[0].gate", "experts.gate"), ("blocks.0.moe.w_in[0].up", "experts.up"),
        ("blocks.0.moe.w_in[1].gate", "experts.gate"),
    ]  # fmt: skip
    assert names("norm.weight") == [("norm.weight", "norm")]
    assert names("blocks.0.moe.w_out")[3] == ("blocks.0.moe.w_out[3]", "experts.out")
    moment = matrices_of(f"exp_avg/{qkv}", shapes[qkv], newest.model)
    assert next((m.name, m.kind, m.layer) for m in moment) == (f"exp_avg/{qkv}.q", "exp_avg/attention.q", 1)
    uncut = matrices_of(qkv, shapes[qkv], None)
    assert [(m.name, m.kind) for m in uncut] == [(qkv, "attention.q+attention.k+attention.v")]
    assert matrices_of("blocks.0.moe.router.bias", (4,), newest.model)[0].kind == "router.bias"


def test_totals_add_up_and_keep_what_is_not_a_number() -> None:
    a, b = Total(2, 1.0, 4.0, 1.0, 2.0, 0.5, 1, 1), Total(3, 3.0, 0.0, 3.0, 0.0, math.nan, 3, 2)
    both = sum_totals([a, b])
    assert (both.n, both.norm_a, both.norm_difference, both.relative, both.n_bits) == (5, 2.0, 2.0, 1.0, 4)
    assert both.cosine == pytest.approx(2.0 / (2.0 * 2.0))
    assert math.isnan(both.max_abs)
    assert (Total().relative, Total().cosine) == (None, None)


def test_norms_are_those_of_the_tensors_put_together(newest: Checkpoint) -> None:
    norms = weight_norms(newest.weights, newest.model)
    tensors = {name: newest.weights.read(name).double() for name in newest.weights.shapes}
    everything = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
    assert (norms.all.n, norms.all.norm) == (everything.numel(), pytest.approx(float(everything.norm()), rel=1e-12))
    assert norms.all.rms == pytest.approx(float(everything.square().mean().sqrt()), rel=1e-12)
    gates = torch.cat([tensors[f"blocks.{i}.moe.w_in"][:, :16].reshape(-1) for i in range(2)])
    assert norms.by_kind["experts.gate"].norm == pytest.approx(float(gates.norm()), rel=1e-12)
    keys = tensors["blocks.1.attention.w_qkv.weight"][32:64]
    assert norms.by_kind_and_layer["attention.k"][1].norm == pytest.approx(float(keys.norm()), rel=1e-12)
    block = torch.cat([tensor.reshape(-1) for name, tensor in tensors.items() if name.startswith("blocks.0.")])
    assert norms.by_layer[0].norm == pytest.approx(float(block.norm()), rel=1e-12)
    assert (norms.all.update_norm, norms.all.update_frac, norms.all.cosine) == (None, None, None)


def test_updates_are_the_difference_to_the_checkpoint_before(newest: Checkpoint) -> None:
    now = {name: newest.weights.read(name) for name in newest.weights.shapes}
    before = {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in now.items()}
    before["norm.weight"] = now["norm.weight"]
    found = weight_norms(InMemory(now), newest.model, InMemory(before)).by_kind
    x, y = before["lm_head.weight"].double(), now["lm_head.weight"].double()
    head = found["lm_head"]
    assert head.update_norm == pytest.approx(float((x - y).norm()), rel=1e-12)
    assert head.update_frac == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-12)
    assert head.cosine == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-12)
    same = weight_norms(InMemory(now), newest.model, InMemory(now)).all
    assert (same.update_norm, same.update_frac) == (0.0, 0.0)
    assert same.cosine == pytest.approx(1.0, rel=1e-12)


def test_a_matrix_total_is_of_its_own_rows(newest: Checkpoint) -> None:
    name = "blocks.0.moe.w_in"
    a = newest.weights.read(name)
    b = a.clone()
    b[2, 16:] += 1.0  # the up matrix of expert 2
    sums = row_differences(InMemory({name: a}), InMemory({name: b}), name)
    totals = {m.name: matrix_total(sums, m) for m in matrices_of(name, tuple(a.shape), newest.model)}
    moved = {key for key, total in totals.items() if total.n_bits}
    assert moved == {f"{name}[2].up"}
    assert totals[f"{name}[2].up"].norm_difference == pytest.approx(math.sqrt(16 * 32), rel=1e-6)
