"""Hydra's edge: the one place where YAML and command-line words become a plain dataclass.

Hydra composes the values untyped; `to_dataclass` then checks them against the dataclass and reports every problem at once.
(Hydra's own typed composition stops at the first one and exits with 1.) Nothing past this file sees a DictConfig.
"""

import difflib
import os
import sys
import types
from collections.abc import Callable
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from olmo_train.errors import ConfigError

T = TypeVar("T")
_UNRESOLVED = object()
"""Stands for a value whose interpolation failed; the failure itself is reported where it happens."""
CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


def load_config(config_name: str, schema: type[T], overrides: list[str], check: Callable[[T], list[str]] | None = None) -> T:
    """Compose `configs/<config_name>.yaml` with `overrides`, and return it as an instance of `schema`.

    `check` returns the problems that only values together can have; it also sees a config whose bad overrides were left out,
    so that one message lists everything.

    Raises:
        ConfigError: unknown names, wrong types, missing values, unknown group options, and what `check` found.
    """
    register(f"{config_name}_schema", schema)
    problems: list[str] = []
    words: dict[str, str] = {}  # dotted name -> override as Hydra shall see it
    for text in overrides:
        _sort_override(text, schema, problems, words)
    values = _compose(config_name, words, problems)
    if values is None:
        raise ConfigError(problems)
    found: list[tuple[str, str]] = []
    run = _convert(values, schema, "", found)
    problems += [text for _, text in found if text]
    if found:
        bad = [name for name in words if any(_covers(name, path) for path, _ in found)]
        values = _compose(config_name, {name: word for name, word in words.items() if name not in bad}, [])
        found = []
        run = _convert(values, schema, "", found) if values is not None else None
    if check and not found and run is not None:
        problems += [text for text in check(run) if text not in problems]
    if problems:
        raise ConfigError(problems)
    return run


def run_hydra(
    task: Callable[[T], None], config_name: str, schema: type[T], check: Callable[[T], list[str]], argv: list[str]
) -> None:
    """Run `task` on the config composed from `argv`. Hydra's own flags (--help, --cfg, --multirun, ...) go to Hydra itself."""
    if not any(word.startswith("-") for word in argv):
        task(load_config(config_name, schema, argv, check))
        return
    register(f"{config_name}_schema", schema)
    forced = []
    for word in argv:
        sortable: dict[str, str] = {}
        if not word.startswith("-") and "=" in word:
            _sort_override(word, schema, [], sortable)
        forced.append(next(iter(sortable.values()), word))

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)
    def main(cfg: DictConfig) -> None:
        run = to_dataclass(OmegaConf.to_container(cfg, resolve=True), schema)
        problems = check(run)
        if problems:
            raise ConfigError(problems)
        task(run)

    sys.argv = [sys.argv[0], *forced]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us, instead of ending the process with a part of their traceback
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def register(name: str, schema: type) -> None:
    """Make the fields and defaults of `schema` available to `configs/*.yaml` as the defaults entry `name`."""
    ConfigStore.instance().store(name=name, node=_skeleton(schema))


def to_dataclass(values: Any, schema: type[T]) -> T:
    """Check plain nested `values` against `schema` and return an instance of it.

    Raises:
        ConfigError: lists every unknown name, wrong type and missing value.
    """
    found: list[tuple[str, str]] = []
    run = _convert(values, schema, "", found)
    if found:
        raise ConfigError([text for _, text in found])
    return run


def to_yaml(config: Any) -> str:
    """The values of a dataclass as YAML that `read_yaml` gives back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def to_plain(config: Any) -> Any:
    """Nested dicts, lists, strings and numbers of a dataclass (enums by their value), for YAML and JSON."""
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    if isinstance(config, dict):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, list):
        return [to_plain(value) for value in config]
    return config.value if isinstance(config, Enum) else config


def read_yaml(path: Path, schema: type[T]) -> T:
    """Read a config saved by `to_yaml`.

    Raises:
        ConfigError: the file is missing, is no YAML, or does not fit `schema`.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; it is written when a run starts") from None
    except Exception as error:  # YAML errors have no common base across OmegaConf and PyYAML
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    try:
        return to_dataclass(values, schema)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


