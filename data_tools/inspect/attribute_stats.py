"""Distributions of attributes: one pass over their files, in bounded memory."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.datasets import find_document_files, read_attributes
from data_tools.inspect.document_at import attribute_names
from data_tools.inspect.sketch import Sketch
from olmo_train.errors import ConfigError

_TEST = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b,
    "<": lambda a, b: a < b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


@dataclass
class Distribution:
    """Of one attribute."""

    documents: int = 0
    """That have a span of it."""
    spans: int = 0
    scores: Sketch = field(default_factory=Sketch)
    """Of every span."""
    largest: Sketch = field(default_factory=Sketch)
    """The largest score of each document that has one."""


@dataclass(frozen=True)
class Test:
    """`NAME >= 0.5` on the largest score of an attribute in a document; a document without a span does not pass."""

    text: str
    name: str
    operator: str
    limit: float

    def passes(self, attributes: dict[str, list[list[Any]]]) -> bool:
        """Of one document."""
        spans = next((each for name, each in attributes.items() if name == self.name or name.endswith(f"__{self.name}")), None)
        return bool(spans) and _COMPARE[self.operator](max(float(span[2]) for span in spans or []), self.limit)


def parse_test(text: str) -> Test:
    """Raises:
    ConfigError: it is not NAME OPERATOR NUMBER."""
    match = _TEST.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        return Test(text, match[1], match[2], float(match[3]))
    except ValueError:
        raise ConfigError(f"{text!r} is no test; write NAME >= NUMBER, with one of {', '.join(_COMPARE)}") from None


@dataclass
class AttributeStats:
    """Of all attributes of one name."""

    documents: int = 0
    by_attribute: dict[str, Distribution] = field(default_factory=dict)
    passed: dict[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        rows = {
            name: {
                "documents": d.documents,
                "spans": d.spans,
                "scores": d.scores.describe(),
                "largest_of_a_document": d.largest.describe(),
            }
            for name, d in sorted(self.by_attribute.items())
        }
        return {"documents": self.documents, "attributes": rows, "passed": self.passed}


def attribute_stats(dataset: Path, name: str, tests: list[Test]) -> AttributeStats:
    """Read every file of attributes `name` of a dataset.

    Raises:
        ConfigError: no such attributes, or a test names one that no document has. ShardError: a file is damaged.
    """
    known = attribute_names(dataset)
    if name not in known:
        raise ConfigError(f"--attributes={name}: {dataset}/attributes has none of this name; it has {', '.join(known) or 'none'}")
    stats = AttributeStats(passed={test.text: 0 for test in tests})
    for file in find_document_files([str(dataset)]):
        for _, attributes in read_attributes(file.attributes(name)):
            stats.documents += 1
            for attribute, spans in attributes.items():
                if not spans:
                    continue
                row = stats.by_attribute.setdefault(attribute, Distribution())
                scores = [float(span[2]) for span in spans]
                row.spans += len(scores)
                for score in scores:
                    row.scores.add(score)
                row.documents += 1
                row.largest.add(max(scores))
            for test in tests:
                stats.passed[test.text] += test.passes(attributes)
    for test in tests:
        fits = [a for a in stats.by_attribute if a == test.name or a.endswith(f"__{test.name}")]
        if len(fits) != 1:
            raise ConfigError(
                f"{test.text!r}: {'no attribute' if not fits else 'several attributes'} of {name} match; there are "
                f"{', '.join(sorted(stats.by_attribute))}"
            )
    return stats
