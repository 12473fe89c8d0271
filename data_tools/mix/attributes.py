"""Attributes beside documents: which there are, and those that rules name, line by line with the documents they belong to."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from data_tools.datasets import DocumentFile
from data_tools.documents import Line
from data_tools.files import CutShortError, InputFile, lines
from data_tools.mix.plan import MixPlan, SourceFiles, SourcePlan
from data_tools.work.counts import count
from data_tools.work.part import PartContext, Record
from olmo_train.conversion import nearest
from olmo_train.errors import ConfigError, ShardError

LEAST_LINES = 100
"""Of each file that are looked through for names, even if all that are wanted have been seen."""
Row = tuple[Sequence[tuple[int, int, float]], ...]
"""Spans of a document, one entry for each attribute that is asked for."""


class AttributeFile:
    """One file of attributes, read in step with its documents. Only the spans that are asked for are unpacked."""

    def __init__(self, path: Path, names: Sequence[str], context: PartContext) -> None:
        self.path, self._context, self._number = path, context, 0
        fields = [(f"a{i}", list[tuple[int, int, float]], ()) for i in range(len(names))]
        rename = {f"a{i}": name for i, name in enumerate(names)}
        wanted = msgspec.defstruct("Wanted", fields, rename=rename, gc=False)
        line = msgspec.defstruct("AttributeLine", [("id", str), ("attributes", wanted)], gc=False)
        self._decode = msgspec.json.Decoder(line).decode
        self._file = _open(path)
        self._lines = lines(path, self._file)

    def next(self) -> tuple[str, Row] | None:
        """(id, spans) of the next line; None: there is none.

        Raises:
            ShardError: the file is damaged, or the line is not Dolma's.
        """
        with _telling(self.path, self):
            raw = next(self._lines, None)
            if raw is None:
                return None
            self._number += 1
            found: Any = self._decode(raw)
        return found.id, msgspec.structs.astuple(found.attributes)

    def of(self, line: Line, rejected: int) -> Row:
        """Spans of a document. `rejected`: lines of documents since the last call that were none, and may have attributes.

        Raises:
            ShardError: as `next`; or the ids differ.
        """
        found = self.next()
        first = found
        while found is not None and found[0] != line.id and rejected:
            found, rejected = self.next(), rejected - 1
        if found is None and first is None:
            raise ShardError(
                f"{self.path}: ends after {self._number} lines, before {line.path}: line {line.line}, id {line.id!r}; "
                "write the attributes again"
            )
        if found is None or found[0] != line.id:
            raise ShardError(
                f"{self.path}: line {self._number} has id {(found or first or '?')[0]!r}, but {line.path}: line {line.line} has "
                f"id {line.id!r}; attributes belong to documents line by line: write them again"
            )
        return found[1]

    def close(self, rejected: int | None) -> None:
        """At the end of the documents. `rejected` as in `of`; None: nobody knows how many, the documents are damaged.

        Raises:
            ShardError: more lines are left.
        """
        left = 0
        while self.next() is not None:
            left += 1
        if rejected is not None and left > rejected:
            raise ShardError(
                f"{self.path}: has {left} lines more than its documents, from line {self._number - left + 1} on; the documents "
                "have changed since: write the attributes again"
            )
        self._context.note_input(self.path, self._file)
        self._file.close()

    @property
    def number(self) -> int:
        """Lines read."""
        return self._number


class _telling:  # noqa: N801 - a context manager
    """Says where, in a file of attributes, something was wrong."""

    def __init__(self, path: Path, file: AttributeFile) -> None:
        self._path, self._attributes = path, file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        number = self._attributes.number
        if isinstance(error, msgspec.DecodeError | UnicodeDecodeError):
            raise ShardError(f"{self._path}: line {number} is no line of attributes: {error}; write them again") from None
        if isinstance(error, CutShortError | OSError):
            raise ShardError(f"{self._path}: damaged after line {number}: {error}; write the attributes again") from None


def _open(path: Path) -> InputFile:
    try:
        return InputFile(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened: {error.strerror}; it was there when the stage was planned") from error


# ---- which there are ---------------------------------------------------------------------------------------------------------


def known_names(file: DocumentFile, folder: str, datasets: Sequence[str]) -> list[str] | None:
    """Names that our own stages say they may give the attributes of a folder; None: another tool's.

    A stage over several datasets keeps its record in the first: `datasets`, those of the mixture, are looked at as well.
    """
    for dataset in dict.fromkeys([file.dataset, *datasets]):
        for path in [Path(dataset, "attributes", folder, "stage.json"), *sorted(Path(dataset, "stages").glob("*/stage.json"))]:
            try:
                stage = json.loads(path.read_text())
                names, owner = stage["settings"]["attributes"], stage["settings"].get("name", folder)
                is_ours = dataset == file.dataset or str(file.path) in stage["inputs"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if owner == folder and is_ours and isinstance(names, list) and names:
                return [str(name) for name in names]
    return None


def look_for_names(context: PartContext, shared: MixPlan) -> None:
    """Phase: which attributes stand in the files of a part. A file is read until all that are wanted were seen somewhere."""
    todo: SourceFiles = context.part.payload
    plan = shared.sources[todo.source]
    seen: dict[str, dict[str, int]] = {folder: {} for folder in plan.folders}
    told: dict[str, set[str]] = {}
    """Dataset to the folders whose names its stages tell."""
    for file in todo.files:
        if file.dataset not in told:
            known = {folder: known_names(file, folder, shared.datasets) for folder in plan.folders}
            told[file.dataset] = {folder for folder, names in known.items() if names is not None}
            for folder, names in known.items():
                seen[folder].update(dict.fromkeys(names or (), 1))
        for folder in plan.folders:
            if folder not in told[file.dataset]:
                _look_into(file.attributes(folder), seen, folder, plan.attributes)
        context.tick(file.path.stat().st_size)
    for folder, found in seen.items():
        for name in found:
            count(context.counts.setdefault(folder, {}), name)


class _Names(msgspec.Struct, gc=False):
    attributes: dict[str, msgspec.Raw]


_decode_names = msgspec.json.Decoder(_Names).decode


def _look_into(path: Path, seen: dict[str, dict[str, int]], folder: str, wanted: Sequence[str]) -> None:
    names = seen[folder]
    file = _open(path)
    number = 0
    try:
        for number, raw in enumerate(lines(path, file), 1):
            before = len(names)
            names.update(dict.fromkeys(_decode_names(raw).attributes, 1))
            if number >= LEAST_LINES and (number == LEAST_LINES or len(names) > before) and _are_all_seen(seen, wanted):
                return
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: line {number} is no line of attributes: {error}; write them again") from None
    except (CutShortError, OSError) as error:
        raise ShardError(f"{path}: damaged after line {number}: {error}; write the attributes again") from None
    finally:
        file.close()


def _are_all_seen(seen: dict[str, dict[str, int]], wanted: Sequence[str]) -> bool:
    return all(any(_means(word, name) for names in seen.values() for name in names) for word in wanted)


def _means(word: str, name: str) -> bool:
    """Whether a name in a rule, in full or without its experiment, may mean an attribute."""
    return name == word or name.endswith(f"__{word}")


def resolve_names(plan: SourcePlan, records: Sequence[Record]) -> dict[str, tuple[str, str]]:
    """Where each attribute of a source's rules lies, of what `look_for_names` found: (folder, full name).

    Raises:
        ConfigError: an attribute that no line has, or a short name that fits several; all of them are told.
    """
    there = {(folder, name): 0 for record in records for folder, names in record.counts.items() for name in names}
    places: dict[str, tuple[str, str]] = {}
    problems = []
    for word in plan.attributes:
        fits = [place for place in there if place[1] == word] or [place for place in there if _means(word, place[1])]
        if len(fits) == 1:
            places[word] = fits[0]
        elif fits:
            told = ", ".join(f"{name} (attributes/{folder})" for folder, name in sorted(fits))
            problems.append(f"{word} may be any of {told}; write the one that is meant in full, and take its folder alone")
        else:
            problems.append(f"{word} stands in no line of {_folders(plan)}{_nearest(word, [name for _, name in there])}")
    if problems:
        raise ConfigError([f"sources.{plan.name}: attribute {problem}" for problem in problems])
    return places


def _nearest(word: str, names: list[str]) -> str:
    """Of full names and of those without their experiment."""
    short = {name.split("__", 1)[-1] if name.count("__") > 1 else name: name for name in names}
    options = [*names, *short]
    if not names:
        return "; there are none at all"
    taggers = sorted({name.rsplit("__", 1)[0] for name in names})
    return nearest(word, options) or f"; there are those of {', '.join(taggers[:8])}"


def _folders(plan: SourcePlan) -> str:
    return ", ".join(f"attributes/{folder}" for folder in plan.folders)


def in_step(
    context: PartContext, file: DocumentFile, plan: SourcePlan, documents: Iterator[Line], rejected: Any
) -> Iterator[tuple[Line, Row]]:
    """Every document with the spans of `plan.attributes`. `rejected()`: (lines so far that were none, is the file damaged).

    Raises:
        ShardError: attributes that do not fit the documents.
    """
    readers = [
        AttributeFile(file.attributes(folder), [name for where, name in _order(plan) if where == folder], context)
        for folder in plan.folders
    ]
    before = rejected()[0]
    for line in documents:
        now = rejected()[0]
        row: Row = ()
        for reader in readers:
            row += reader.of(line, now - before)
        before = now
        yield line, row
    now, is_damaged = rejected()
    for reader in readers:
        reader.close(None if is_damaged else now - before)


def slots_of(plan: SourcePlan) -> dict[str, int]:
    """Where the spans of each attribute, as rules write it, lie in a row of `in_step`."""
    order = _order(plan)
    return {word: order.index(plan.places[word]) for word in plan.attributes}


def _order(plan: SourcePlan) -> list[tuple[str, str]]:
    """(folder, full name) of all attributes that are read, in the order of a row."""
    places = dict.fromkeys(plan.places[word] for word in plan.attributes)
    return sorted(places, key=lambda place: plan.folders.index(place[0]))
