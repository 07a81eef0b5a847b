"""API keys: made once, shown once, kept as a hash; and the audit trail of what admins did.

A key has 256 random bits, so one round of SHA-256 hides it: there is no word list to try.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, insert, select, update

from thumbtune.errors import ConfigError
from thumbtune.store.database import Store, now_us
from thumbtune.store.schema import api_keys, audit

Role = Literal["client", "voter", "admin"]
"""client: chats, and votes on what it was served. voter: votes on any completion, does not chat. admin: everything."""

PREFIX = "tt-"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store knows it: without its secret."""

    id: str
    name: str
    role: Role
    speaks_for_users: bool
    created_us: int
    revoked_us: int | None


def create_key(
    store: Store, name: str, role: Role, *, speaks_for_users: bool = False, actor: str = "command line"
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown this once. Raises `ConfigError`."""
    if role not in get_args(Role):
        raise ConfigError(f"there is no role '{role}': client, voter or admin")
    if not 1 <= len(name) <= 100:
        raise ConfigError(f"a key's name has 1 to 100 characters, got {len(name)}")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(secrets.token_hex(6), name, role, speaks_for_users, now_us(), None)
    with store.write() as connection:
        connection.execute(
            insert(api_keys).values(
                id=key.id,
                name=name,
                role=role,
                secret_hash=hash_secret(secret),
                speaks_for_users=speaks_for_users,
                created_us=key.created_us,
            )
        )
        write_audit(connection, actor, "create key", {"key": key.id, "role": role})
    return key, secret


def list_keys(store: Store) -> list[ApiKey]:
    """Every key, revoked ones too, oldest first."""
    with store.read() as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.created_us))
        return [_as_key(row) for row in rows]


def revoke_key(store: Store, key_id: str, *, actor: str = "command line") -> None:
    """The key opens nothing from now on; what it did stays. Raises `ConfigError` for an unknown one."""
    with store.write() as connection:
        done = connection.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_us.is_(None))
            .values(revoked_us=now_us())
        )
        if not done.rowcount:
            raise ConfigError(f"there is no key '{key_id}' in use: `thumbtune keys list` shows them")
        write_audit(connection, actor, "revoke key", {"key": key_id})


def find_keys_by_hash(store: Store) -> dict[str, ApiKey]:
    """The keys in use, by the hash of their secret."""
    with store.read() as connection:
        rows = connection.execute(select(api_keys).where(api_keys.c.revoked_us.is_(None)))
        return {row.secret_hash: _as_key(row) for row in rows}


def hash_secret(secret: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def write_audit(connection: Connection, actor: str, act: str, details: Mapping[str, Any]) -> None:
    """One line of the trail, in the transaction of the act itself. `details`: names and counts, never a user's text."""
    connection.execute(insert(audit).values(at_us=now_us(), actor=actor, act=act, details=dict(details)))


def list_audit(store: Store, limit: int = 200) -> list[dict[str, Any]]:
    """The newest lines first."""
    with store.read() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(limit))
        return [dict(row._mapping) for row in rows]


def _as_key(row: Any) -> ApiKey:
    return ApiKey(row.id, row.name, row.role, row.speaks_for_users, row.created_us, row.revoked_us)
