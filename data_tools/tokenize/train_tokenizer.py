"""Train a byte-level BPE tokenizer on documents.

olmo data tokenizer documents=[corpus/documents] output=corpus/tokenizer.json
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data_tools.datasets import find_document_files
from data_tools.documents import read_documents
from olmo_train.errors import ShardError, run_command
from olmo_train.files import write_atomic
from olmo_train.schema import load_config
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer

BYTES = 256


@dataclass
class TokenizerConfig:
    """`configs/tokenizer.yaml`."""

    documents: list[str] = field(default_factory=list)
    """Files, folders or globs of Dolma documents."""
    output: str = MISSING
    """The tokenizer file to write."""
    vocab_size: int = MISSING
    """Ids, end-of-text included; the 256 bytes are always among them."""
    max_bytes: int | None = None
    """Text to learn from, from the front; None: all."""


def main(argv: list[str]) -> None:
    """Train and write; text with too few pairs for `vocab_size` writes nothing."""
    config = load_config("tokenizer", TokenizerConfig, argv, _problems)
    tokenizer = HFTokenizer(models.BPE())
    # As GPT-NeoX and OLMo: NFC, GPT-2's pattern of words, one character per byte.
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(_texts(config), trainer)
    found = tokenizer.get_vocab_size()
    if found != config.vocab_size:
        raise ShardError(
            f"vocab_size={config.vocab_size}: the text has only enough pairs for {found}; give more text or a smaller vocabulary"
        )
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, tokenizer.to_str(pretty=False).encode())
    made = Tokenizer(output)
    print(f"{output}: {made.vocab_size:,} ids, end of text {made.eos_id}, SHA-256 {made.sha256[:16]}...")


def _problems(config: TokenizerConfig) -> list[str]:
    problems = [] if config.documents else ["documents is empty; give files, folders or globs of Dolma documents"]
    if config.vocab_size <= BYTES:
        problems.append(f"vocab_size={config.vocab_size} must be more than {BYTES}, the bytes themselves, plus end of text")
    if config.max_bytes is not None and config.max_bytes < 1:
        problems.append(f"max_bytes={config.max_bytes} must be positive; null takes all of the text")
    return problems


def _texts(config: TokenizerConfig) -> Iterator[str]:
    left = config.max_bytes if config.max_bytes is not None else float("inf")
    for file in find_document_files(config.documents):
        for document in read_documents(file.path):
            left -= len(document.text.encode("utf-8"))
            if left < 0:
                return
            yield document.text


if __name__ == "__main__":
    raise SystemExit(run_command(main))
