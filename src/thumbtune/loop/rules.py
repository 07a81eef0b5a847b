"""Rules from JSON or TOML: a dataclass of settings, with unknown names and values of the wrong kind refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from thumbtune.errors import ConfigError

Rules = TypeVar("Rules")


def read_fields(kind: type[Rules], content: Mapping[str, Any], what: str) -> Rules:
    """The rules that `content` names, defaults for the rest; lists become tuples. Raises `ConfigError`.

    Numbers have to be finite: whatever is compared with NaN passes.
    """
    hints = get_type_hints(kind)
    unknown = set(content) - set(hints)
    if unknown:
        raise ConfigError(f"there is no {what} '{min(unknown)}': {', '.join(hints)}")
    return kind(**{name: _fit(value, hints[name], f"{what} '{name}'") for name, value in content.items()})


def _fit(value: Any, hint: Any, what: str) -> Any:
    try:
        fitting = TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{what} is {value!r}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    if isinstance(fitting, float) and not math.isfinite(fitting):
        raise ConfigError(f"{what} is {value!r}: expected a finite number")
    return fitting
