"""Settings from a file and from the command line, checked against the fields of a config."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from thumbtune.errors import ConfigError
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.methods import METHODS

CONFIGS: dict[str, type[PreferenceConfig]] = {name: method.config for name, method in METHODS.items()}


LORA_DEFAULTS: dict[str, Any] = {"learning_rate": 2e-4}
FULL_DEFAULTS: dict[str, Any] = {"learning_rate": 5e-6}
SHARED_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_steps": 25,
    "save_total_limit": 2,
    "disable_tqdm": True,
}
THUMB_DEFAULTS: dict[str, Any] = {"desirable_weight": "auto", "undesirable_weight": "auto"}


def default_settings(method: str, *, full: bool = False) -> dict[str, Any]:
    """What command line and loop train with unless told otherwise."""
    weights = THUMB_DEFAULTS if method in ("kto", "bco") else {}
    return SHARED_DEFAULTS | weights | (FULL_DEFAULTS if full else LORA_DEFAULTS)


def config_class(method: str) -> type[PreferenceConfig]:
    """The config of a method. Raises `ConfigError` naming the methods that there are."""
    if method not in CONFIGS:
        raise ConfigError(f"unknown method '{method}': {', '.join(CONFIGS)}{_suggest(method, CONFIGS)}")
    return CONFIGS[method]


def build_config(method: str, settings: Mapping[str, Any]) -> PreferenceConfig:
    """A method's config; unknown names and values of the wrong type are `ConfigError`s."""
    chosen = config_class(method)
    known = {field.name: field for field in dataclasses.fields(chosen) if field.init}
    foreign = getattr(chosen, "foreign_fields", {})
    hints = typing.get_type_hints(chosen)
    checked = {}
    for name, value in settings.items():
        key = name.replace("-", "_")
        if key in foreign:
            checked[key] = _read_plain(value)
            continue
        if key not in known:
            raise ConfigError(f"unknown setting '{name}' of method {method}{_suggest(key, known)}")
        checked[key] = _fit_type(key, value, hints[key])
    try:
        return chosen(**checked)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"these settings do not go together: {error}") from error


def list_own_fields(config: type[PreferenceConfig]) -> list[tuple[str, Any, str]]:
    """(name, default, documentation) of the settings that thumbtune adds to `TrainingArguments`."""
    theirs = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    return [
        (field.name, field.default, field.metadata["help"])
        for field in dataclasses.fields(config)
        if field.init and (field.name not in theirs or theirs[field.name] != field.default)
    ]


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a TOML, YAML or JSON file that holds one table."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the config file cannot be read: {error}") from error
    try:
        if path.suffix == ".toml":
            content: Any = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            content = yaml.safe_load(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        else:
            raise ConfigError(f"{path}: a config file ends in .toml, .yaml or .json")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}: the config file cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config file holds settings by name, such as `learning_rate = 2e-4`")
    return content


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--learning-rate 2e-4 --beta=0.2` as a dict; names keep their spelling."""
    settings: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"unexpected argument '{argument}': settings are given as --name value")
        name, equals, value = argument.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"setting --{name} has no value: give it as --{name} VALUE")
            value = rest.pop(0)
        settings[name] = value
    return settings


def _fit_type(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type: text from the command line is read as JSON where the field is no text."""
    accepted = _plain_types(hint)
    if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in accepted:
        return None
    if isinstance(value, str) and (str not in accepted or float in accepted or _is_list(value, accepted)):
        try:
            value = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            if str not in accepted:
                raise _wrong_type(name, value, accepted) from None
    if isinstance(value, bool) and bool not in accepted:
        raise _wrong_type(name, value, accepted)
    if isinstance(value, int) and not isinstance(value, bool) and float in accepted and int not in accepted:
        value = float(value)
    if isinstance(value, float) and value.is_integer() and int in accepted and float not in accepted:
        value = int(value)
    if object not in accepted and not isinstance(value, tuple(accepted)):
        raise _wrong_type(name, value, accepted)
    return value


def _is_list(value: str, accepted: set[type]) -> bool:
    return list in accepted and value.startswith("[")


def _read_plain(value: Any) -> Any:
    """Text from the command line as the number, truth or nothing that it spells, else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return None if value.lower() == "none" else json.loads(value.lower())
    except json.JSONDecodeError:
        return value


def _plain_types(hint: Any) -> set[type]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_plain_types(part) for part in typing.get_args(hint)))
    if origin is typing.Literal:
        return {type(choice) for choice in typing.get_args(hint)}
    if hint is Any:
        return {object}
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, str):  # enums of text are given as text
        return {str}
    return {kind} if isinstance(kind, type) else {object}


def _wrong_type(name: str, value: Any, accepted: set[type]) -> ConfigError:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    wanted = " or ".join(sorted(words.get(kind, kind.__name__) for kind in accepted))
    return ConfigError(f"setting {name}={value!r}: expected {wanted}")


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
