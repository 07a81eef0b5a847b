"""Model versions and the pointer to the one in service.

A version's name is its content, so it never means two things. "champion" is a row that points: a promotion and the
way back change that row in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, update

from thumbtune.errors import ConfigError
from thumbtune.store.database import Store, now_us
from thumbtune.store.keys import write_audit
from thumbtune.store.schema import canaries, model_versions, pointers

CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version and where it comes from."""

    version: str
    kind: str
    """base, adapter or upstream."""
    location: str
    """Folder, hub name, or the upstream's name for it."""
    parent: str | None = None
    snapshot: str | None = None
    """Digest of the snapshot that it learned from."""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created_us: int = 0


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a name means now, and what it meant before."""

    name: str
    version: str
    previous: str | None
    changed_us: int


def register_version(store: Store, version: ModelVersion) -> None:
    """Make a version known; one that is known already stays as it is."""
    with store.write() as connection:
        known = connection.scalar(
            select(model_versions.c.version).where(model_versions.c.version == version.version)
        )
        if known is None:
            connection.execute(
                insert(model_versions).values(
                    version=version.version,
                    kind=version.kind,
                    location=version.location,
                    parent=version.parent,
                    snapshot=version.snapshot,
                    config=dict(version.config),
                    metrics=dict(version.metrics),
                    created_us=version.created_us or now_us(),
                )
            )


def list_versions(store: Store) -> list[ModelVersion]:
    """Every version, oldest first."""
    with store.read() as connection:
        rows = connection.execute(select(model_versions).order_by(model_versions.c.created_us))
        return [ModelVersion(**row._mapping) for row in rows]


def find_pointer(store: Store, name: str = CHAMPION) -> Pointer | None:
    """Where a name points, or None."""
    with store.read() as connection:
        return _find(connection, name)


def find_version(store: Store, version: str) -> ModelVersion:
    """One version. Raises `ConfigError` where there is none of this name."""
    with store.read() as connection:
        row = connection.execute(select(model_versions).where(model_versions.c.version == version)).first()
    if row is None:
        raise _unknown(version)
    return ModelVersion(**row._mapping)


def trace_lineage(store: Store, version: str) -> list[ModelVersion]:
    """A version and its line of parents, newest first. Raises `ConfigError` where there is none of this name."""
    known = {one.version: one for one in list_versions(store)}
    if version not in known:
        raise _unknown(version)
    line = [known[version]]
    while (parent := line[-1].parent) in known and known[parent] not in line:
        line.append(known[parent])
    return line


def record_metrics(store: Store, version: str, metrics: Mapping[str, Any]) -> None:
    """Add to what is known of a version; a name that is there is replaced."""
    with store.write() as connection:
        known = connection.scalar(select(model_versions.c.metrics).where(model_versions.c.version == version))
        if known is None:
            raise _unknown(version)
        connection.execute(
            update(model_versions)
            .where(model_versions.c.version == version)
            .values(metrics={**known, **metrics})
        )


def point(store: Store, version: str, *, name: str = CHAMPION, actor: str) -> Pointer:
    """Let a name mean another version, in one transaction with its line in the audit trail. Raises `ConfigError`.

    A canary that runs was held against the champion before: it ends, withdrawn.
    """
    with store.write() as connection:
        return point_within(connection, version, name=name, actor=actor)


def point_back(store: Store, *, name: str = CHAMPION, actor: str) -> Pointer:
    """The way back: a name means what it meant before. Raises `ConfigError` where there was nothing before."""
    with store.write() as connection:
        pointer = _find(connection, name)
        if pointer is None or pointer.previous is None:
            raise ConfigError(f"there is no earlier {name} to go back to")
        return point_within(connection, pointer.previous, name=name, actor=actor)


def point_within(connection: Connection, version: str, *, name: str = CHAMPION, actor: str) -> Pointer:
    """`point` as a part of a larger transaction."""
    known = connection.scalar(select(model_versions.c.version).where(model_versions.c.version == version))
    if known is None:
        raise _unknown(version)
    before = _find(connection, name)
    if before is not None and before.version == version:
        return before
    after = Pointer(name, version, before.version if before else None, now_us())
    values = {"version": version, "previous": after.previous, "changed_us": after.changed_us}
    if before is None:
        connection.execute(insert(pointers).values(name=name, **values))
    else:
        connection.execute(update(pointers).where(pointers.c.name == name).values(**values))
    if name == CHAMPION:
        connection.execute(
            update(canaries)
            .where(canaries.c.state == "running")
            .values(state="withdrawn", ended_us=after.changed_us)
        )
    write_audit(connection, actor, "point", {"name": name, "to": version, "from": after.previous})
    return after


def _unknown(version: str) -> ConfigError:
    return ConfigError(f"there is no model version '{version}': `thumbtune models list` shows them")


def _find(connection: Connection, name: str) -> Pointer | None:
    row = connection.execute(select(pointers).where(pointers.c.name == name)).first()
    return None if row is None else Pointer(row.name, row.version, row.previous, row.changed_us)
