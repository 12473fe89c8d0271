"""Documents and their attributes to a new dataset: filtered, redacted, sampled and repeated, with a table of what went where.

olmo data mix sources.web.documents=[web] sources.web.attributes=[rules] filter=dolma17_web output=mixed
olmo data mix config=mixture.yaml output=mixed
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.datasets import output_problems
from data_tools.documents import SOURCE
from data_tools.mix.attributes import look_for_names, resolve_names
from data_tools.mix.budget import threshold_of
from data_tools.mix.config import MixConfig, mix_problems, total_of
from data_tools.mix.parts import SCRATCH, count_documents, keys_path, write_documents
from data_tools.mix.plan import MixPlan, SourcePlan, Threshold, find_source_files, parts_of, plan_sources, rule_problems, settings
from data_tools.mix.table import table_of, totals_of
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Plan, Stage
from olmo_train.errors import run_command
from olmo_train.schema import load_config, load_saved


def main(argv: list[str]) -> None:
    """Mix, and print the table. `config=FILE` takes a YAML file of the whole config instead of `configs/mix.yaml`."""
    files = [word.removeprefix("config=") for word in argv if word.startswith("config=")]
    words = [word for word in argv if not word.startswith("config=")]
    if files:
        config = load_saved(Path(files[-1]), MixConfig, words, _problems)
    else:
        config = load_config("mix", MixConfig, words, _problems)
    totals = mix(config)["totals"]
    print(f"{config.output}: {totals['documents_out']:,} of {totals['documents_in']:,} documents")
    print(table_of(totals))


def _problems(config: MixConfig) -> list[str]:
    problems = mix_problems(config) + rule_problems(config)
    for name, source in config.sources.items():
        if source.rename is not None and not SOURCE.fullmatch(source.rename):
            problems.append(f"sources.{name}.rename={source.rename!r} cannot name a folder; take words with slashes between")
    if config.tokenizer is not None and not Path(config.tokenizer).is_file():
        problems.append(f"tokenizer={config.tokenizer} is not a file; give a tokenizer.json")
    stage = Path(config.output, "stages", "mix", "stage.json")
    if Path(config.output, "documents").exists() and not stage.exists():
        problems.append(f"output={config.output} has documents/ already, which no mix wrote; give another folder, or remove it")
    patterns = [pattern for source in config.sources.values() for pattern in source.documents]
    return problems or output_problems(config.output, patterns)


def mix(config: MixConfig) -> dict[str, Any]:
    """Run the stage, or go on with it; returns its summary.

    Raises:
        ConfigError, ShardError: inputs that are missing or do not fit, attributes that are not there, too many rejects.
    """
    files = find_source_files(config)
    plans = plan_sources(config)
    inputs = [file.path for each in files.values() for file in each]
    inputs += [file.attributes(folder) for name, each in files.items() for file in each for folder in plans[name].folders]
    folder = Path(config.output, "stages", "mix")
    with Stage(folder, Plan("mix", settings(config, plans), inputs), config) as stage:
        if stage.is_finished:
            print(f"{config.output} is finished; nothing was done")
            stage.clean([SCRATCH])
            return stage.summary()
        parts = parts_of(files)
        ending = config.compression.ending
        datasets = tuple(dict.fromkeys(file.dataset for each in files.values() for file in each))
        shared = MixPlan(plans, config.output, ending, config.max_file_mb * 10**6, config.seed, datasets)
        shared = _find_attributes(stage, parts, shared)
        if _has_budget(config):
            shared = _choose(stage, parts, shared, config)
        records = stage.run("write", parts, write_documents, shared)
        return stage.finish(totals_of(records, shared.sources), remove=[SCRATCH])


def _find_attributes(stage: Stage, parts: list[Part], shared: MixPlan) -> MixPlan:
    """Where the attributes lie that rules name; looked for before anything is written."""
    wanted = [part for part in parts if shared.sources[part.payload.source].attributes]
    if not wanted:
        return shared
    found = stage.run("names", wanted, look_for_names, shared)
    by_source: dict[str, list[Any]] = {}
    for part, record in zip(wanted, found, strict=True):
        by_source.setdefault(part.payload.source, []).append(record)
    plans = {name: replace(plan, places=resolve_names(plan, by_source.get(name, []))) for name, plan in shared.sources.items()}
    return replace(shared, sources=plans)


def _has_budget(config: MixConfig) -> bool:
    limits = [(each.max_documents, each.max_mb, each.max_tokens) for each in config.sources.values()]
    return total_of(config) is not None or any(limit is not None for each in limits for limit in each)


def _choose(stage: Stage, parts: list[Part], shared: MixPlan, config: MixConfig) -> MixPlan:
    """Measure what the filters leave, then set every source's threshold."""
    stage.run("count", parts, count_documents, shared)
    names = {source: [part.name for part in parts if part.payload.source == source] for source in config.sources}
    sources = [Part(source, _BudgetOf(source, config, names[source])) for source in config.sources]
    found = stage.run("budget", sources, find_budget, shared)
    plans = {}
    for part, record in zip(sources, found, strict=True):
        threshold = Threshold(record.counts["passes"], record.counts["rest"])
        plans[part.name] = replace(shared.sources[part.name], threshold=threshold)
    return replace(shared, sources=plans, is_first=False)


class _BudgetOf:
    """What `find_budget` works on."""

    def __init__(self, source: str, config: MixConfig, parts: list[str]) -> None:
        self.source, self.config, self.parts = source, config, parts


def find_budget(context: PartContext, shared: MixPlan) -> None:
    """Phase: how often the documents of one source are taken."""
    todo: _BudgetOf = context.part.payload
    plan: SourcePlan = shared.sources[todo.source]
    paths = [keys_path(context.folder, name) for name in todo.parts]
    threshold = threshold_of(todo.config, todo.source, todo.config.sources[todo.source], plan.threshold, paths)
    context.counts.update(passes=threshold.passes, rest=threshold.rest)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
