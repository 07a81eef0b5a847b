"""A copy of the whole store while it is in use."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

from sqlalchemy.engine import URL

from thumbtune.errors import ConfigError, StoreError
from thumbtune.store.database import Store


def back_up(store: Store, target: Path) -> None:
    """Copy the store as of one moment: a SQLite file, or what `pg_dump` writes in its custom format.

    Raises `ConfigError` where the target is there already, `StoreError` where the copy fails.
    """
    if target.exists():
        raise ConfigError(f"{target} exists: name a new file, so that no back-up is overwritten")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder {target.parent} does not exist: make it first")
    staging = target.with_name(target.name + ".part")
    os.close(os.open(staging, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
    try:
        if store.is_sqlite:
            _copy_sqlite(str(store.url.database), staging)
        else:
            _dump_postgres(store, staging)
        os.replace(staging, target)
    finally:
        staging.unlink(missing_ok=True)


def _copy_sqlite(source: str, target: Path) -> None:
    try:
        with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as origin, sqlite3.connect(target) as copy:
            origin.backup(
                copy
            )  # in one step: with a write-ahead log nobody waits, and it ends under load, too
        copy.close()
        origin.close()
    except sqlite3.Error as error:
        raise StoreError(f"{target}: the back-up failed: {error}") from error


def _dump_postgres(store: Store, target: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise ConfigError("pg_dump is not installed: install PostgreSQL's client tools")
    url = URL.create(
        "postgresql", store.url.username, None, store.url.host, store.url.port, store.url.database
    )
    environment = dict(os.environ)
    if store.url.password:
        environment["PGPASSWORD"] = str(store.url.password)
    done = subprocess.run(
        [program, "--format=custom", f"--file={target}", url.render_as_string(hide_password=False)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StoreError(f"{store.address}: pg_dump failed: {done.stderr.strip()[:300]}")
