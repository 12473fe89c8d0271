"""What a model believes of a given text: the log-probability and rank of every token, and bits per byte."""

import math

import torch

from checkpoints.inspect.measures import TextProbability
from checkpoints.inspect.observe import score_next
from olmo_train.errors import ConfigError
from olmo_train.model.transformer import Transformer
from olmo_train.tokenizer import Tokenizer


@torch.no_grad()
def text_probability(model: Transformer, tokenizer: Tokenizer, text: str, seq_len: int, context: str = "") -> TextProbability:
    """Probability of `text` after an end of text and `context`, in nats.

    The model sees at most `seq_len` tokens at a time (as trained): a longer text is read in windows that overlap by half, and
    each token is scored in the first window that has it, so with at least half a window before it once the text is that long.
    Context and text are tokenized apart, so that the ids of the text are its own, whatever the context.

    Raises:
        ConfigError: the text has no tokens.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise ConfigError(f"--text={text!r} has no tokens; give some text")
    before = [tokenizer.eos_id, *tokenizer.encode(context)]
    log_probs, ranks = _score(model, [*before, *ids], len(before), seq_len)
    n_bytes, log_prob = len(text.encode()), math.fsum(log_probs)
    return TextProbability(
        text, context, ids, [tokenizer.decode([token]) for token in ids], log_probs, ranks, log_prob, -log_prob / len(ids),
        -log_prob / math.log(2) / n_bytes, n_bytes,
    )  # fmt: skip


def _score(model: Transformer, ids: list[int], first: int, seq_len: int) -> tuple[list[float], list[int]]:
    """(log-probabilities, ranks) of ids[first:], each given what stands before it in its window."""
    device = model.embedding.weight.device
    log_probs: list[float] = []
    ranks: list[int] = []
    half = max(1, seq_len // 2)
    done, start = first, 0 if first <= seq_len else first - half
    while done < len(ids):
        end = min(start + seq_len, len(ids) - 1)  # ids[start:end] are seen, ids[done : end + 1] are scored
        x_TD = model.hidden(torch.tensor([ids[start:end]], device=device))[0][0, done - 1 - start :]
        scores = score_next(model, x_TD, torch.tensor(ids[done : end + 1], device=device))
        log_probs += scores.log_probs_N.tolist()
        ranks += scores.ranks_N.tolist()
        done, start = end + 1, end + 1 - half
    return log_probs, ranks
