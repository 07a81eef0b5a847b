"""Opening a store, bringing it up to date, and saying what went wrong."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, inspect, text
from sqlalchemy.exc import IntegrityError

from store.conftest import make_completion, make_vote
from thumbtune.errors import ConfigError, StoreError
from thumbtune.store.database import Store
from thumbtune.store.reading import list_votes
from thumbtune.store.schema import completions, metadata
from thumbtune.store.votes import Press, write_completions, write_votes

FIRST_STORE = Path(__file__).parent / "data" / "first_store.sql"


def test_the_migrations_make_exactly_the_tables_of_the_schema(store: Store) -> None:
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_store_of_the_first_landed_schema_keeps_its_rows(store_url: str) -> None:
    if "://" in store_url:
        import psycopg

        with psycopg.connect(store_url, autocommit=True) as connection:
            connection.execute(FIRST_STORE.with_name("first_store.postgresql.sql").read_text())
    else:
        import sqlite3

        with sqlite3.connect(store_url) as file:
            file.executescript(FIRST_STORE.read_text())
        file.close()
    opened = Store(store_url)
    (vote,) = list_votes(opened)
    assert (vote["completion_id"], vote["label"], vote["comment"]) == ("chatcmpl-1", False, "yanlış 👎")
    assert vote["messages"] == [{"role": "user", "content": "Başkent neresi?"}]
    with opened.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    opened.close()


def test_a_store_of_a_newer_thumbtune_is_refused(store: Store, store_url: str) -> None:
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer thumbtune.*9999"):
        Store(store_url)


def test_two_processes_may_open_a_new_store_at_once(store_url: str) -> None:
    code = f"from thumbtune.store.database import Store; Store({store_url!r}).check()"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint.decode()


def test_a_sqlite_store_is_durable_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    store = Store(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with store.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    store.close()


def test_closing_waits_for_what_another_thread_reads(store_url: str) -> None:
    store = Store(store_url)
    reads, may_end = threading.Event(), threading.Event()

    def read() -> None:
        with store.read() as connection:
            reads.set()
            may_end.wait(10)
            connection.execute(text("SELECT 1"))

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read)
        assert reads.wait(10)
        closing = pool.submit(store.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.2)
        with pytest.raises(StoreError, match="closed"):
            store.check()
        may_end.set()
        closing.result(timeout=10)
        reading.result(timeout=10)


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("mysql://host/votes", ConfigError, "mysql is not supported"),
        ("sqlite://", ConfigError, "needs a file"),
        ("sqlite:///:memory:", ConfigError, "needs a file"),
        ("nowhere/at/all/votes.db", StoreError, "the folder nowhere/at/all does not exist"),
        ("postgresql://votes:hush@127.0.0.1:1/votes", StoreError, "database server running"),
    ],
)
def test_an_address_that_cannot_hold_is_refused_in_words(
    url: str, error: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says) as caught:
        Store(url)
    assert "hush" not in str(caught.value)


def test_a_command_that_reads_does_not_make_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        Store(str(tmp_path / "typo.db"), must_exist=True)
    assert not (tmp_path / "typo.db").exists()


def test_a_full_disk_says_so_and_nothing_is_half_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "votes.db"))

    @event.listens_for(store.engine, "begin")
    def _limit(connection: object) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={limit}")  # type: ignore[attr-defined]

    limit = 60
    large = make_completion("large", completion={"role": "assistant", "content": "x" * 2_000_000})
    store.engine.dispose()
    with (
        pytest.raises(StoreError, match=r"full\. Nothing of this request was stored\. Free some space"),
        store.write() as c,
    ):
        write_completions(c, [make_completion("small"), large])
    limit = 1_000_000
    with store.write() as connection:
        assert write_completions(connection, [make_completion("small"), large]) == 2
        assert write_votes(connection, [Press(make_vote("small"))]) == ["recorded"]
    store.close()


def test_a_value_never_stands_in_an_error(store: Store) -> None:
    row = {
        "id": "a",
        "user_key": "my secret",
        "conversation_key": "c",
        "finish_reason": "stop",
        "arm": "champion",
    }
    row |= {"model_version": "m", "sampling": {}, "created_us": 1, "source": "gateway"}

    def insert_row() -> None:
        with store.write() as connection:
            connection.execute(completions.insert().values(**row))

    insert_row()
    with pytest.raises(IntegrityError) as caught:
        insert_row()
    assert "my secret" not in str(caught.value)


def test_every_table_and_column_is_there(store: Store) -> None:
    found = inspect(store.engine)
    assert set(found.get_table_names()) == {*metadata.tables, "alembic_version"}
