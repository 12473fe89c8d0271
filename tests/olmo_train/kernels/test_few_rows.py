"""Products, norms and experts of a few rows are the ordinary ones, whichever way they go."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from olmo_train.kernels import few_rows
from olmo_train.kernels.moe_mlp import moe_mlp


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


@pytest.mark.parametrize("shape", [(8, 16), (600, 500), (300, 2000), (2000, 300)])
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2,), (3, 1), (5,), (2, 4), (9,), (33,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_are_ordinary_products(shape: tuple[int, int], rows: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w = draw(*rows, shape[1], dtype=dtype), draw(*shape, dtype=dtype)
    found = few_rows.linear(x, w)
    assert found.shape == (*rows, shape[0])
    torch.testing.assert_close(
        found, F.linear(x, w), **({"rtol": 1e-2, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4})
    )


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (2, 1, 4), (100,)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_norms_are_rms_norms(rows: tuple[int, ...], scale: float) -> None:
    x, w = draw(*rows, 40) * scale + 0.3 * scale, draw(40)
    torch.testing.assert_close(few_rows.rms_norm(x, w, 1e-5), F.rms_norm(x, (40,), w, 1e-5), rtol=1e-5, atol=1e-6)
    rounded = few_rows.rms_norm(x.bfloat16(), w.bfloat16(), 1e-5)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, F.rms_norm(x.bfloat16().float(), (40,), w.bfloat16().float(), 1e-5).bfloat16())


@pytest.mark.parametrize("way", ["gathered", "one by one"])
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("top_k", [1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_the_expert_mlp(
    way: str, n_tokens: int, top_k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "one by one":
        monkeypatch.setattr(few_rows, "GATHERED", 0)
    x = draw(n_tokens, 24, dtype=dtype)
    w_in, w_out = draw(6, 20, 24, dtype=dtype), draw(6, 24, 10, dtype=dtype)
    ids = torch.rand(n_tokens, 6, generator=torch.Generator().manual_seed(top_k)).topk(top_k).indices
    gates = torch.rand(n_tokens, top_k, generator=torch.Generator().manual_seed(1))
    found = few_rows.experts(x, w_in, w_out, gates, ids, "loop")
    assert found.dtype == dtype
    expected = moe_mlp(x.float(), w_in.float(), w_out.float(), gates, ids, "reference")[0]
    assert float((found.float() - expected).norm() / expected.norm()) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_an_expert_that_everybody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "GATHERED", 0)
    x, w_in, w_out, gates = draw(4, 8), draw(3, 12, 8), draw(3, 8, 6), torch.rand(4, 2)
    ids = torch.tensor([[1, 0]] * 4)
    expected = moe_mlp(x, w_in, w_out, gates, ids, "reference")[0]
    torch.testing.assert_close(few_rows.experts(x, w_in, w_out, gates, ids, "loop"), expected, rtol=1e-5, atol=1e-5)


def test_a_step_of_little_work_has_one_thread(threads: int) -> None:
    cpu = torch.device("cpu")
    with few_rows.threads_for(1000, cpu):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with few_rows.threads_for(10**9, cpu):
        assert torch.get_num_threads() == threads
    with pytest.raises(KeyError), few_rows.threads_for(1000, cpu):
        raise KeyError
    assert torch.get_num_threads() == threads
