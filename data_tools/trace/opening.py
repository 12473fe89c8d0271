"""Open what a trace is asked of: a run, a release, an index or shards -> indexes, history and privacy, checked together."""

import re
from dataclasses import dataclass
from pathlib import Path

from data_tools.trace.build_index import index_folder_of
from data_tools.trace.config import TraceConfig
from data_tools.trace.documents import DocumentReader
from data_tools.trace.index_folder import NAME as INDEX
from data_tools.trace.privacy import Privacy, find_privacy_problems
from data_tools.trace.searcher import Searcher
from data_tools.trace.when import TRAINING, History, find_releases, is_release, read_run, shard_folders
from olmo_train.data.manifest import manifest_path, read_manifest
from olmo_train.errors import ConfigError
from olmo_train.schema import load_config

BLOCKED = "blocked.txt"
"""In the folder of an index: a block list that always counts."""
VERIFY = ("size", "spot", "full")


@dataclass
class Trace:
    """Everything a question needs. `refresh` before each one, if the trace lives long."""

    where: str
    searcher: Searcher
    history: History | None
    """None: no run was given."""
    privacy: Privacy
    config: TraceConfig
    blocked: frozenset[str]
    """Ids of documents that `searcher` leaves out."""
    documents: DocumentReader

    def refresh(self) -> None:
        """See what changed since: block lists, and how far the run has come.

        Raises:
            ShardError: files that are searched were cut or taken away.
        """
        for part in self.searcher.parts:
            part.check_files()
        if self.history is not None:
            self.history.refresh()
        blocked = self.privacy.blocked
        if blocked != self.blocked:
            self.searcher, self.blocked = Searcher(self.searcher.folders, "size", blocked, self.config.cold), blocked
            self.documents = DocumentReader(self.searcher)

    def find_notes(self) -> list[str]:
        """What the reader must know of the run and the indexes, in sentences."""
        return _find_notes(self.searcher, self.history)


def load_trace_config(overrides: list[str]) -> TraceConfig:
    """`configs/trace.yaml` with overrides.

    Raises:
        ConfigError: says everything that is wrong.
    """
    return load_config("trace", TraceConfig, overrides, find_config_problems)


def find_config_problems(config: TraceConfig) -> list[str]:
    """What values of the config cannot be, and files of it that are not there."""
    spans, documents = config.spans, config.documents
    rules = (
        ("spans.min_tokens", spans.min_tokens, 1),
        ("spans.max_spans", spans.max_spans, 1),
        ("spans.max_count", spans.max_count, 1),
        ("documents.per_span", documents.per_span, 1),
        ("documents.context", documents.context, 0),
        ("documents.max_documents", documents.max_documents, 1),
        ("documents.seed", documents.seed, 0),
    )
    problems = [f"{name}={value} must be at least {least}" for name, value, least in rules if value is not None and value < least]
    if "" in spans.delimiters:
        problems.append("spans.delimiters has an empty text, which would end every span before it begins; give a text")
    if config.verify not in VERIFY:
        problems.append(f"verify={config.verify} must be one of {', '.join(VERIFY)}")
    if config.releases is not None and not find_releases(Path(config.releases)):
        problems.append(f"releases={config.releases} has no releases (folders like stage1-step1000-tokens4B with a release.json)")
    return problems + find_privacy_problems(config.privacy)


def open_trace(where: str, config: TraceConfig) -> Trace:
    """Open the folder of a run, of a release or of several, of an index, or of shards.

    Raises:
        ConfigError: there is no such folder, or an index is missing; says how to build it. ShardError: an index, its shards or
            the run's are damaged or do not belong together.
    """
    folder = _run_folder(Path(where))
    if _is_run(folder):
        indexes = [Path(path) for path in config.indexes] or _indexes_of(folder)
    elif (folder / INDEX).is_file():
        indexes = [folder, *map(Path, config.indexes)]
    elif manifest_path(folder).is_file():
        indexes = [index_folder_of(folder), *map(Path, config.indexes)]
    else:
        raise ConfigError(
            f"{where} is no run, release, index or shards: none of config.yaml, {TRAINING}/config.yaml, {INDEX} and "
            "manifest.json is there; give the folder of one"
        )
    _check_indexes(indexes)
    privacy = Privacy(config.privacy, [index / BLOCKED for index in indexes])
    blocked = privacy.blocked
    searcher = Searcher(indexes, config.verify, blocked, config.cold)
    history = None
    if _is_run(folder):
        history = History.open(folder, searcher.corpora, _releases(folder, config))
    return Trace(where, searcher, history, privacy, config, blocked, DocumentReader(searcher))


def _run_folder(folder: Path) -> Path:
    """The run of a step folder, the newest of a folder of releases; else the folder itself."""
    if folder.parent.name == "steps" and re.fullmatch(r"step\d+", folder.name) and _is_run(folder.parent.parent):
        return folder.parent.parent
    if not _is_run(folder) and folder.is_dir():
        releases = find_releases(folder)
        if releases:
            return releases[max(releases)]
    return folder


def _is_run(folder: Path) -> bool:
    return is_release(folder) or (folder / "config.yaml").is_file()


def _releases(folder: Path, config: TraceConfig) -> dict[int, str]:
    """By step, names of the published revisions of this run: those told, or those that lie beside this one."""
    name = read_run(folder).run_name
    if config.releases is not None:
        found = find_releases(Path(config.releases), name)
        if not found:
            raise ConfigError(f"releases={config.releases} has no releases of the run {name}; give the folder of its releases")
    else:
        found = find_releases(folder.parent, name) if is_release(folder) else {}
    return {step: path.name for step, path in found.items()}


def _indexes_of(folder: Path) -> list[Path]:
    """Of the sources of a run, each once."""
    shards = dict.fromkeys(shard_folders(folder, read_run(folder)).values())
    return [index_folder_of(path) for path in shards]


def _check_indexes(indexes: list[Path]) -> None:
    """Raises:
    ConfigError: indexes are not there; says all of them, and how to build each."""
    problems = [f"{index} has no finished index; {_how_to_build(index)}" for index in indexes if not (index / INDEX).is_file()]
    if problems:
        raise ConfigError(problems)


def _how_to_build(index: Path) -> str:
    shards = index.parent
    elsewhere = "build one where the shards are (olmo trace index shards=FOLDER) and name it: indexes=[FOLDER/trace]"
    if index != index_folder_of(shards) or not manifest_path(shards).is_file():
        return elsewhere
    if any(not (shards / entry.path).is_file() for entry in read_manifest(shards).files):
        return f"{shards} has a manifest, but not its shards: {elsewhere}"
    return f"build it: olmo trace index shards={shards}"


def _find_notes(searcher: Searcher, history: History | None) -> list[str]:
    if history is None:
        return []
    notes = []
    if history.run.load is not None:
        notes.append(f"the run began with the weights of {history.run.load.path}: what those saw before is not told here")
    if not history.ledger.is_there:
        notes.append(f"{history.ledger.path} is missing: steps that were skipped and rows that were masked are not marked")
    trained_on = {source.fingerprint for source in history.order.sources}
    for folder, corpus in zip(searcher.folders, searcher.corpora, strict=True):
        if corpus.manifest.fingerprint() not in trained_on:
            notes.append(f"{folder} is of shards that the run does not train on")
    return notes