# ---- composing -------------------------------------------------------------------------------------------------------


def _skeleton(schema: type) -> dict[str, Any]:
    """The defaults of a dataclass as a nested dict; sections without a default are opened up, so that Hydra knows their keys."""
    node: dict[str, Any] = {}
    for field, kind in _fields(schema):
        if is_dataclass(kind):
            node[field.name] = _skeleton(kind)  # type: ignore[arg-type]
        elif field.default_factory is not NO_DEFAULT:
            node[field.name] = to_plain(field.default_factory())
        else:
            node[field.name] = MISSING if field.default is NO_DEFAULT else to_plain(field.default)
    return node


def _sort_override(text: str, schema: type, problems: list[str], words: dict[str, str]) -> None:
    """Check one override against groups and schema; put it into `words` in the form that Hydra will accept."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        problems.append(f"{text!r} is not an override: {str(error).splitlines()[0]}; write name=value")
        return
    key = override.key_or_group
    group = CONFIG_DIR / key
    if key.startswith("hydra"):
        words[key] = text
    elif group.is_dir():
        problem = _group_problem(override, group, text)
        if problem:
            problems.append(problem)
        else:
            words[key + " group"] = text  # apart from a value override of the same name
    elif problem := _name_problem(key, schema):
        problems.append(problem)
    else:
        words[key] = text if override.is_delete() else f"++{key}={text.split('=', 1)[1]}"


def _group_problem(override: Override, group: Path, text: str) -> str | None:
    options = sorted(p.stem for p in group.glob("*.yaml"))
    choice = override.value() if not override.is_delete() else None
    if choice is None or override.is_sweep_override() or isinstance(choice, dict):
        return None
    chosen = choice if isinstance(choice, list) else [choice]
    unknown = [str(c) for c in chosen if str(c) not in options]
    if not unknown:
        return None
    return f"{text}: configs/{group.name}/ has no {unknown[0]!r}{_nearest(unknown[0], options)}; options: {', '.join(options)}"


def _name_problem(key: str, schema: type) -> str | None:
    """Say what is wrong with a dotted name, or None. Sections that may be null and dictionaries are followed too."""
    kind: Any = schema
    walked: list[str] = []
    for part in key.split("."):
        kind = _strip_optional(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif is_dataclass(kind):
            known = {field.name: hint for field, hint in _fields(kind)}  # type: ignore[arg-type]
            if part not in known:
                return _unknown(".".join([*walked, part]), part, kind, list(known))
            kind = known[part]
        elif kind is not Any:
            return f"{key}: {'.'.join(walked)} is a {_type_name(kind)} and has no fields"
        walked.append(part)
    return None


def _compose(config_name: str, words: dict[str, str], problems: list[str]) -> Any:
    """The composed values as a plain nested dict, or None; overrides that Hydra refuses are reported and left out."""
    try:
        return _resolve(_compose_words(config_name, list(words.values())), "", problems)
    except (HydraException, OmegaConfBaseException) as whole:
        for name, word in list(words.items()):
            try:
                _compose_words(config_name, [word])
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(f"{word.removeprefix('++')}: {' '.join(str(error).split())}")
                del words[name]
        try:
            return _resolve(_compose_words(config_name, list(words.values())), "", problems)
        except (HydraException, OmegaConfBaseException):
            problems.append(" ".join(str(whole).split()))
            return None


def _compose_words(config_name: str, words: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return hydra.compose(config_name, overrides=words)


def _resolve(node: Any, path: str, problems: list[str]) -> Any:
    """Plain values of a DictConfig; an interpolation that cannot be resolved is reported unless what it needs is missing."""
    if isinstance(node, DictConfig):
        if node._is_none():
            return None
        out = {}
        for key in node:
            here = f"{path}.{key!s}" if path else str(key)
            if OmegaConf.is_missing(node, key):
                out[str(key)] = MISSING
                continue
            try:
                out[str(key)] = _resolve(node[key], here, problems)
            except OmegaConfBaseException as error:
                out[str(key)] = _UNRESOLVED
                if "MissingMandatoryValue" not in str(error) and "InterpolationToMissing" not in type(error).__name__:
                    problems.append(f"{here}: {str(error).splitlines()[0]}")
        return out
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


# ---- converting ------------------------------------------------------------------------------------------------------


def _convert(value: Any, kind: Any, path: str, found: list[tuple[str, str]]) -> Any:
    """`value` as an instance of `kind`; what does not fit is appended to `found` as (dotted name, problem)."""
    if isinstance(value, str) and value == MISSING:
        found.append((path, f"{path} is missing: give {path}=<{_type_name(kind)}>"))
        return None
    if value is _UNRESOLVED:
        found.append((path, ""))
        return None
    optional = _strip_optional(kind)
    if value is None and optional is not kind:
        return None
    kind = optional
    if is_dataclass(kind):
        return _convert_section(value, kind, path, found)  # type: ignore[arg-type]
    if get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        return {str(k): _convert(v, inner, f"{path}.{k}", found) for k, v in value.items()}
    if get_origin(kind) is list and isinstance(value, list):
        inner = get_args(kind)[0]
        return [_convert(v, inner, f"{path}[{i}]", found) for i, v in enumerate(value)]
    return _convert_leaf(value, kind, path, found)


def _convert_section(value: Any, kind: type, path: str, found: list[tuple[str, str]]) -> Any:
    if not isinstance(value, dict):
        found.append((path, f"{path or 'the config'}={value!r} is not a section with fields of {kind.__name__}"))
        return None
    hints = {field.name: (field, hint) for field, hint in _fields(kind)}
    for name in value:
        if name not in hints and not (path == "" and name == "hydra"):
            here = f"{path}.{name}" if path else str(name)
            found.append((here, _unknown(here, str(name), kind, list(hints))))
    arguments = {}
    before = len(found)
    for name, (field, hint) in hints.items():
        here = f"{path}.{name}" if path else name
        if name in value:
            arguments[name] = _convert(value[name], hint, here, found)
        elif field.default_factory is not NO_DEFAULT:
            arguments[name] = field.default_factory()
        else:
            default = MISSING if field.default is NO_DEFAULT else field.default
            arguments[name] = _convert({} if _opens(default, hint) else default, hint, here, found)
    return kind(**arguments) if len(found) == before else None


def _opens(default: Any, hint: Any) -> bool:
    """A section without a default still has its own defaults and may be whole."""
    return isinstance(default, str) and default == MISSING and is_dataclass(hint)


def _convert_leaf(value: Any, kind: Any, path: str, found: list[tuple[str, str]]) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        options = [str(member.value) for member in kind]
        if isinstance(value, str | Enum) and str(value) in options:
            return kind(str(value))
        found.append((path, f"{path}={value} is not one of {', '.join(options)}{_nearest(str(value), options)}"))
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
    found.append((path, f"{path}={value!r} is a {type(value).__name__}, must be a {_type_name(kind)}{hint}"))
    return None


def _fields(schema: type) -> list[tuple[Any, Any]]:
    """(dataclass field, resolved type) of every field."""
    hints = get_type_hints(schema)
    return [(field, hints[field.name]) for field in fields(schema)]


def _strip_optional(kind: Any) -> Any:
    """X for X | None, else the type itself."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [arg for arg in get_args(kind) if arg is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return kind


def _type_name(kind: Any) -> str:
    kind = _strip_optional(kind)
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)


def _unknown(here: str, name: str, kind: Any, known: list[str]) -> str:
    return f"{here} is not a field of {kind.__name__}{_nearest(name, known)}; fields: {', '.join(sorted(known))}"


def _nearest(name: str, options: list[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _covers(override: str, path: str) -> bool:
    """The override set this name, or something around or inside it."""
    name = override.removesuffix(" group")
    return f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") or path.startswith(f"{name}[")
