"""A cache holds the newest keys of every row, whatever the ring and the lengths, and hides what is no key of a row."""

import pytest
import torch
from torch import Tensor

from olmo_train.kernels.decode_attention import decode_attention
from olmo_train.model.cache import LayerCache, Prompt, Slots

LIKE = torch.empty(0)


def reference(q_HC: Tensor, k_TGC: Tensor, v_TGC: Tensor) -> Tensor:
    """One query over all keys, head by head."""
    repeat = q_HC.shape[0] // k_TGC.shape[1]
    out = []
    for h, q in enumerate(q_HC):
        k, v = k_TGC[:, h // repeat], v_TGC[:, h // repeat]
        out.append((k @ q / q.shape[0] ** 0.5).softmax(0) @ v)
    return torch.stack(out)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_over_a_cache_is_the_definition(heads: int, kv_heads: int) -> None:
    q, k, v = torch.randn(3, heads, 8), torch.randn(3, kv_heads, 11, 8), torch.randn(3, kv_heads, 11, 8)
    bias = torch.zeros(3, 1, 1, 11)
    bias[1, ..., :4] = float("-inf")
    for hidden, mask in ((0, None), (4, bias)):
        out = decode_attention(q, k, v, mask)
        for row in range(3):
            first = hidden if row == 1 else 0
            expected = reference(q[row], k[row, :, first:].transpose(0, 1), v[row, :, first:].transpose(0, 1))
            torch.testing.assert_close(out[row], expected)


@pytest.mark.parametrize("window", [None, 1, 3, 7, 40])
@pytest.mark.parametrize("lengths", [[5], [6, 6], [2, 9, 4], [1, 14]])
def test_a_row_sees_its_own_newest_keys(window: int | None, lengths: list[int]) -> None:
    """Keys are numbers that say which row and position they are from."""
    torch.manual_seed(0)
    n_new, b = 17, len(lengths)
    rows = [torch.randn(n + n_new, 2, 4) for n in lengths]
    cache = LayerCache(slots := Slots(lengths, max(lengths) + n_new, window, LIKE), (b, 2, 4), LIKE)
    assert cache.k_BGSC.shape[2] == min(window or 99, max(lengths) + n_new)
    packed = torch.cat([row[:n] for row, n in zip(rows, lengths, strict=True)])[None]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    prompts = [Prompt(slice(end - n, end), slice(i, i + 1)) for i, (n, end) in enumerate(zip(lengths, ends, strict=True))]
    out = cache.add_prompts(packed, packed, -packed, prompts, "reference")
    for row, prompt, n in zip(rows, prompts, lengths, strict=True):
        for place in range(n):
            seen = row[max(0, place + 1 - (window or 99)) : place + 1]
            torch.testing.assert_close(out[0, prompt.tokens][place], reference(row[place], seen, -seen))
    for step in range(n_new):
        slots.advance()
        new = torch.stack([row[n + step] for row, n in zip(rows, lengths, strict=True)])[:, None]
        out = cache.add_token(new, new, -new)
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            end = n + step + 1
            seen = row[max(0, end - (window or 99)) : end]
            torch.testing.assert_close(out[i, 0], reference(row[end - 1], seen, -seen))


def test_nothing_is_hidden_once_a_ring_has_gone_round() -> None:
    """Rows of 4 and 9 tokens, 6 slots: the shorter one's first token stands in column 5."""
    slots = Slots([4, 9], 40, 6, LIKE)
    hidden = []
    for _ in range(5):
        hidden.append(0 if slots.bias_B11S is None else int(slots.bias_B11S.isinf().sum()))
        slots.advance()
    assert hidden == [2, 1, 0, 0, 0]
    assert slots.bias_B11S is None
    assert Slots([9, 9], 40, 6, LIKE).bias_B11S is None
    assert Slots([6, 9], 40, 6, LIKE).bias_B11S is None  # its first column has left the ring already


def test_only_chosen_rows_stay() -> None:
    slots = Slots([1, 3, 2], 5, None, LIKE)
    cache = LayerCache(slots, (3, 2, 4), LIKE)
    cache.k_BGSC.copy_(torch.arange(3.0)[:, None, None, None].expand_as(cache.k_BGSC))
    for held in (slots, cache):
        held.keep(torch.tensor([2, 0]))
    assert cache.k_BGSC[:, 0, 0, 0].tolist() == [2, 0]
    assert slots.bias_B11S is not None
    assert slots.bias_B11S.isinf().sum((1, 2, 3)).tolist() == [1, 2]
