"""A lineage to the files of a release: data as they are, records without private paths, hashes of everything.

<name>/documents, attributes, stages     of each dataset that is published; of shards their files and stages
<name>/stages                            of the datasets before them: records alone
README.md, data_manifest.json            the card, and what all of it consists of
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from data_tools.datasets import find_document_files
from data_tools.documents import raise_reject, read_lines
from data_tools.files import LineWriter, hash_of
from data_tools.inspect.check_lineage import check_lineage
from data_tools.inspect.lineage import Root, StageFolder, lineage
from data_tools.publish.private_paths import Names
from data_tools.publish.stores import file_blocks
from olmo_train.data.document_index import DocumentRow, read_rows, write_index
from olmo_train.data.manifest import read_manifest
from olmo_train.errors import ConfigError, ShardError

Numbers = dict[str, dict[str, int]]
"""By source: documents, text_bytes."""


@dataclass
class Options:
    """What goes into a release."""

    folders: list[str]
    work: Path
    """Where rewritten files lie until they are sent."""
    has_quarantine: bool = False
    may_have_paths: bool = False
    said: Callable[[str], None] = lambda text: None


@dataclass
class Assembled:
    """What a release consists of, on this machine."""

    roots: dict[str, Root]
    """By folder in the release, the oldest first."""
    kinds: dict[str, str]
    files: dict[str, Path] = field(default_factory=dict)
    rewritten: dict[str, dict[str, Any]] = field(default_factory=dict)
    sources_of: dict[str, Numbers] = field(default_factory=dict)
    """Of each file of documents."""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """bytes and sha256 of each file."""


def assemble(options: Options) -> Assembled:
    """Check the lineage, and prepare every file but the card and the manifest.

    Raises:
        ConfigError: a private path would be published. ShardError: a file is not as its stage wrote it.
    """
    named, published = _roots(options.folders)
    problems = check_lineage(list(named.values()), False).problems
    if problems:
        raise ShardError("\n".join(problems))
    kinds = {
        name: ("shards" if root.is_shards else "dataset") if name in published else "records" for name, root in named.items()
    }
    made = Assembled(named, kinds)
    _Assembly(options, made, Names(named)).run()
    return made


def _roots(folders: list[str]) -> tuple[dict[str, Root], set[str]]:
    by_path = {Path(os.path.abspath(root.path)): root for folder in folders for root in lineage(folder)}
    named: dict[str, Root] = {}
    for path, root in by_path.items():
        name, number = path.name, 1
        while name in named:
            number += 1
            name = f"{path.name}-{number}"
        named[name] = root
    wanted = {Path(os.path.abspath(folder)) for folder in folders}
    return named, {name for name, root in named.items() if Path(os.path.abspath(root.path)) in wanted}


class _Assembly:
    def __init__(self, options: Options, made: Assembled, names: Names) -> None:
        self.options, self.made, self.names = options, made, names
        self._leaks: list[str] = []

    def run(self) -> None:
        for name, root in self.made.roots.items():
            if self.made.kinds[name] == "dataset":
                self._documents(name, root)
            if self.made.kinds[name] == "shards":
                self._shards(name, root)
            for stage in root.stages:
                self._kept(name, stage)
        for name, root in self.made.roots.items():
            for stage in root.stages:
                self._records(name, stage)
        if self._leaks and not self.options.may_have_paths:
            raise ConfigError(
                f"{len(self._leaks):,} documents or files hold paths of this machine, e.g. {self._leaks[0]}; ingest from "
                "relative paths, or remove them; allow_paths=true publishes them"
            )
        for path, source in self.made.files.items():
            self._hash(path, source)

    # ---- data ------------------------------------------------------------------------------------------------------------

    def _documents(self, name: str, root: Root) -> None:
        for file in find_document_files([str(root.path)]):
            target = f"{name}/documents/{file.name}"
            self.made.files[target] = file.path
            self.options.said(f"reading {file.path}")
            numbers: Numbers = {}
            for line in read_lines(file.path, raise_reject):
                row = numbers.setdefault(line.source, {"documents": 0, "text_bytes": 0})
                row["documents"] += 1
                row["text_bytes"] += sum(len(piece.encode("utf-8")) for piece in line.pieces())
                if any(mark in line.raw for mark in self._marks):
                    self._look(line.values(), f"{file.path} line {line.line}")
            self.made.sources_of[target] = numbers
        for path in _files_below(root.path / "attributes"):
            self.made.files[f"{name}/{path.relative_to(root.path)}"] = path

    @property
    def _marks(self) -> list[bytes]:
        """Bytes without which a line of JSON holds no path of this machine."""
        return [b"/home/", b"/Users/", b"/root/", b"\\/", *(os.fsencode(folder) for folder in self.names.private)]

    def _look(self, values: dict[str, Any], where: str) -> None:
        rest = {key: value for key, value in values.items() if key != "text"}
        leak = self.names.leak(msgspec.json.encode(rest).decode())
        if leak is not None:
            self._leaks.append(f"{leak} in {where}")

    def _shards(self, name: str, root: Root) -> None:
        manifest = read_manifest(root.path)
        self.made.files[f"{name}/manifest.json"] = root.path / "manifest.json"
        for path in (manifest.tokenizer, manifest.token_bytes):
            if path is not None:
                self._shard_file(name, root, path)
        for entry in manifest.files:
            self._shard_file(name, root, entry.path)
            for suffix in (".starts.idx", ".ids.idx", ".heldout.idx"):
                self._shard_file(name, root, f"{entry.index}{suffix}")
            index, rows = f"{entry.index}.blocks.idx", entry.rows
            made = self.options.work / name
            for path in (index, rows):
                self._inside(root, path)
                (made / path).parent.mkdir(parents=True, exist_ok=True)
            again = self._rows(root.path / rows)
            write_index(made / entry.index, made / rows, again, entry.tokens, manifest.heldout_frac)
            for path in (index, rows):
                self._rewrite(f"{name}/{path}", root.path / path, made / path)

    def _shard_file(self, name: str, root: Root, path: str) -> None:
        self._inside(root, path)
        self.made.files[f"{name}/{path}"] = root.path / path

    def _inside(self, root: Root, path: str) -> None:
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise ConfigError(
                f"{root.path}/manifest.json names {path}, which lies elsewhere; publish shards that lie in one folder with it"
            )

    def _rows(self, path: Path) -> Iterator[DocumentRow]:
        """Rows whose `src` is relative: as it was, or in the release."""
        known: dict[str, str] = {}
        for row in read_rows(path):
            if row.src not in known:
                known[row.src] = self.names.of(Path(row.src)) or Path(row.src).name if os.path.isabs(row.src) else row.src
            leak = self.names.leak(row.id)
            if leak is not None:
                self._leaks.append(f"{leak} as an id in {path}")
            yield DocumentRow(row.start, row.end, row.id, known[row.src], row.loc)

    # ---- records ---------------------------------------------------------------------------------------------------------

    def _kept(self, name: str, stage: StageFolder) -> None:
        """What was dropped, found twice and so on, line by line."""
        for kind in stage.kinds():
            if kind == "quarantine" and not self.options.has_quarantine:
                continue
            for path in sorted((stage.folder / kind).glob("*.jsonl.zst")):
                target = f"{name}/stages/{stage.name}/{kind}/{path.name}"
                made = self.options.work / target
                with LineWriter(made) as out:
                    for line in stage.kept(kind):
                        if line.path == path:
                            values = self.names.clean(msgspec.json.decode(line.raw), stage)
                            self._look(values, f"{path} line {line.line}")
                            out.write(msgspec.json.encode(values))
                self._rewrite(target, path, made)
        if self.made.kinds[name] == "dataset":
            for path in _files_below(stage.folder / "ids"):
                self.made.files[f"{name}/stages/{stage.name}/{path.relative_to(stage.folder)}"] = path

    def _rewrite(self, target: str, source: Path, made: Path) -> None:
        self.made.files[target] = made
        was = {"bytes": source.stat().st_size, "xxh3_128": hash_of(source)}
        now = {"bytes": made.stat().st_size, "xxh3_128": hash_of(made)}
        if was != now:
            self.made.rewritten[target] = was

    def _records(self, name: str, stage: StageFolder) -> None:
        folder = f"{name}/stages/{stage.name}"
        for file, values in (("stage.json", stage.plan), ("summary.json", stage.summary)):
            self._json(f"{folder}/{file}", self.names.clean(values, stage), f"{stage.folder}/{file}")
        for phase, record in stage.records():
            values = asdict(record)
            inputs, outputs = values.pop("inputs"), values.pop("outputs")
            values = self.names.clean(values, stage)
            values["inputs"] = {self.names.name(path, stage): entry for path, entry in inputs.items()}
            values["outputs"] = dict(self._output(stage, path, entry) for path, entry in outputs.items())
            self._json(f"{folder}/parts/{phase}/{record.name}.json", values, f"the record of {stage.name} {record.name}")

    def _output(self, stage: StageFolder, name: str, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        path = stage.output(name)
        target = self.names.of(path)
        if target is None:
            raise ShardError(f"{stage.folder}: wrote {path}, which belongs to no dataset of this lineage; publish that one too")
        if target in self.made.rewritten:
            made = self.made.files[target]
            entry = {"bytes": made.stat().st_size, "xxh3_128": hash_of(made)}
        return os.path.relpath(target, self.names.of(stage.folder)), entry

    def _json(self, target: str, values: Any, where: str) -> None:
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        leak = self.names.leak(text)
        if leak is not None:
            self._leaks.append(f"{leak} in {where}")
        path = self.options.work / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.made.files[target] = path

    # ---- hashes ----------------------------------------------------------------------------------------------------------

    def _hash(self, target: str, source: Path) -> None:
        """Take the SHA-256; what a stage wrote must still be that."""
        sha256, xxh3, size = hashlib.sha256(), xxhash.xxh3_128(), 0
        for block in file_blocks(source):
            sha256.update(block)
            xxh3.update(block)
            size += len(block)
        self.made.entries[target] = {"bytes": size, "sha256": sha256.hexdigest()}
        root = self.made.roots[target.split("/", 1)[0]]
        owner = root.writers.get(Path(os.path.abspath(source)))
        if owner is not None and owner[1]["xxh3_128"] != xxh3.hexdigest():
            raise ShardError(f"{source}: is not what {owner[0].name} wrote (another xxh3); copy it again, or run the stage again")


def document_sources(made: Assembled) -> list[str]:
    """Sources of everything that is published."""
    found = {source for numbers in made.sources_of.values() for source in numbers}
    for name, kind in made.kinds.items():
        if kind == "shards":
            found.update(read_manifest(made.roots[name].path).sources)
    return sorted(found)


def recorded_licenses(made: Assembled) -> dict[str, str]:
    """Licenses that were given when sources were ingested, of sources that are published."""
    found: dict[str, str] = {}
    for root in made.roots.values():
        for stage in root.stages:
            sources = stage.plan.get("settings", {}).get("sources")
            for name, values in sources.items() if isinstance(sources, dict) else ():
                if isinstance(values, dict) and isinstance(values.get("license"), str):
                    found[name] = values["license"]
    published = document_sources(made)
    return {name: text for name, text in found.items() if name in published}


def _files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")) if folder.is_dir() else []
