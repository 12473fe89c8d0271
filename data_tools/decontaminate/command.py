"""`olmo data decontaminate documents=[corpus/web] name=evals`: documents that hold items of evaluation sets.

Writes <dataset>/attributes/<name>/: the spans that stand in an item, and their share of the document. `olmo data mix` drops or
redacts by them. Which items were found, and where, stands in <dataset>/stages/attributes-<name>/items/.
"""

from pathlib import Path

from data_tools.datasets import find_document_files, part_names, stage_folder
from data_tools.decontaminate.config import DecontaminateConfig, problems_of
from data_tools.decontaminate.eval_sets import find_eval_files
from data_tools.decontaminate.index import join_items, read_eval_file
from data_tools.decontaminate.report import DIRTY, table, write_report
from data_tools.decontaminate.scan import attribute_names, scan_file, sum_found, write_attributes
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part
from data_tools.work.stage import Plan, Stage, settings_of
from olmo_train.errors import run_command
from olmo_train.schema import load_config

SCRATCH = ("items-of-files", "hits", "found", "index")


def main(argv: list[str]) -> None:
    """Look, write attributes and report, and say what was found."""
    config = load_config("decontaminate", DecontaminateConfig, argv, problems_of)
    files = find_document_files(config.documents)
    evals = find_eval_files(config.tasks, config.items)
    folder = stage_folder(files, f"attributes-{config.name}")
    settings = settings_of(config) | {"attributes": attribute_names(config.name)}
    plan = Plan("decontaminate", settings, [*(file.path for file in files), *(Path(file.path) for file in evals)])
    with Stage(folder, plan, config) as stage:
        if not stage.is_finished:
            eval_names = [f"{i:04d}" for i in range(len(evals))]
            eval_parts = [Part(name, file, Path(file.path).stat().st_size) for name, file in zip(eval_names, evals, strict=True)]
            stage.run("items", eval_parts, read_eval_file, config)
            stage.run("index", [Part("all", None)], join_items, (config, list(zip(evals, eval_names, strict=True))))
            names = part_names(files)
            parts = [Part(name, file, file.path.stat().st_size) for name, file in zip(names, files, strict=True)]
            stage.run("scan", parts, scan_file, config)
            stage.run("sum", [Part("all", None)], sum_found, names)
            totals: Counts = {}
            for record in stage.run("attributes", parts, write_attributes, config):
                add_counts(totals, record.counts)
            (report,) = stage.run("report", [Part("all", None)], write_report, (config, names))
            stage.finish(totals | report.counts, remove=SCRATCH)
        _say(folder, config, stage.summary()["totals"])


def _say(folder: Path, config: DecontaminateConfig, totals: Counts) -> None:
    print(
        f"{config.name}: {totals['contaminated_documents']:,} of {totals['documents_in']:,} documents hold {config.ngram} words "
        f"in a row of an item; found: items with any such run, dirty: with {DIRTY:.0%} of theirs"
    )
    print("\n".join(table(totals)))
    print(f"items found, and where: {folder / 'items'}; attributes: {', '.join(attribute_names(config.name))}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
