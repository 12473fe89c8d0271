"""Documents to attributes that say what is a duplicate.

olmo data dedupe documents=[corpus] name=exact by=document
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.datasets import DocumentFile, find_document_files, stage_folder
from data_tools.dedupe.bloom import filter_inputs
from data_tools.dedupe.config import By, DedupeConfig, Normalize
from data_tools.dedupe.exact import SCRATCH, run_exact
from data_tools.dedupe.keys import MOST_FILES, MOST_PRIORITIES
from data_tools.dedupe.paragraph import paragraph_problems, run_paragraphs
from data_tools.work.config import stage_problems
from data_tools.work.stage import Plan, Stage, settings_of
from olmo_train.errors import ShardError, run_command
from olmo_train.schema import load_config


def main(argv: list[str]) -> None:
    """Find duplicates, write attributes, and print a table of sources."""
    config = load_config("dedupe", DedupeConfig, argv, dedupe_problems)
    files = find_document_files(config.documents)
    if len(files) > MOST_FILES:
        raise ShardError(f"documents: {len(files):,} files are more than {MOST_FILES:,}; give larger ones")
    folder = stage_folder(files, f"dedupe-{config.name}")
    if not (folder / "stage.json").exists():
        _refuse_others(files, config.name)
    settings = settings_of(config) | {"attributes": attribute_names(config)}
    plan = Plan("dedupe", settings, [file.path for file in files] + filter_inputs(config))
    with Stage(folder, plan, config) as stage:
        if stage.is_finished:
            stage.clean([SCRATCH])  # it was killed when it had all but finished
            print(f"{folder}: was finished before")
        else:
            stage.finish(_run(stage, files, config), remove=[SCRATCH])
        totals = stage.summary()["totals"]
        print_table(folder, totals)
        strangers = [source for source in config.priority if source not in totals.get("by_source", {})]
        if strangers:
            print(f"note: priority names {', '.join(strangers)}, but no document has this source", file=sys.stderr)


def _run(stage: Stage, files: list[DocumentFile], config: DedupeConfig) -> dict[str, Any]:
    match config.by:
        case By.MINHASH:
            from data_tools.dedupe.minhash import run_minhash

            return run_minhash(stage, files, config)
        case By.PARAGRAPH:
            return run_paragraphs(stage, files, config)
        case _:
            return run_exact(stage, files, config)


def attribute_names(config: DedupeConfig) -> list[str]:
    """All that the stage may write: what a filter may name."""
    more = {By.PARAGRAPH: ["duplicate_frac"], By.MINHASH: ["similarity", "cluster_size"]}
    return [f"{config.name}__{config.by}__{kind}" for kind in ["duplicate", *more.get(config.by, [])]]


def dedupe_problems(config: DedupeConfig) -> list[str]:
    """What is wrong with a config."""
    problems = stage_problems(config)
    if not config.name or not config.name.isascii() or not config.name.replace("-", "_").isidentifier() or "__" in config.name:
        problems.append(f"name={config.name!r} names a folder and begins an attribute; give letters, digits, _ and -, and no __")
    if config.normalize != Normalize.NONE and config.by != By.DOCUMENT:
        problems.append(f"normalize={config.normalize} is of by=document, not by={config.by}; leave it out")
    if len(config.priority) > MOST_PRIORITIES:
        problems.append(f"priority names {len(config.priority)} sources, at most {MOST_PRIORITIES} can be told apart")
    twice = sorted({source for source in config.priority if config.priority.count(source) > 1})
    if twice:
        problems.append(f"priority={config.priority} names {', '.join(twice)} twice; name each source once")
    match config.by:
        case By.PARAGRAPH:
            problems += paragraph_problems(config.paragraph)
        case By.MINHASH:
            from data_tools.dedupe.minhash import minhash_problems

            problems += minhash_problems(config.minhash)
    return problems


def _refuse_others(files: Sequence[DocumentFile], name: str) -> None:
    """Attributes that another stage wrote are not overwritten."""
    for dataset in dict.fromkeys(file.dataset for file in files):
        path = Path(dataset, "attributes", name)
        if path.exists():
            raise ShardError(f"name={name}: {path} was not written by this stage; give another name, or remove it")


def print_table(folder: Path, totals: dict[str, Any]) -> None:
    """What was found, by source."""
    print(f"{folder}: {_row(totals)}")
    for source, values in sorted(totals.get("by_source", {}).items()):
        print(f"  {source}: {_row(values)}")


def _row(values: dict[str, Any]) -> str:
    told = [f"{name.replace('_', ' ')} {number:,}" for name, number in values.items() if isinstance(number, int)]
    return ", ".join(told)


if __name__ == "__main__":
    sys.exit(run_command(main))
