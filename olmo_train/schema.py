"""Hydra's edge: the one place where YAML and command-line words become a plain dataclass.

Hydra composes the values untyped; `to_dataclass` then checks them against the dataclass and reports every problem at once.
(Hydra's own typed composition stops at the first one and exits with 1.) Nothing past this file sees a DictConfig.
"""

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from olmo_train.conversion import UNRESOLVED, convert, fields_of, nearest, strip_optional, type_name, unknown_name
from olmo_train.errors import ConfigError

T = TypeVar("T")
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
    run = convert(values, schema, "", found)
    problems += [text for _, text in found if text]
    if found:
        bad = [name for name in words if any(_covers(name, path) for path, _ in found)]
        values = _compose(config_name, {name: word for name, word in words.items() if name not in bad}, [])
        found = []
        run = convert(values, schema, "", found) if values is not None else None
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
    run = convert(values, schema, "", found)
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
    values = OmegaConf.to_container(_load_yaml(path), resolve=True)
    try:
        return to_dataclass(values, schema)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None


def load_saved(
    path: Path,
    schema: type[T],
    overrides: list[str],
    check: Callable[[T], list[str]] | None = None,
    section: str | None = None,
) -> T:
    """Read one YAML file of a whole config, as `to_yaml` saves it, and change values of it by `name=value`.

    Nothing of `configs/` is looked at. `section`: the file holds only this section of `schema`, and the overrides name it.

    Raises:
        ConfigError: as `load_config`, all problems at once; those of the file itself begin with its name.
    """
    node = _load_yaml(path)
    if section is not None:
        node = OmegaConf.create({section: node})
    problems: list[str] = []
    words: dict[str, str] = {}
    for text in overrides:
        _sort_override(text, schema, problems, words)
    changed = _changed(node, words, problems)
    found: list[tuple[str, str]] = []
    run = convert(_resolve(changed, "", problems), schema, "", found)
    problems += [text if any(_covers(word, name) for word in words) else f"{path}: {text}" for name, text in found if text]
    if found:
        good = {name: word for name, word in words.items() if not any(_covers(name, where) for where, _ in found)}
        run = convert(_resolve(_changed(node, good, []), "", []), schema, "", [])
    if check and run is not None:
        problems += [text for text in check(run) if text not in problems]
    if problems or run is None:
        raise ConfigError(problems)
    return run


def _changed(node: Any, words: dict[str, str], problems: list[str]) -> Any:
    """A copy of a saved config with values set; words that cannot be applied are reported and left out."""
    node = copy.deepcopy(node)
    for name, word in list(words.items()):
        if name.endswith(" group"):
            problems.append(f"{word} chooses a file of configs/, but a saved config holds values only; give them by their names")
        elif not word.startswith("++"):
            problems.append(f"{word} cannot be applied to a saved config; write name=value")
        else:
            try:
                value = OverridesParser.create().parse_override(word).value()
                OmegaConf.update(node, name, value, merge=True, force_add=True)
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(f"{word.removeprefix('++')}: {str(error).splitlines()[0]}")
    return node


def _load_yaml(path: Path) -> DictConfig:
    try:
        node = OmegaConf.load(path)
        OmegaConf.to_container(node, resolve=True)  # an interpolation that leads nowhere is told here, with the file's name
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; it is written when a run starts") from None
    except Exception as error:  # YAML errors have no common base across OmegaConf and PyYAML
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} is not a list of `name: value` lines")
    return node


# ---- composing -------------------------------------------------------------------------------------------------------


def _skeleton(schema: type) -> dict[str, Any]:
    """The defaults of a dataclass as a nested dict; sections without a default are opened up, so that Hydra knows their keys."""
    node: dict[str, Any] = {}
    for field, kind in fields_of(schema):
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
    return f"{text}: configs/{group.name}/ has no {unknown[0]!r}{nearest(unknown[0], options)}; options: {', '.join(options)}"


def _name_problem(key: str, schema: type) -> str | None:
    """Say what is wrong with a dotted name, or None. Sections that may be null and dictionaries are followed too."""
    kind: Any = schema
    walked: list[str] = []
    for part in key.split("."):
        kind = strip_optional(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif is_dataclass(kind):
            known = {field.name: hint for field, hint in fields_of(kind)}  # type: ignore[arg-type]
            if part not in known:
                return unknown_name(".".join([*walked, part]), part, kind, list(known))
            kind = known[part]
        elif kind is not Any:
            return f"{key}: {'.'.join(walked)} is a {type_name(kind)} and has no fields"
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
                out[str(key)] = UNRESOLVED
                if "MissingMandatoryValue" not in str(error) and "InterpolationToMissing" not in type(error).__name__:
                    problems.append(f"{here}: {str(error).splitlines()[0]}")
        return out
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _covers(override: str, path: str) -> bool:
    """The override set this name, or something around or inside it."""
    name = override.removesuffix(" group")
    return f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") or path.startswith(f"{name}[")
