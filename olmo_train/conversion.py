"""Plain nested values to a dataclass: every unknown name, wrong type and missing value is told, not only the first."""

import difflib
import types
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

UNRESOLVED = object()
"""Stands for a value whose interpolation failed; the failure itself is reported where it happens."""


def convert(value: Any, kind: Any, path: str, found: list[tuple[str, str]]) -> Any:
    """`value` as an instance of `kind`; what does not fit is appended to `found` as (dotted name, problem)."""
    if isinstance(value, str) and value == MISSING:
        found.append((path, f"{path} is missing: give {path}=<{type_name(kind)}>"))
        return None
    if value is UNRESOLVED:
        found.append((path, ""))
        return None
    optional = strip_optional(kind)
    if value is None and optional is not kind:
        return None
    kind = optional
    if is_dataclass(kind):
        return _convert_section(value, kind, path, found)  # type: ignore[arg-type]
    if get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        return {str(k): convert(v, inner, f"{path}.{k}", found) for k, v in value.items()}
    if get_origin(kind) is list and isinstance(value, list):
        inner = get_args(kind)[0]
        return [convert(v, inner, f"{path}[{i}]", found) for i, v in enumerate(value)]
    return _convert_leaf(value, kind, path, found)


def by_dotted_name(values: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted names; a dict without entries is a leaf."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {n: leaf for key, value in values.items() for n, leaf in by_dotted_name(value, f"{prefix}.{key}".lstrip(".")).items()}


def _convert_section(value: Any, kind: type, path: str, found: list[tuple[str, str]]) -> Any:
    if not isinstance(value, dict):
        found.append((path, f"{path or 'the config'}={value!r} is not a section with fields of {kind.__name__}"))
        return None
    hints = {field.name: (field, hint) for field, hint in fields_of(kind)}
    for name in value:
        if name not in hints and not (path == "" and name == "hydra"):
            here = f"{path}.{name}" if path else str(name)
            found.append((here, unknown_name(here, str(name), kind, list(hints))))
    arguments = {}
    before = len(found)
    for name, (field, hint) in hints.items():
        here = f"{path}.{name}" if path else name
        if name in value:
            arguments[name] = convert(value[name], hint, here, found)
        elif field.default_factory is not NO_DEFAULT:
            arguments[name] = field.default_factory()
        else:
            default = MISSING if field.default is NO_DEFAULT else field.default
            arguments[name] = convert({} if _opens(default, hint) else default, hint, here, found)
    return kind(**arguments) if len(found) == before else None


def _opens(default: Any, hint: Any) -> bool:
    """A section without a default still has its own defaults and may be whole."""
    return isinstance(default, str) and default == MISSING and is_dataclass(hint)


def _convert_leaf(value: Any, kind: Any, path: str, found: list[tuple[str, str]]) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        options = [str(member.value) for member in kind]
        if isinstance(value, str | Enum) and str(value) in options:
            return kind(str(value))
        found.append((path, f"{path}={value} is not one of {', '.join(options)}{nearest(str(value), options)}"))
        return None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    hint = ""
    if kind is int and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    if kind is bool:
        hint = "; write true or false"
    found.append((path, f"{path}={value!r} is a {type(value).__name__}, must be a {type_name(kind)}{hint}"))
    return None


def fields_of(schema: type) -> list[tuple[Any, Any]]:
    """(dataclass field, resolved type) of every field."""
    hints = get_type_hints(schema)
    return [(field, hints[field.name]) for field in fields(schema)]


def strip_optional(kind: Any) -> Any:
    """X for X | None, else the type itself."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [arg for arg in get_args(kind) if arg is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return kind


def type_name(kind: Any) -> str:
    """What a user calls a type."""
    kind = strip_optional(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)


def unknown_name(here: str, name: str, kind: Any, known: list[str]) -> str:
    """The problem of a dotted name `here` whose last part is none of the `known` fields of `kind`."""
    return f"{here} is not a field of {kind.__name__}{nearest(name, known)}; fields: {', '.join(sorted(known))}"


def nearest(name: str, options: list[str]) -> str:
    """A hint at the option that was probably meant, or nothing."""
    close = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
