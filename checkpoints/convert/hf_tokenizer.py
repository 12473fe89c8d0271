"""The tokenizer of a checkpoint as files that `AutoTokenizer.from_pretrained` loads, and its special ids."""

import json
from dataclasses import dataclass
from typing import Any

from checkpoints.load import load_tokenizer
from checkpoints.opening import Checkpoint
from olmo_train.tokenizer import END_OF_TEXT

PADDING = ("<|padding|>", "<|pad|>", "<pad>", "[PAD]")
"""Names that tokenizers give a token that only fills up batches."""
COMPANIONS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""Beside tokenizer.json in folders that others wrote."""


@dataclass(frozen=True)
class TokenIds:
    """Special ids of a model's config."""

    eos: Any = None
    """One id, a list of them in some chat models, or None."""
    bos: int | None = None
    pad: int | None = None


def tokenizer_files(checkpoint: Checkpoint) -> tuple[dict[str, bytes], TokenIds]:
    """Files by name (none where no tokenizer is known), and the ids. A Hugging Face folder keeps its own, byte for byte.

    Raises:
        ConfigError: the tokenizer cannot be read, or has more ids than the model has rows.
    """
    if checkpoint.is_hf and checkpoint.tokenizer in (None, checkpoint.folder / "tokenizer.json"):
        values = json.loads((checkpoint.folder / "config.json").read_text())
        ids = TokenIds(values.get("eos_token_id"), values.get("bos_token_id"), values.get("pad_token_id"))
        names = ("tokenizer.json", *COMPANIONS)
        return {name: (checkpoint.folder / name).read_bytes() for name in names if (checkpoint.folder / name).exists()}, ids
    if checkpoint.tokenizer is None:
        return {}, TokenIds()
    return _own_files(checkpoint)


def _own_files(checkpoint: Checkpoint) -> tuple[dict[str, bytes], TokenIds]:
    """`tokenizer.json` as it is but for limits an evaluation may have left in it, and a config without additions of its own."""
    tokenizer = load_tokenizer(checkpoint, None)
    data = tokenizer.path.read_bytes()
    values = json.loads(data)
    if values.get("truncation") is not None or values.get("padding") is not None:
        data = json.dumps(values | {"truncation": None, "padding": None}, ensure_ascii=False, indent=2).encode()
    tokens = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    padding = next((name for name in PADDING if name in tokens), None)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": checkpoint.seq_len,
        "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": None, "pad_token": padding or END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    # Documents follow an end of text, so it also begins them. No padding id in the config where the tokenizer has no token for
    # it: transformers would never train the row of the token that stands in.
    ids = TokenIds(tokenizer.eos_id, tokenizer.eos_id, None if padding is None else tokens[padding])
    return {"tokenizer.json": data, "tokenizer_config.json": to_json(config)}, ids


def to_json(values: Any) -> bytes:
    """The one spelling of a JSON file of ours."""
    return (json.dumps(values, indent=2) + "\n").encode()
