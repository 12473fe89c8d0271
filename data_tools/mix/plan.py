"""What a mixture does, made of its config: presets and rules of every source, the attributes that they name, the parts."""

from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from data_tools.datasets import DocumentFile, find_document_files
from data_tools.mix.config import FilterConfig, MixConfig, RedactConfig, SourceConfig, WhenSmall, total_of
from data_tools.mix.expression import read_expression
from data_tools.mix.expression_tree import ExpressionError
from data_tools.work.part import Part
from data_tools.work.stage import settings_of
from olmo_train.conversion import nearest
from olmo_train.errors import ConfigError, ShardError
from olmo_train.schema import CONFIG_DIR, read_yaml, to_plain

PART_BYTES = 2**27
"""Unpacked bytes (estimated) of the small files that make one part together."""
UNPACKED = 4
"""Bytes of JSON for one of a compressed file, about."""


@dataclass(frozen=True)
class Rule:
    """One filter."""

    name: str
    text: str
    keep: bool
    """Whether it must hold, rather than must not."""


@dataclass(frozen=True)
class Redaction:
    """One kind of spans that is replaced."""

    name: str
    spans: str
    replacement: str
    min_score: float
    max_score: float


@dataclass(frozen=True)
class Threshold:
    """How often a source's documents are taken: all of them `passes` times, and once more those whose key is below `rest`."""

    passes: int
    rest: int
    """Of 2^64."""

    @property
    def repeat(self) -> float:
        """Copies of a document, on average."""
        return self.passes + self.rest / 2**64


