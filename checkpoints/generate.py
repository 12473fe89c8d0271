"""Text from a step folder: `olmo generate runs/first --prompt 'import os'`.

Every new token runs the whole window again: there is no cache of keys and values yet.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.load import load_model, load_tokenizer
from checkpoints.opening import open_checkpoint
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError, run_command
from olmo_train.model.transformer import Transformer
from olmo_train.parallel.mesh import choose_device


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """0: always the most probable."""
    top_p: float = 0.95
    """Among the most probable tokens that together have this probability."""
    seed: int = 0
    context: int = 2048
    """Tokens the model sees at most: its seq_len in training."""


@torch.no_grad()
def generate(model: Transformer, ids: list[int], max_tokens: int, sampling: Sampling, stop_id: int | None) -> list[int]:
    """Continue `ids` by up to `max_tokens` new ids, which are returned; ends early at `stop_id`."""
    generator = torch.Generator().manual_seed(sampling.seed)
    device = next(model.parameters()).device
    new: list[int] = []
    for _ in range(max_tokens):
        window = torch.tensor([[*ids, *new][-sampling.context :]], device=device)
        logits = model(window)
        assert isinstance(logits, Tensor)
        token = choose_token(logits[0, -1, : model.config.vocab_size].float().cpu(), sampling, generator)
        if token == stop_id:
            break
        new.append(token)
    return new


def choose_token(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw from the nucleus. Source: Holtzman et al., arXiv 1904.09751."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probs, order = (logits_V / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= sampling.top_p, 0.0)  # the first token always stays
    return int(order[torch.multinomial(probs, 1, generator=generator)])


def main(argv: list[str]) -> None:
    """Print prompt and continuation."""
    parser = argparse.ArgumentParser("olmo generate", description=__doc__)
    parser.add_argument("path", help="a run (its newest step), a step folder, a Hugging Face folder or owner/name@revision")
    parser.add_argument("--step", type=int, help="step of the run")
    parser.add_argument("--prompt", default="", help="text to continue; empty: begin a document")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the most probable token")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="default: the one the run's shards were made with")
    parser.add_argument("--device", choices=[device.value for device in Device], default="auto")
    args = parser.parse_args(argv)
    problems = [f"--{name}={value} must {rule}" for name, value, rule, ok in (
        ("max-tokens", args.max_tokens, "be positive", args.max_tokens > 0),
        ("temperature", args.temperature, "not be negative", args.temperature >= 0),
        ("top-p", args.top_p, "be in (0, 1]", 0 < args.top_p <= 1),
    ) if not ok]  # fmt: skip
    if problems:
        raise ConfigError(problems)
    checkpoint = open_checkpoint(args.path, args.step)
    tokenizer = load_tokenizer(checkpoint, args.tokenizer)
    model = load_model(checkpoint, choose_device(Device(args.device)))
    sampling = Sampling(args.temperature, args.top_p, args.seed, checkpoint.seq_len)
    ids = [tokenizer.eos_id, *tokenizer.encode(args.prompt)]  # documents follow an end of text
    print(args.prompt + tokenizer.decode(generate(model, ids, args.max_tokens, sampling, tokenizer.eos_id)))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
