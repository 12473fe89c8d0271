"""What can be wrong with the sources of a run that shows in their manifests and file sizes alone; no token is read."""

from collections.abc import Iterable
from pathlib import Path

from olmo_train.config.data import DataConfig
from olmo_train.data.shards import Corpus
from olmo_train.data.without import Without
from olmo_train.errors import ConfigError, ShardError


def find_data_problems(data: DataConfig, n_rows: int, needs_heldout: bool) -> list[str]:
    """Problems of the manifests that `data` names by path. Paths that do not exist are reported by problems.py.

    `n_rows`: of the model's embedding. `needs_heldout`: held-out loss is to be evaluated.
    """
    problems: list[str] = []
    corpora: list[Corpus] = []
    for name, source in data.sources.items():
        if source.path is None or source.files is not None or not Path(source.path).exists():
            continue  # reported by problems.py, or made later from published files
        try:
            corpus = Corpus(source.path)
            problems += [f"data.sources.{name}: {problem}" for problem in corpus.verify("size")]
        except ShardError as error:
            problems.append(f"data.sources.{name}.path: {error}")
            continue
        corpora.append(corpus)
        manifest = corpus.manifest
        if source.select is not None and source.select not in manifest.sources:
            have = ", ".join(manifest.sources)
            problems.append(f"data.sources.{name}.select={source.select} is not a source of {source.path}; it has {have}")
        if manifest.vocab_size > n_rows:
            problems.append(
                f"data.sources.{name}: ids go up to {manifest.vocab_size - 1}, the model has {n_rows} rows; "
                f"set model.vocab_size={manifest.vocab_size} or use shards of the model's tokenizer"
            )
    problems += _tokenizer_problems(corpora)
    all_open = corpora and len(corpora) == len(data.sources)
    if needs_heldout and all_open and not any(e.heldout_tokens for c in corpora for e in c.manifest.files):
        problems.append(
            "eval.eval_every is set, but no source holds documents out; write the manifest with heldout_frac, or "
            "set eval.eval_every=null"
        )
    return problems + (_without_problems(data, corpora) if all_open else [])


def readable_corpora(data: DataConfig) -> list[Corpus]:
    """The corpora of the sources given by path, without those that cannot be read."""
    corpora = []
    for source in data.sources.values():
        try:
            corpora += [] if source.path is None else [Corpus(source.path)]
        except ShardError:
            continue
    return corpora


def find_tokenizer(corpora: Iterable[Corpus]) -> Path | None:
    """The tokenizer file of the first manifest that names one."""
    return next((path for corpus in corpora if (path := corpus.tokenizer_path()) is not None), None)


def _without_problems(data: DataConfig, corpora: list[Corpus]) -> list[str]:
    """Of `data.without`; `corpora`: of every source, in order. Where a source has no manifest yet, the loader checks it later."""
    if data.without is None:
        return []
    files = {
        name: [file for file in corpus.files if source.select in (None, file.entry.source)]
        for (name, source), corpus in zip(data.sources.items(), corpora, strict=True)
    }
    try:
        Without(files, data.without)
    except (ConfigError, ShardError) as error:
        return error.problems if isinstance(error, ConfigError) else [str(error)]
    return []


def _tokenizer_problems(corpora: list[Corpus]) -> list[str]:
    tokenizers = {c.manifest.tokenizer_sha256: c.folder for c in corpora if c.manifest.tokenizer_sha256}
    if len(tokenizers) < 2:
        return []
    folders = " and ".join(str(folder) for folder in tokenizers.values())
    return [f"data.sources: {folders} were made with different tokenizers; tokenize them with one"]
