"""Which tagger a name stands for, of those that use patterns, lists and models; and what is wrong with their settings."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

from data_tools.tag.fasttext_model import FastTextTagger, fasttext_problems
from data_tools.tag.language import LanguageTagger, language_problems
from data_tools.tag.linear_model import LinearModel, LinearTagger
from data_tools.tag.list_files import file_problems
from data_tools.tag.model_config import ModelTaggersConfig
from data_tools.tag.onnx_model import OnnxModel, OnnxTagger
from data_tools.tag.pii import PiiTagger
from data_tools.tag.secrets import SecretsTagger
from data_tools.tag.tagger import Tagger
from data_tools.tag.urls import UrlList, UrlsTagger
from data_tools.tag.words import WordList, WordsTagger
from olmo_train.errors import ConfigError

MODEL_TAGGERS = ("pii", "secrets", "language", "urls", "words", "fasttext", "linear", "onnx")
_NAMED = ("urls", "words", "fasttext", "linear", "onnx")
"""Taggers whose settings are a list of things with name and path."""


def build_model_tagger(name: str, config: ModelTaggersConfig) -> Tagger:
    """One tagger, for this process.

    Raises:
        ConfigError: a file is none of its kind; `model_problems` finds these before.
    """
    match name:
        case "pii":
            return PiiTagger(config.pii)
        case "secrets":
            return SecretsTagger()
        case "language":
            return LanguageTagger(config.language)
        case "urls":
            return UrlsTagger(config.urls)
        case "words":
            return WordsTagger(config.words)
        case "fasttext":
            return FastTextTagger(config.fasttext)
        case "linear":
            return LinearTagger(config.linear)
        case "onnx":
            return OnnxTagger(config.onnx)
        case _:
            raise AssertionError(f"{name} is none of {MODEL_TAGGERS}")


def model_files(config: ModelTaggersConfig, names: Sequence[str] = MODEL_TAGGERS) -> list[Path]:
    """Files that the taggers of these names read, in order: what is found depends on them."""
    found = [entry.path for name in _NAMED if name in names for entry in getattr(config, name)]
    found += [entry.tokenizer for entry in config.onnx if "onnx" in names]
    if "language" in names and config.language.model is not None:
        found.append(config.language.model)
    return [Path(path) for path in dict.fromkeys(found)]


def model_problems(names: list[str], config: ModelTaggersConfig) -> list[str]:
    """What is wrong with the settings of the taggers of these names, and with the files they name; names are below `models`."""
    problems = []
    for name in names:
        if name == "pii" and not 0 <= config.pii.window <= 10_000:
            problems.append(f"models.pii.window={config.pii.window} is not in 0 .. 10000 characters")
        if name == "language":
            problems += language_problems("models.language", config.language)
        if name in _NAMED:
            problems += _named_problems(name, config)
    return problems


def _named_problems(name: str, config: ModelTaggersConfig) -> list[str]:
    entries, problems = getattr(config, name), []
    if not entries:
        return [f"models.{name} is empty; the tagger {name} needs at least one entry with name and path"]
    for twice, n in Counter(entry.name for entry in entries).items():
        if n > 1:
            problems.append(f"models.{name}: {n} entries have the name {twice}; each needs one of its own")
    for long, short in permutations(dict.fromkeys(entry.name for entry in entries), 2):
        if long.startswith(f"{short}_"):
            problems.append(
                f"models.{name}: the name {long} begins as {short} does; types made of both could be the same: rename one"
            )
    for i, entry in enumerate(entries):
        field = f"models.{name}[{i}]"
        if not re.fullmatch(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*", entry.name):
            problems.append(
                f"{field}.name={entry.name} must be letters and digits with single `_` or `-` between; it names attributes"
            )
        found = file_problems(f"{field}.path", entry.path, entry.sha256)
        problems += found or _contents_problems(name, field, config, i)
    return problems


def _contents_problems(name: str, field: str, config: ModelTaggersConfig, i: int) -> list[str]:
    """Of a file that is there: it is read, as later by every process."""
    match name:
        case "urls":
            return _problems_of(f"{field}.path", lambda: UrlList(Path(config.urls[i].path)))
        case "words":
            return _problems_of(f"{field}.path", lambda: WordList(Path(config.words[i].path)))
        case "fasttext":
            return fasttext_problems(field, config.fasttext[i])
        case "linear":
            return _problems_of(f"{field}.path", lambda: LinearModel(Path(config.linear[i].path)))
        case _:
            model = config.onnx[i]
            problems = file_problems(f"{field}.tokenizer", model.tokenizer, None)
            if model.max_tokens < 1 or model.batch_size < 1:
                problems.append(f"{field}: max_tokens={model.max_tokens} and batch_size={model.batch_size} must be positive")
            return problems or _problems_of(field, lambda: OnnxModel(model))


def _problems_of(field: str, load: Callable[[], object]) -> list[str]:
    try:
        load()
    except ConfigError as error:
        return [f"{field}: {error}"]
    return []
