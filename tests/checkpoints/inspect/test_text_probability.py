"""The probability of a text is the product over its tokens, whatever the windows it is read in."""

import math

import pytest
import torch

from checkpoints.inspect.measures import to_json
from checkpoints.inspect.text_probability import text_probability
from checkpoints.load import load_tokenizer
from checkpoints.opening import Checkpoint
from olmo_train.errors import ConfigError
from olmo_train.model.transformer import Transformer
from olmo_train.tokenizer import Tokenizer

TEXT = "the red cat sees a dog"


@pytest.fixture(scope="module")
def tokenizer(newest: Checkpoint) -> Tokenizer:
    return load_tokenizer(newest, None)


def naive(model: Transformer, ids: list[int], first: int, window_of: dict[int, int]) -> tuple[list[float], list[int]]:
    """Token by token: ids[n] given ids[window_of[n] : n]."""
    log_probs, ranks = [], []
    for n in range(first, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[window_of[n] : n]]))[0, -1]
        log_probs.append(float(logits.log_softmax(-1)[ids[n]]))
        ranks.append(1 + sum(float(z) > float(logits[ids[n]]) for z in logits))
    return log_probs, ranks


def test_it_is_the_sum_over_tokens_one_by_one(model: Transformer, tokenizer: Tokenizer) -> None:
    found = text_probability(model, tokenizer, TEXT, 16)
    ids = [tokenizer.eos_id, *tokenizer.encode(TEXT)]
    log_probs, ranks = naive(model, ids, 1, dict.fromkeys(range(1, len(ids)), 0))
    assert found.log_probs == pytest.approx(log_probs, abs=1e-5)
    assert found.ranks == ranks
    assert (found.ids, "".join(found.tokens)) == (ids[1:], TEXT)
    assert found.log_prob == pytest.approx(sum(log_probs), abs=1e-4)
    assert found.loss == pytest.approx(-found.log_prob / len(found.ids))
    assert found.n_bytes == len(TEXT.encode())
    assert found.bits_per_byte == pytest.approx(-found.log_prob / math.log(2) / len(TEXT))
    assert to_json(found)["context"] == ""


def test_a_context_stands_before_the_text_and_is_not_counted(model: Transformer, tokenizer: Tokenizer) -> None:
    found = text_probability(model, tokenizer, " sees a dog", 16, context="the red cat")
    before = [tokenizer.eos_id, *tokenizer.encode("the red cat")]
    ids = [*before, *tokenizer.encode(" sees a dog")]
    log_probs, _ = naive(model, ids, len(before), dict.fromkeys(range(len(ids)), 0))
    assert found.log_probs == pytest.approx(log_probs, abs=1e-5)
    assert found.ids == tokenizer.encode(" sees a dog")


@pytest.mark.parametrize("seq_len", [1, 2, 5, 8])
@pytest.mark.parametrize("context", ["", "a small bird follows the old fish and then it stays"])
def test_a_long_text_is_read_in_windows(model: Transformer, tokenizer: Tokenizer, seq_len: int, context: str) -> None:
    """Every token once, given half a window or more."""
    text = "the cat sees the dog and the bird hears the red house"
    found = text_probability(model, tokenizer, text, seq_len, context)
    before = [tokenizer.eos_id, *tokenizer.encode(context)]
    ids = [*before, *tokenizer.encode(text)]
    assert len(ids) > 2 * seq_len
    window_of, half = {}, max(1, seq_len // 2)
    done, start = len(before), 0 if len(before) <= seq_len else len(before) - half
    while done < len(ids):
        end = min(start + seq_len, len(ids) - 1)
        window_of |= dict.fromkeys(range(done, end + 1), start)
        done, start = end + 1, end + 1 - half
    assert all(n - begin >= min(n, half) for n, begin in window_of.items())
    assert all(n - begin <= seq_len for n, begin in window_of.items())
    log_probs, ranks = naive(model, ids, len(before), window_of)
    assert found.log_probs == pytest.approx(log_probs, abs=1e-5)
    assert found.ranks == ranks


def test_the_most_probable_continuation_has_rank_one(model: Transformer, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        best = int(model(torch.tensor([[tokenizer.eos_id, *tokenizer.encode("the")]]))[0, -1].argmax())
    found = text_probability(model, tokenizer, tokenizer.decode([best]), 16, "the")
    assert found.ids == [best]
    assert found.ranks == [1]


def test_no_text_is_refused(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="--text='' has no tokens; give some text"):
        text_probability(model, tokenizer, "", 16)
