"""What to continue: texts of the command line or of a file, as ids."""

import json
from pathlib import Path

from olmo_train.errors import ConfigError
from olmo_train.tokenizer import Tokenizer


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: a line each, a JSON string or an object with "prompt"; empty lines count for nothing.

    Raises:
        ConfigError: the file cannot be read or has no prompts; or names every line that is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts-file={path} cannot be read: {error}") from None
    prompts, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        text = value.get("prompt") if isinstance(value, dict) else value
        if isinstance(text, str):
            prompts.append(text)
        else:
            problems.append(f'--prompts-file={path}: line {number} is neither a JSON string nor {{"prompt": "..."}}: {line[:60]}')
    if not prompts and not problems:
        problems.append(f"--prompts-file={path} has no prompts; write a JSON string per line")
    if problems:
        raise ConfigError(problems)
    return prompts


def encode_prompts(prompts: list[str], tokenizer: Tokenizer, context: int, slide: bool) -> list[list[int]]:
    """Ids of each prompt after an end of text, as documents begin in training; with `slide` the last `context` of them.

    Raises:
        ConfigError: names every prompt that is longer than the context.
    """
    encoded = [[tokenizer.eos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    if slide:
        return encoded
    problems = [
        f"prompt {number} has {len(ids)} tokens (end of text included), the model was trained on {context} at a time; "
        "shorten it, or give --slide, which continues its last ones"
        for number, ids in enumerate(encoded, 1)
        if len(ids) > context
    ]
    if problems:
        raise ConfigError(problems)
    return encoded
