"""A tokenizer file as llama.cpp reads it out of a GGUF file: tokens, their types, merges, and the name of its pre-tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens. Source: llama.cpp, include/llama.h, llama_token_type."""
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Words of dolma2 (and of DBRX and Llama 3)."""
PADDING = ("<|padding|>", "<|pad|>")
"""What padding is called in gpt-neox-olmo and in dolma2."""
MASKED_TOKEN = "|||IP_ADDRESS|||"
"""Only Ai2's tokenizers have it: what tells gpt-neox-olmo from another of the same pattern."""


@dataclass(frozen=True)
class Vocabulary:
    """`tokenizer.ggml.*`; tokens and types have an entry for every row of the embedding."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    """Pre-tokenizer: gpt-2, olmo, dbrx or llama-bpe."""
    eos_id: int
    pad_id: int
    is_normalizing: bool
    """The tokenizer brings text to NFC first. llama.cpp does not: text in another form becomes other ids there."""


def read_vocabulary(path: Path, n_rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer file for a model with `n_rows` rows.

    Raises:
        ConfigError: the file is not usable, has more ids than rows, or does what llama.cpp cannot; lists every reason.
    """
    tokenizer = Tokenizer(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    pre, reasons = _pre_tokenizer(values)
    reasons += _model_reasons(values["model"]) + _normalizer_reasons(values.get("normalizer")) + _added_reasons(values)
    if tokenizer.vocab_size > n_rows:
        reasons.append(f"it has {tokenizer.vocab_size} ids, the model {n_rows} rows; give the tokenizer of the run's shards")
    if pre is None or reasons:
        raise ConfigError([f"{path}: {reason}" for reason in reasons])
    tokens, types = _tokens(values, n_rows)
    ids = {token: number for number, token in enumerate(tokens)}
    pad = next((ids[token] for token in PADDING if token in ids), tokenizer.eos_id)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    return Vocabulary(tokens, types, merges, pre, tokenizer.eos_id, pad, bool(values.get("normalizer")))


def _tokens(values: dict[str, Any], n_rows: int) -> tuple[list[str], list[int]]:
    """Tokens and types by id; ids without a token get a placeholder that no text becomes."""
    known = dict.fromkeys(values["model"]["vocab"], NORMAL)
    ids: dict[str, int] = dict(values["model"]["vocab"])
    for token in values["added_tokens"]:
        ids[token["content"]] = token["id"]
        known[token["content"]] = CONTROL if token["special"] else USER_DEFINED
    by_id = {number: token for token, number in ids.items()}
    tokens = []
    for number in range(n_rows):
        placeholder = f"<|unused_{number}|>"
        while placeholder in ids:
            placeholder = f"<{placeholder}>"
        tokens.append(by_id.get(number, placeholder))
    return tokens, [known.get(token, UNUSED) for token in tokens]


# ---- what llama.cpp cannot do ----------------------------------------------------------------------------------------------


def _pre_tokenizer(values: dict[str, Any]) -> tuple[str | None, list[str]]:
    """(llama.cpp's name, reasons against). Source: llama.cpp, src/llama-vocab.cpp, the patterns of each pre-tokenizer."""
    parts = values.get("pre_tokenizer") or {}
    parts = parts["pretokenizers"] if parts.get("type") == "Sequence" else [parts]
    skips_merges = values["model"].get("ignore_merges", False)
    name, byte_level = None, parts[-1]
    if byte_level.get("type") == "ByteLevel" and not byte_level.get("add_prefix_space", True):
        if len(parts) == 1 and byte_level.get("use_regex", True) and not skips_merges:
            name = "olmo" if any(token["content"] == MASKED_TOKEN for token in values["added_tokens"]) else "gpt-2"
        elif len(parts) == 2 and _is_cl100k(parts[0]) and not byte_level.get("use_regex", True):
            name = "llama-bpe" if skips_merges else "dbrx"
    if name is not None:
        return name, []
    reason = (
        f"llama.cpp has no pre-tokenizer that cuts words like {json.dumps(parts)[:200]}, ignore_merges={skips_merges}; it knows "
        "ByteLevel with GPT-2's pattern, and dolma2's pattern before ByteLevel, both without a prefix space; convert to a "
        "Hugging Face folder instead"
    )
    return None, [reason]


def _is_cl100k(part: dict[str, Any]) -> bool:
    """The pattern matches every character, so keeping its matches and isolating them are the same."""
    behaviour = part.get("behavior"), part.get("invert")
    pattern = part.get("pattern", {}).get("Regex")
    return part.get("type") == "Split" and pattern == CL100K and behaviour in (("Removed", True), ("Isolated", False))


def _model_reasons(model: dict[str, Any]) -> list[str]:
    if model.get("type", "BPE") != "BPE":
        return [f"a model of type {model['type']}; GGUF is written for byte-level BPE; convert to a Hugging Face folder instead"]
    return [
        f"model.{name}={model[name]!r} changes the ids and llama.cpp has no such thing; convert to a Hugging Face folder instead"
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        if model.get(name)
    ]


def _normalizer_reasons(normalizer: dict[str, Any] | None) -> list[str]:
    if normalizer is None or normalizer.get("type") == "NFC":
        return []
    return [
        f"normalizer {normalizer.get('type')} changes the text and llama.cpp would not; convert to a Hugging Face folder instead"
    ]


def _added_reasons(values: dict[str, Any]) -> list[str]:
    return [
        f"the added token {token['content']!r} has {name}=true, which llama.cpp does not honour; "
        "convert to a Hugging Face folder instead"
        for token in values["added_tokens"]
        for name in ("lstrip", "rstrip", "single_word")
        if token.get(name)
    ]
