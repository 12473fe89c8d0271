"""Documents to attributes beside them: what rules, lists and models say of each.

olmo data tag documents=[corpus] name=rules taggers=[gopher,c4,fineweb]
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from data_tools.datasets import AttributeWriter, DocumentFile, find_document_files, part_names, stage_folder
from data_tools.documents import LONG, Line
from data_tools.tag.build_models import MODEL_TAGGERS, model_files, model_problems
from data_tools.tag.config import TagConfig
from data_tools.work.config import stage_problems
from data_tools.work.counts import Counts, add_counts, count
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Plan, Stage, settings_of
from olmo_train.errors import run_command
from olmo_train.schema import load_config

RULE_TAGGERS = ("gopher", "c4", "fineweb", "length", "code_words", "repetition")
TAGGERS = (*RULE_TAGGERS, *MODEL_TAGGERS)
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]|_(?!_))*")
"""Of an experiment: no `__`, which parts the names of attributes; and nothing that leads out of a folder."""
BATCH = 256
"""Documents that taggers get at once; fewer if they are long."""


def main(argv: list[str]) -> None:
    """Tag, and print what was read and where the attributes lie."""
    config = load_config("tag", TagConfig, argv, tag_problems)
    totals = tag(config)
    print(f"attributes/{config.name}: {totals['documents_in']:,} documents, {totals['text_bytes_in']:,} bytes of text")
    for source, row in sorted(totals["by_source"].items()):
        tokens = f", {row['tokens']:,} tokens" if "tokens" in row else ""
        print(f"  {source}: {row['documents']:,} documents, {row['text_bytes']:,} bytes{tokens}")


def tag(config: TagConfig) -> Counts:
    """Write the attributes of every document; returns the totals.

    Raises:
        ConfigError, ShardError: as the stage.
    """
    from data_tools.tag.build import build_taggers  # needs numba, which tag_problems asks for

    files = find_document_files(config.documents)
    folder = stage_folder(files, f"attributes-{config.name}")
    settings = {**settings_of(config), "attributes": build_taggers(config).attributes}
    inputs = [*(file.path for file in files), *_files_of(config)]
    with Stage(folder, Plan("tag", settings, inputs), config) as stage:
        if stage.is_finished:
            print(f"{folder}: finished before; remove it to tag again")
            totals: Counts = stage.summary()["totals"]
            return totals
        names = part_names(files)
        parts = [Part(name, file, file.path.stat().st_size) for name, file in zip(names, files, strict=True)]
        records = stage.run("tag", parts, tag_file, config)
        totals = {"documents_in": 0, "documents_out": 0, "text_bytes_in": 0, "by_source": {}}
        for record in records:
            add_counts(totals, record.counts)
        stage.finish(totals)
        return totals


def tag_file(context: PartContext, config: TagConfig) -> None:
    """The attributes of one file of documents, line for line."""
    from data_tools.tag.build import build_taggers

    file: DocumentFile = context.part.payload
    taggers = build_taggers(config)
    by_source: Counts = {}
    writer = AttributeWriter(context.output(file.attributes(config.name)))
    for batch in batches(context.read(file.path)):
        found = taggers.tag(batch, context.folder)
        for line, (attributes, n_bytes, tokens) in zip(batch, found, strict=True):
            line.release()  # attributes of a long one take memory, too
            writer.write(line.id, line.source, attributes)
            row = by_source.setdefault(line.source, {})
            count(row, "documents")
            count(row, "text_bytes", n_bytes)
            if tokens is not None:
                count(row, "tokens", tokens)
    writer.close()
    documents, n_bytes = (sum(row[name] for row in by_source.values()) for name in ("documents", "text_bytes"))
    context.counts.update(documents_in=documents, documents_out=documents, text_bytes_in=n_bytes, by_source=by_source)


def batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Up to BATCH documents and LONG bytes; a long one comes alone, so that no other is held beside it."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == BATCH or size + len(line.raw) > LONG):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.raw)
    if batch:
        yield batch


def tag_problems(config: TagConfig) -> list[str]:
    """What is wrong with the config."""
    problems = stage_problems(config)
    if isinstance(config.name, str) and config.name != "???" and not NAME.fullmatch(config.name):
        problems.append(
            f"name={config.name!r} cannot be the first part of attributes' names; it takes letters, digits, `.`, `-` and "
            "single `_`, from a letter or digit on"
        )
    problems += _tagger_problems(config.taggers)
    if "repetition" in config.taggers and config.tokenizer is None:
        problems.append("tokenizer=null: taggers=[repetition] counts tokens; give the model's tokenizer.json")
    if config.repetition.max_period < 1:
        problems.append(f"repetition.max_period={config.repetition.max_period} must be positive")
    if config.repetition.span_repeats < 3:
        problems.append(f"repetition.span_repeats={config.repetition.span_repeats} must be at least 3; twice is no repetition")
    for name, path in (("tokenizer", config.tokenizer), ("c4.naughty_words", config.c4.naughty_words)):
        if path is not None and not Path(path).is_file():
            problems.append(f"{name}={path} is no file")
    problems += model_problems([name for name in config.taggers if name in MODEL_TAGGERS], config.models)
    return problems


def _tagger_problems(names: list[str]) -> list[str]:
    problems = [] if names else [f"taggers is empty; give some of {', '.join(TAGGERS)}"]
    for name in names:
        if name not in TAGGERS:
            near = difflib.get_close_matches(name, TAGGERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TAGGERS)}"
            problems.append(f"taggers: {name!r} is no tagger; {hint}")
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"taggers: {name} is named twice")
    if importlib.util.find_spec("numba") is None:
        problems.append("taggers need numba; pip install 'olmo-train[data]'")
    return problems


def _files_of(config: TagConfig) -> list[Path]:
    """Files that taggers read: another one is another plan."""
    own = [path for path in (config.tokenizer, config.c4.naughty_words) if path is not None]
    return [*map(Path, own), *model_files(config.models)]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
