"""One open store: where it is, how it is read, how it is written, and what went wrong in words.

Guaranteed: a transaction of `write` is on disk when the block ends (SQLite: write-ahead log, `synchronous=FULL`;
PostgreSQL: its own commit, unless the server was told otherwise). Opening brings an older store up to date
(`migrations/`) and refuses one that a newer thumbtune wrote.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from thumbtune.errors import ConfigError, StoreError
from thumbtune.store.migrate import migrate

BUSY_SECONDS = 5
"""How long a writer waits for another process that holds SQLite's write lock."""

CLOSE_SECONDS = 5
"""How long closing waits for what other threads are reading or writing."""

CHECKPOINT_PAGES = 10_000
"""Pages of 4 KiB in SQLite's log before a commit has to carry them into the file; `Store.checkpoint` comes before."""


class Store:
    """A SQLite file or a PostgreSQL database, opened and up to date.

    `url` is `sqlite:///votes.db`, a plain path, or `postgresql://user:password@host/database`.
    Raises `StoreError` where it cannot be opened and `ConfigError` where the address makes no sense.
    """

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        self.url = read_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            _prepare_file(Path(str(self.url.database)), must_exist)
        self.engine = _create_engine(self.url)
        snapshot = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reading = self.engine.execution_options(**snapshot)
        self._writing = self.engine.execution_options(begins_with="BEGIN IMMEDIATE")
        self._closed = False
        try:
            with explain_errors(self.address):
                migrate(self)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """The URL without its password, for messages and logs."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the store."""
        self._refuse_closed()
        with explain_errors(self.address), self._reading.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction, durable once the block has ended without an error."""
        self._refuse_closed()
        with explain_errors(self.address), self._writing.begin() as connection:
            yield connection

    def check(self) -> None:
        """Raises `StoreError` where the store does not answer."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def checkpoint(self) -> None:
        """Carry SQLite's log into its file beside the writers, so that no commit has to wait for it."""
        if self.is_sqlite:
            with explain_errors(self.address), self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Give the connections back, once what other threads do with them has ended; reads and writes are then refused.

        A task that is cancelled leaves its thread running, in the middle of a read.
        """
        self._closed = True
        deadline = time.monotonic() + CLOSE_SECONDS
        pool = cast(QueuePool, self.engine.pool)
        while pool.checkedout() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.engine.dispose()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreError(f"{self.address}: this store was closed; open it again")


def read_url(url: str) -> URL:
    """The address as SQLAlchemy's; a plain path is a SQLite file."""
    if "://" not in url:
        url = f"sqlite:///{Path(url).expanduser()}"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError(f"store address '{url.split('@')[-1]}' cannot be read: {_ADDRESSES}") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql" or parsed.drivername == "postgres":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"a store on {backend} is not supported: {_ADDRESSES}")
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError(f"a store needs a file, since votes have to outlive the process: {_ADDRESSES}")
    return parsed


_ADDRESSES = "give a file, sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE"


@contextmanager
def explain_errors(address: str) -> Iterator[None]:
    """Database errors as `StoreError`s that say what to do; what is wrong with a row passes, it is ours to settle."""
    try:
        yield
    except (IntegrityError, DataError):
        raise
    except PoolTimeout as error:
        raise StoreError(f"{address}: all connections are in use; try again") from error
    except DBAPIError as error:
        cause = (
            str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        )
        raise StoreError(f"{address}: {cause}. {_advise(cause)}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{address}: {type(error).__name__}") from error


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


def _advise(cause: str) -> str:
    lowered = cause.lower()
    if "full" in lowered or "no space" in lowered:
        return "Nothing of this request was stored. Free some space; no restart is needed."
    if "readonly" in lowered or "read-only" in lowered:
        return "Nothing of this request was stored. Make the file and its folder writable."
    if "locked" in lowered or "busy" in lowered:
        return "Another process holds the write lock; try again."
    if "connect" in lowered or "refused" in lowered or "closed" in lowered or "terminat" in lowered:
        return "Is the database server running, and reachable from here?"
    return "Nothing of this request was stored."


def _prepare_file(path: Path, must_exist: bool) -> None:
    """A new file is for its owner alone: it will hold what people wrote."""
    if must_exist and not path.is_file():
        raise StoreError(
            f"{path}: there is no such store: name one (--store, THUMBTUNE_STORE); `thumbtune serve` makes a new one"
        )
    if path.exists():
        return
    if not path.parent.is_dir():
        raise StoreError(f"{path}: the folder {path.parent} does not exist: make it first")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreError(f"{path}: cannot be made: {error.strerror}") from error


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(
            url,
            hide_parameters=True,
            pool_pre_ping=True,
            json_serializer=_dump_json,
            connect_args={
                "connect_timeout": 10,
                "keepalives_idle": 10,  # a server that is gone without a word is noticed within half a minute
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 25_000,
                "prepare_threshold": None,
            },  # a plan of an empty table grows old
        )
    engine = create_engine(
        url, hide_parameters=True, json_serializer=_dump_json, pool_size=8, max_overflow=32
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late; ours is below
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={BUSY_SECONDS * 1000}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begins_with", "BEGIN"))

    return engine


def _dump_json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
