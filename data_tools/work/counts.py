"""Counts of a part, added up: nested mappings of numbers."""

from typing import Any

Counts = dict[str, Any]
"""Names to numbers, or to more of the same: {"documents": 3, "by_source": {"web": {"documents": 3}}}."""


def add_counts(total: Counts, more: Counts) -> Counts:
    """Add `more` to `total`, in place; returns it."""
    for name, value in more.items():
        if isinstance(value, dict):
            add_counts(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def count(total: Counts, name: str, number: int | float = 1) -> None:
    """Add to one name."""
    total[name] = total.get(name, 0) + number
