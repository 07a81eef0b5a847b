"""Rows to a JSONL file, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from thumbtune.errors import ConfigError


def dump_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line, keys sorted, letters as they are: the same rows give the same bytes."""
    return "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `ConfigError` where a file stands in the way or its folder is missing, before any work is done."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: name another file, or add --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder of {path} does not exist: make it first")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool = False) -> None:
    """Write the rows through a temporary file beside the target, so that a reader never sees half of them."""
    check_target(path, overwrite=overwrite)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(dump_rows(rows))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
