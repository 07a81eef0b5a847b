"""alembic's way in: the connection comes from `thumbtune.store.migrate`, already in a transaction."""

from __future__ import annotations

from alembic import context

from thumbtune.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
