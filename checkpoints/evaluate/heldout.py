"""Held-out loss of a checkpoint by source: the trainer's own evaluator, on the run's shards or on others."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from checkpoints.evaluate.request import MAX_INSTANCES, Request
from checkpoints.evaluate.subjects import Subject
from olmo_train.config.data import DataConfig, SourceConfig
from olmo_train.data.checks import find_data_problems
from olmo_train.data.loader import open_sources, source_corpus
from olmo_train.data.order import Source
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError
from olmo_train.evaluate import HeldoutEvaluator
from olmo_train.model.shapes import vocab_rows
from olmo_train.parallel.mesh import Layout
from olmo_train.tokenizer import Tokenizer

SUITE = "heldout"


@dataclass
class HeldoutShelf:
    """Shards by the run they belong to, each opened once for a series of checkpoints."""

    opened: dict[Any, tuple[list[Source], dict[str, Corpus]]] = field(default_factory=dict)
    checked: set[Path] = field(default_factory=set)
    """Runs without problems."""

    def find_problems(self, subject: Subject, request: Request) -> list[str]:
        """Shards that are not known, not there, of another tokenizer, or hold nothing out; reads manifests only."""
        if subject.run in self.checked:
            return []
        try:
            problems = self._problems(subject, request, _data(subject, request))
        except ConfigError as error:
            return error.problems
        except ShardError as error:
            return [f"{subject.checkpoint.where}: {error}; give --shards FOLDER"]
        if subject.run is not None and not problems:
            self.checked.add(subject.run)
        return problems

    def settings(self, subject: Subject, request: Request) -> dict[str, Any]:
        """What the numbers depend on; shards by the fingerprints of their manifests."""
        data = _data(subject, request)
        sources, _ = self._open(subject, request, data)
        return {
            "max_instances": _max_instances(subject, request), "document_masking": data.document_masking,
            "shards": [source.fingerprint for source in sources], **request.settings_of(subject),
        }  # fmt: skip

    def run(self, subject: Subject, request: Request, model: nn.Module, layout: Layout) -> dict[str, dict[str, Any]]:
        """By source, and `all`: loss (nats per token), bits_per_byte, tokens."""
        data = _data(subject, request)
        sources, corpora = self._open(subject, request, data)
        tables = {name: corpus.token_bytes() for name, corpus in corpora.items()}
        return HeldoutEvaluator(sources, tables, data, layout, _max_instances(subject, request)).run(model)

    def _open(self, subject: Subject, request: Request, data: DataConfig) -> tuple[list[Source], dict[str, Corpus]]:
        manifests = (subject.run or subject.checkpoint.folder) / "data"  # of published shards, which have none of their own
        key = request.shards or manifests
        if key not in self.opened:
            corpora = {name: source_corpus(data, name, manifests) for name in data.sources}
            self.opened[key] = open_sources(data, manifests), corpora
        return self.opened[key]

    def _problems(self, subject: Subject, request: Request, data: DataConfig) -> list[str]:
        where = subject.checkpoint.where
        gone = [source.path for source in data.sources.values() if source.path is not None and not Path(source.path).exists()]
        if gone:
            return [f"{where}: the shards {path} are not on this machine; give --shards FOLDER" for path in gone]
        problems = find_data_problems(data, vocab_rows(subject.checkpoint.model), needs_heldout=False)
        if problems:
            return problems
        tokenizer = subject.checkpoint.tokenizer
        own = Tokenizer(tokenizer).sha256 if tokenizer is not None else None
        sources, corpora = self._open(subject, request, data)
        for name, corpus in corpora.items():
            if data.sources[name].files is not None:
                problems += corpus.verify("size")
            if own is not None and corpus.manifest.tokenizer_sha256 not in (None, own):
                problems.append(f"{where}: {corpus.folder} was made with another tokenizer; give --shards of its own")
        if not any(file.entry.heldout_tokens for source in sources for file in source.files):
            problems.append(f"{where}: no source holds documents out; give --shards FOLDER made with heldout_frac")
        return problems


def _data(subject: Subject, request: Request) -> DataConfig:
    """The sources asked for, else those of the run.

    Raises:
        ConfigError: neither is known.
    """
    run = subject.checkpoint.run
    if request.shards:
        sources = {str(folder): SourceConfig(path=str(folder)) for folder in request.shards}
    elif run is not None:
        sources = run.data.sources
    else:
        raise ConfigError(f"--heldout: {subject.checkpoint.where} does not say what it was trained on; give --shards FOLDER")
    return replace(request.data_of(subject), sources=sources)


def _max_instances(subject: Subject, request: Request) -> int:
    run = subject.checkpoint.run
    return request.max_instances or (run.eval.max_instances if run is not None else MAX_INSTANCES)
