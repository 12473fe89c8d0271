"""Raw text of any kind to Dolma documents.

olmo data ingest output=corpus/x 'sources={code: {kind: tree, paths: [src]}, web: {kind: warc, paths: [a/*.warc.gz]}}'
olmo data ingest output=corpus/x sources.notes.kind=text sources.notes.paths=[notes] sources.notes.per=line
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools.datasets import output_problems
from data_tools.ingest.config import IngestConfig, Kind, Per, SourceConfig, ingest_problems
from data_tools.ingest.inputs import Input, find_inputs
from data_tools.ingest.jsonl import read_jsonl
from data_tools.ingest.output import MB, Output, OutputOptions
from data_tools.ingest.pages import read_html, read_warc_file
from data_tools.ingest.plan import Job, Piece, Shared, cut, group
from data_tools.ingest.records import can_be_cut
from data_tools.ingest.tables import plan_dataset, plan_parquet, read_dataset, read_parquet
from data_tools.ingest.text import read_file, read_text, separator_of
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part, PartContext, Record
from data_tools.work.stage import Plan, Stage, settings_of
from olmo_train.errors import ConfigError, run_command
from olmo_train.schema import load_config


def main(argv: list[str]) -> None:
    """Ingest, and print a table of sources."""
    summary = ingest(load_config("ingest", IngestConfig, argv, _problems))
    print_table(summary)


def _problems(config: IngestConfig) -> list[str]:
    problems = ingest_problems(config)
    output = Path(config.output)
    if (output / "documents").exists() and not (output / "stages" / "ingest" / "stage.json").exists():
        problems.append(f"output={output} has documents/ already, which no ingest wrote; give another folder, or remove it")
    return problems or output_problems(config.output, [path for source in config.sources.values() for path in source.paths])


def ingest(config: IngestConfig) -> dict[str, Any]:
    """The stage; returns its summary.

    Raises:
        ConfigError: what is wrong with the files of all sources, before anything is written. ShardError: see Stage.
    """
    parts, files, skipped = plan_parts(config)
    plan = Plan("ingest", settings_of(config), files)
    with Stage(Path(config.output, "stages", "ingest"), plan, config) as stage:
        if stage.is_finished:
            print(f"{stage.folder}: finished before; nothing was done")
        else:
            records = stage.run("read", parts, read_part, Shared(_options(config)))
            stage.finish(_totals(config, parts, records, skipped))
        return stage.summary()


def _options(config: IngestConfig) -> OutputOptions:
    return OutputOptions(
        config.output, config.added, config.unicode, config.newlines, config.max_document_mb * MB, config.max_file_mb * MB,
        config.compression,
    )  # fmt: skip


# ---- planning ----------------------------------------------------------------------------------------------------------------


def plan_parts(config: IngestConfig) -> tuple[list[Part], list[Path], dict[str, Counter[str]]]:
    """Parts of all sources, their files, and what was skipped.

    Raises:
        ConfigError: every problem of every source.
    """
    parts: list[Part] = []
    files: set[Path] = set()
    skipped: dict[str, Counter[str]] = {}
    problems: list[str] = []
    for name, source in config.sources.items():
        if source.kind == Kind.HUGGINGFACE:
            planned, paths = plan_dataset(source)
            pieces = planned.pieces
            files.update(paths)
            found_problems = planned.problems
        else:
            found = find_inputs(source)
            pieces, found_problems = _pieces(source, found.inputs, config.part_mb * MB)
            found_problems = [*found.problems, *found_problems]
            files.update(Path(each.path) for each in found.inputs)
            skipped[name] = Counter({reason: n for reason, n in sorted(found.skipped.items()) if n})
        problems += [f"sources.{name}{problem}" for problem in found_problems]
        parts += group(name, source, pieces, config.part_mb * MB)
    if problems:
        raise ConfigError(problems)
    return parts, sorted(files), skipped


def _pieces(source: SourceConfig, inputs: Sequence[Input], part_bytes: int) -> tuple[list[Piece], list[str]]:
    if source.kind == Kind.PARQUET:
        planned = plan_parquet(source, list(inputs))
        return planned.pieces, planned.problems
    is_lines = source.kind == Kind.JSONL or (source.kind == Kind.TEXT and source.per != Per.FILE)
    separator = separator_of(source.separator)
    pieces = []
    for each in inputs:
        if is_lines and each.size > 1.5 * part_bytes and can_be_cut(each.path, separator):
            pieces += cut(each.path, each.name, each.size, part_bytes)
        else:
            pieces.append(Piece(each.path, each.name, size=each.size, license_file=each.license_file))
    return pieces, []


# ---- reading -----------------------------------------------------------------------------------------------------------------


def read_part(context: PartContext, shared: Shared) -> None:
    """The pieces of one part, in order."""
    job: Job = context.part.payload
    output = Output(context, shared.options, job.name, job.number, job.source.license)
    for piece in job.pieces:
        match job.source.kind:
            case Kind.JSONL:
                read_jsonl(context, output, job, piece)
            case Kind.PARQUET:
                read_parquet(context, output, job, piece)
            case Kind.TEXT:
                read_text(context, output, job, piece)
            case Kind.TREE:
                read_file(context, output, job, piece)
            case Kind.WARC:
                read_warc_file(context, output, job, piece)
            case Kind.HTML:
                read_html(context, output, job, piece)
            case Kind.HUGGINGFACE:
                read_dataset(context, output, job, piece)
    output.close()


# ---- telling -----------------------------------------------------------------------------------------------------------------


def _totals(config: IngestConfig, parts: list[Part], records: list[Record], skipped: dict[str, Counter[str]]) -> Counts:
    """Counts of all, and by entry of `sources` what came in and what became of it."""
    names = ("documents_in", "documents_out", "text_bytes_in", "text_bytes_out")
    totals: Counts = {**dict.fromkeys(names, 0), "by_source": {}, "inputs": {}}
    for name, source in config.sources.items():
        totals["inputs"][name] = dict.fromkeys(names, 0)
        totals["inputs"][name] |= {"license": source.license, "files_skipped": dict(skipped.get(name, {}))}
    for part, record in zip(parts, records, strict=True):
        add_counts(totals, record.counts)
        counts = {key: value for key, value in record.counts.items() if key != "by_source"}
        add_counts(totals["inputs"][part.payload.name], {**counts, "rejected": record.rejected})
    return totals


def print_table(summary: dict[str, Any]) -> None:
    """What came in and went out, by entry of `sources`, with the reasons of what did not."""
    print(f"{'source':<20} {'in':>12} {'out':>12} {'MB in':>10} {'MB out':>10}  left out")
    totals = summary["totals"]
    for name, row in [*totals["inputs"].items(), ("all", totals)]:
        left_out = [row.get(kind, {}) for kind in ("dropped", "rejected", "skipped", "files_skipped") if name != "all"]
        reasons = {reason: n for each in left_out for reason, n in each.items()}
        told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()))
        print(
            f"{name:<20} {row['documents_in']:>12,} {row['documents_out']:>12,} {row['text_bytes_in'] / 1e6:>10,.1f} "
            f"{row['text_bytes_out'] / 1e6:>10,.1f}  {told}".rstrip()
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
