"""Overrides that make one config of another, in the grammar of Hydra's command line."""

import json
import string
from collections.abc import Iterator
from typing import Any

PLAIN = frozenset(string.ascii_letters + string.digits + "/._-+")
"""Characters of a word that needs no quotes in an override."""


def differences(wanted: Any, base: Any, name: str) -> Iterator[str]:
    """Overrides that make the plain values `wanted` of `base`, both at the dotted name `name`."""
    if isinstance(wanted, dict) and isinstance(base, dict):
        for key in wanted:
            yield from differences(wanted[key], base.get(key), f"{name}.{key}")
        yield from (f"~{name}.{key}" for key in base if key not in wanted)
    elif wanted != base:
        yield f"{name}={hydra_word(wanted)}"


def hydra_word(value: Any) -> str:
    """A value in the grammar of Hydra's command line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {hydra_word(entry)}" for key, entry in value.items()) + "}"
        case list():
            return "[" + ", ".join(hydra_word(entry) for entry in value) + "]"
        case str() if not set(value) <= PLAIN:
            return json.dumps(value, ensure_ascii=False)
        case None | bool():
            return json.dumps(value)
        case _:
            return str(value)
