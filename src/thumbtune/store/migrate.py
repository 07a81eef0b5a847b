"""Bringing a store to the tables of this version, by alembic; several processes may try at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from thumbtune.errors import StoreError

if TYPE_CHECKING:
    from thumbtune.store.database import Store

_LOCK = 0x7468756D  # any number: all thumbtune processes take the same one


def migrate(store: Store, revision: str = "head") -> None:
    """Upgrade to `revision`. Raises `StoreError` for a store that a newer thumbtune wrote."""
    config = Config()
    config.set_main_option("script_location", "thumbtune.store:migrations")
    script = ScriptDirectory.from_config(config)
    with store.read() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head() and revision == "head":
        return
    if current is not None and current not in {known.revision for known in script.walk_revisions()}:
        raise StoreError(
            f"{store.address}: written by a newer thumbtune (tables of '{current}'): upgrade this one"
        )
    with store.write() as connection:
        if not store.is_sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