@dataclass(frozen=True)
class SourcePlan:
    """All that a process must know of a source. It is sent to other processes."""

    name: str
    rules: tuple[Rule, ...]
    redactions: tuple[Redaction, ...]
    folders: tuple[str, ...]
    """Of attributes."""
    rename: str | None
    min_text_length: int
    tokens: str | None
    """Attribute that has the number of tokens."""
    tokenizer: str | None
    attributes: tuple[str, ...] = ()
    """As the rules write them, each once."""
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Where each lies: (folder, name in full). Found out by looking."""
    threshold: Threshold = Threshold(1, 0)
    may_repeat: bool = False
    """Whether a document may be written more than once."""


@dataclass(frozen=True)
class MixPlan:
    """What all parts share."""

    sources: dict[str, SourcePlan]
    output: str
    ending: str
    max_file_bytes: int
    seed: int
    datasets: tuple[str, ...] = ()
    """Folders of all datasets that are read."""
    is_first: bool = True
    """Whether this phase is the first to read the documents: it puts what is none into quarantine."""


@dataclass(frozen=True)
class SourceFiles:
    """What a part works on."""

    source: str
    number: int
    files: tuple[DocumentFile, ...]


def rules_of(config: MixConfig, source: SourceConfig) -> FilterConfig:
    """The rules of a source in force: those of `filter`, of its presets, its own; what is switched off is left out.

    Raises:
        ConfigError: a preset that is not there.
    """
    found = FilterConfig()
    for layer in [config.filter, *map(read_preset, source.filters), source]:
        found.drop |= layer.drop
        found.keep |= layer.keep
        found.redact |= layer.redact
    found.drop = {name: text for name, text in found.drop.items() if text.strip()}
    found.keep = {name: text for name, text in found.keep.items() if text.strip()}
    found.redact = {name: rule for name, rule in found.redact.items() if rule.spans}
    return found


@cache
def read_preset(name: str) -> FilterConfig:
    """`configs/filter/<name>.yaml`.

    Raises:
        ConfigError: there is none.
    """
    options = sorted(path.stem for path in (CONFIG_DIR / "filter").glob("*.yaml"))
    if name not in options:
        raise ConfigError(f"filters: configs/filter/ has no {name!r}{nearest(name, options)}; options: {', '.join(options)}")
    return read_yaml(CONFIG_DIR / "filter" / f"{name}.yaml", FilterConfig)


RESERVED = ("read", "redacted", "min_text_length", "sampled", "written")
"""Steps and reasons of ours."""


def rule_problems(config: MixConfig) -> list[str]:
    """What is wrong with expressions, names of rules and presets."""
    problems = []
    for name, source in config.sources.items():
        try:
            problems += _source_problems(f"sources.{name}", source, rules_of(config, source))
        except ConfigError as error:
            problems += [f"sources.{name}.{problem}" for problem in error.problems]
    return problems


def _source_problems(here: str, source: SourceConfig, rules: FilterConfig) -> list[str]:
    problems = []
    for kind, texts in (("drop", rules.drop), ("keep", rules.keep)):
        for rule, text in texts.items():
            problems += _expression_problems(f"{here}.{kind}.{rule}", text)
    twice = sorted(set(rules.drop) & set(rules.keep)) + [r for r in RESERVED if r in rules.drop or r in rules.keep]
    problems += [f"{here}: {rule} is the name of another rule or of a step; call one of them otherwise" for rule in twice]
    names = [("redact." + rule, each.spans) for rule, each in rules.redact.items()]
    for field_name, text in [*names, ("tokens", source.tokens or "")]:
        if any(character.isspace() or character in "()" for character in text):
            problems.append(f"{here}.{field_name}={text!r} must be the name of an attribute, not an expression")
    if not problems and not source.attributes and (named := attributes_of(rules, source)):
        problems.append(f"{here}.attributes is empty, but {named[0]} is named; give the folder below attributes/ that has it")
    return problems


def _expression_problems(here: str, text: str) -> list[str]:
    try:
        read_expression(text)
    except ExpressionError as error:
        return [f"{here}={text!r}: {error}"]
    return []


def attributes_of(rules: FilterConfig, source: SourceConfig) -> list[str]:
    """Every attribute that is named, as written, each once."""
    names = [name for text in [*rules.drop.values(), *rules.keep.values()] for name in read_expression(text).attributes]
    names += [rule.spans for rule in rules.redact.values()]
    return list(dict.fromkeys([*names, *([source.tokens] if source.tokens else [])]))


def plan_sources(config: MixConfig) -> dict[str, SourcePlan]:
    """Of a config without problems."""
    return {name: _plan_source(config, name, source) for name, source in config.sources.items()}


def _plan_source(config: MixConfig, name: str, source: SourceConfig) -> SourcePlan:
    rules = rules_of(config, source)
    passes = int(source.repeat)
    return SourcePlan(
        name=name,
        rules=(
            *(Rule(rule, text, False) for rule, text in rules.drop.items()),
            *(Rule(rule, text, True) for rule, text in rules.keep.items()),
        ),
        redactions=tuple(_redaction(rule, each) for rule, each in rules.redact.items()),
        folders=tuple(dict.fromkeys(source.attributes)),
        rename=source.rename,
        min_text_length=source.min_text_length,
        tokens=source.tokens,
        tokenizer=config.tokenizer if source.tokens is None else None,
        attributes=tuple(attributes_of(rules, source)),
        may_repeat=source.repeat > 1 or (total_of(config) is not None and config.when_small == WhenSmall.UPSAMPLE),
        threshold=Threshold(passes, int((source.repeat - passes) * 2**64)),
    )


def _redaction(name: str, rule: RedactConfig) -> Redaction:
    highest = float("inf") if rule.max_score is None else rule.max_score
    return Redaction(name, rule.spans, rule.replacement, rule.min_score, highest)


def settings(config: MixConfig, plans: dict[str, SourcePlan]) -> dict[str, Any]:
    """All that decides what is written: the rules in force, not the names of presets."""
    values = settings_of(config, leave_out=("output", "filter", "sources"))
    values["sources"] = {}
    for name, source in config.sources.items():
        plain = to_plain(source)
        plain["rules"] = [asdict(rule) for rule in plans[name].rules]
        plain["redact"] = {rule: to_plain(each) for rule, each in rules_of(config, source).redact.items()}
        for left_out in ("drop", "keep", "filters", "documents"):
            del plain[left_out]
        values["sources"][name] = plain
    return values


# ---- files -------------------------------------------------------------------------------------------------------------------


def find_source_files(config: MixConfig) -> dict[str, list[DocumentFile]]:
    """Of every source; all files of attributes are there.

    Raises:
        ConfigError: a file of attributes is missing, or a document file belongs to two sources; all of them are told.
        ShardError: a pattern matches nothing.
    """
    problems: list[str] = []
    found: dict[str, list[DocumentFile]] = {}
    owner: dict[Path, str] = {}
    for name, source in config.sources.items():
        try:
            files = found[name] = find_document_files(source.documents)
        except ShardError as error:
            raise ShardError(f"sources.{name}.{error}") from None
        for file in files:
            path = file.path.resolve()
            if owner.setdefault(path, name) != name:
                problems.append(
                    f"sources.{name}: {file.path} belongs to sources.{owner[path]} as well; take it once, and repeat it"
                )
            if path.is_relative_to(Path(config.output).resolve()):
                problems.append(f"sources.{name}: {file.path} lies in output={config.output}; give another folder")
            problems += _missing_attributes(name, file, source)
    problems = list(dict.fromkeys(problems))
    if len(problems) > 10:
        problems = [*problems[:10], f"and {len(problems) - 10:,} more like these"]
    if problems:
        raise ConfigError(problems)
    return found


def _missing_attributes(name: str, file: DocumentFile, source: SourceConfig) -> list[str]:
    missing = []
    for folder in source.attributes:
        path = file.attributes(folder)
        if not path.parent.is_dir() and not Path(file.dataset, "attributes", folder).is_dir():
            options = [p.name for p in Path(file.dataset, "attributes").glob("*") if p.is_dir()]
            there = f"there are {', '.join(sorted(options))}" if options else "there are none"
            missing.append(
                f"sources.{name}.attributes: {file.dataset} has no folder attributes/{folder}{nearest(folder, options)}; {there}"
            )
        elif not path.is_file():
            missing.append(f"sources.{name}.attributes: {path} is missing; attributes are needed for every file of documents")
    return missing


def parts_of(files: dict[str, list[DocumentFile]]) -> list[Part]:
    """Parts of a phase that reads documents: one large file each, or small ones that lie beside each other."""
    parts = []
    for source, each in files.items():
        group: list[DocumentFile] = []
        size = number = 0
        for file in each:
            more = file.path.stat().st_size * (UNPACKED if file.path.suffix in (".gz", ".zst") else 1)
            if group and size + more > PART_BYTES:
                parts.append(_part(source, number, group))
                group, size, number = [], 0, number + 1
            group.append(file)
            size += more
        parts.append(_part(source, number, group))
    return parts


def _part(source: str, number: int, files: list[DocumentFile]) -> Part:
    size = sum(file.path.stat().st_size for file in files)
    return Part(f"{source}-{number:05d}", SourceFiles(source, number, tuple(files)), size)
