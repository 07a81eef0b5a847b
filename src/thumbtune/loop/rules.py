"""Rules from JSON or TOML: a dataclass of settings, with unknown names and values of the wrong kind refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from thumbtune.errors import ConfigError

Rules = TypeVar("Rules")


def read_fields(kind: type[Rules], content: Mapping[str, Any], what: str) -> Rules:
    """The rules that `content` names, defaults for the rest; lists become tuples. Raises `ConfigError`."""
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    unknown = set(content) - set(names)
    if unknown:
        raise ConfigError(f"there is no {what} '{min(unknown)}': {', '.join(names)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(f"a {what} has a value of the wrong kind ({error})") from error
