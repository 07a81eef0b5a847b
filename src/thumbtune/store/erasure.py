"""A user's right to be forgotten, and the end of what is kept too long.

Rows stay as counts, text goes: an erased completion keeps when, which version and how it ended. What was already
frozen or trained is named, since only people can decide what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select, update

from thumbtune.store.database import Store, now_us
from thumbtune.store.keys import write_audit
from thumbtune.store.schema import (
    ERASED_USER,
    completions,
    erasures,
    model_versions,
    snapshot_completions,
    votes,
)


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased, and what had already learned from it."""

    user_key: str
    n_completions: int
    n_votes: int
    snapshots: list[str]
    """Digests of the snapshots and exports that hold text of this user."""
    versions: list[str]
    """Model versions that learned from them, and those that were trained on from these."""


def erase_user(store: Store, user_key: str, *, actor: str) -> Erasure:
    """Erase a user's completions' text and all their votes, in one transaction; others' words on them go too."""
    with store.write() as connection:
        own = select(completions.c.id).where(completions.c.user_key == user_key)
        voted = select(votes.c.completion_id).where(votes.c.user_key == user_key)
        touched = snapshot_completions.c.completion_id
        digests = sorted(
            connection.scalars(
                select(snapshot_completions.c.digest).where(touched.in_(own) | touched.in_(voted)).distinct()
            )
        )
        versions = _find_learners(connection, digests)
        n_votes = connection.execute(delete(votes).where(votes.c.user_key == user_key)).rowcount
        connection.execute(
            update(votes).where(votes.c.completion_id.in_(own)).values(comment=None, correction=None)
        )
        n_completions = _erase_texts(connection, completions.c.user_key == user_key, forget_user=True)
        erasure = Erasure(user_key, n_completions, n_votes, digests, versions)
        connection.execute(
            insert(erasures).values(
                at_us=now_us(),
                user_key=user_key,
                n_completions=n_completions,
                n_votes=n_votes,
                snapshots=digests,
                versions=versions,
            )
        )
        write_audit(
            connection,
            actor,
            "erase user",
            {"user": user_key, "n_completions": n_completions, "n_votes": n_votes},
        )
    return erasure


def was_touched(store: Store, digest: str) -> bool:
    """Whether somebody who is in a snapshot was erased since it was entered."""
    with store.read() as connection:
        return any(digest in found for found in connection.scalars(select(erasures.c.snapshots)))


def apply_retention(
    store: Store, *, voted_days: float | None, unvoted_days: float | None, actor: str
) -> dict[str, int]:
    """Erase texts older than so many days, voted-on and never voted-on ones apart; None keeps them. Gives counts."""
    is_voted = exists().where(votes.c.completion_id == completions.c.id)
    counts = {}
    with store.write() as connection:
        for name, days, condition in (("voted", voted_days, is_voted), ("unvoted", unvoted_days, ~is_voted)):
            if days is None:
                counts[name] = 0
                continue
            limit = now_us() - int(days * 86_400_000_000)
            old = (completions.c.created_us < limit) & completions.c.erased_us.is_(None) & condition
            chosen = select(completions.c.id).where(old)
            connection.execute(
                update(votes).where(votes.c.completion_id.in_(chosen)).values(comment=None, correction=None)
            )
            counts[name] = _erase_texts(connection, old, forget_user=False)
        write_audit(connection, actor, "retention", dict(counts))
    return counts


def _find_learners(connection: Connection, digests: list[str]) -> list[str]:
    """Versions that were trained on one of the snapshots, with all their descendants."""
    known = connection.execute(
        select(model_versions.c.version, model_versions.c.parent, model_versions.c.snapshot)
    ).all()
    found = {row.version for row in known if row.snapshot in digests}
    while more := {row.version for row in known if row.parent in found} - found:
        found |= more
    return sorted(found)


def _erase_texts(connection: Connection, condition: Any, *, forget_user: bool) -> int:
    values: dict[str, Any] = {"messages": None, "tools": None, "completion": None, "erased_us": now_us()}
    if forget_user:
        values |= {
            "user_key": ERASED_USER,
            "conversation_key": ERASED_USER,
            "api_key_id": None,
            "source_id": None,
        }
    return connection.execute(update(completions).where(condition).values(**values)).rowcount
