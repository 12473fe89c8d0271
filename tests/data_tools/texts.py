"""Documents for tests of the data tools: text with every length of UTF-8 character, as Dolma's JSON lines."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.tokenize import command as tokenize_corpus
from olmo_train.errors import EXIT_USAGE, run_command

WORDS = [
    "the", "fox", "jumps", "naïve", "Straße", "日本語", "😀", "don't", "x=1;", "\n", "\t", "  ", "1234", "<|endoftext|>", "été",
]  # fmt: skip
Values = dict[str, Any]


def text(rng: np.random.Generator, n_words: int) -> str:
    """Words in a row, some with spaces of their own."""
    return " ".join(rng.choice(WORDS, n_words).tolist())


def make_documents(n: int, sources: tuple[str, ...] = ("a", "b"), seed: int = 0) -> list[Values]:
    """Documents of up to 60 words; their ids hold what csv must quote."""
    rng = np.random.default_rng(seed)
    return [
        {"id": f'd{i}, "{i % 7}"\n', "text": text(rng, int(rng.integers(1, 60))), "source": sources[i % len(sources)]}
        for i in range(n)
    ]


def write_lines(path: Path, documents: Iterable[Values]) -> Path:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    return path


def tokenize(documents: Path, tokenizer: Path, output: Path, *overrides: str) -> Path:
    """Run `olmo data tokenize`; an override of heldout_frac comes in `overrides`."""
    tokenize_corpus.main([f"documents=[{documents}]", f"tokenizer={tokenizer}", f"output={output}", *overrides])
    return output


def refusal(main: Callable[[list[str]], None], argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a verb that must end in the exit status of input errors; return its one message, without `error: ` and progress."""
    capsys.readouterr()
    assert run_command(main, argv) == EXIT_USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    *progress, message = re.split(r"^error: ", printed.err, maxsplit=1, flags=re.MULTILINE)
    assert all(re.match(r"\w+ \w+: [\d,]+ of [\d,]+ parts, ", line) for each in progress for line in each.splitlines())
    return message.removesuffix("\n")
