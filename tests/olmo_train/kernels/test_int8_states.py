"""8-bit codes: the map of the paper, the nearest value, and blocks that end with their row."""

import pytest
import torch

from olmo_train.kernels.int8_states import BLOCK, dequantize, dynamic_map, n_blocks, quantize


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_torchaos(signed: bool) -> None:
    theirs = pytest.importorskip("torchao.optim.quant_utils")
    expected = torch.tensor(theirs.create_dynamic_map(signed), dtype=torch.float32)
    torch.testing.assert_close(dynamic_map(signed), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_torchaos(signed: bool) -> None:
    theirs = pytest.importorskip("torchao.optim.quant_utils")
    values = torch.randn(64, BLOCK, generator=torch.Generator().manual_seed(0)) ** 5
    values = values if signed else values.abs()
    codes, scales = quantize(values, signed)
    scaled, expected_scales = theirs.scale_tensor(values, BLOCK)
    expected = theirs.quantize_8bit_with_qmap(scaled, dynamic_map(signed))
    assert torch.equal(scales.view(-1), expected_scales)
    assert (codes != expected).sum() <= 2  # ties, up to the last bit of the middle
    torch.testing.assert_close(
        dequantize(codes, scales, signed), theirs.dequant_with_qmap(codes, dynamic_map(signed), scales.view(-1))
    )


@pytest.mark.parametrize("signed", [True, False])
def test_every_value_of_the_map_comes_back_exactly(signed: bool) -> None:
    values = dynamic_map(signed)[None]
    codes, scales = quantize(values, signed)
    assert codes[0].tolist() == list(range(256))
    assert torch.equal(dequantize(codes, scales, signed), values)


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 700])
def test_a_block_ends_with_its_row(columns: int) -> None:
    values = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1.0, 1e6])[:, None]
    codes, scales = quantize(values, signed=True)
    assert scales.shape == (3, n_blocks((3, columns)))
    for row in range(3):
        alone = quantize(values[row : row + 1], signed=True)
        assert torch.equal(alone[0][0], codes[row])
        assert torch.equal(alone[1][0], scales[row])
    error = (dequantize(codes, scales, signed=True) - values).abs() / values.abs().amax(1, keepdim=True)
    assert error.max() < 0.0071  # half a bin of the highest decade


def test_a_block_of_zeros_stays_zero() -> None:
    for signed in (True, False):
        codes, scales = quantize(torch.zeros(2, 300), signed)
        assert not dequantize(codes, scales, signed).any()
