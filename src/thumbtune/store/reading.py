"""What is asked of the store: current votes with filters, their history, counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, exists, func, select

from thumbtune.store.database import Store
from thumbtune.store.schema import completions, votes

EXPLICIT = ("explicit",)


@dataclass(frozen=True, slots=True)
class VoteFilter:
    """Which current votes; None asks for all."""

    label: bool | None = None
    kinds: Sequence[str] | None = None
    model_version: str | None = None
    reason: str | None = None
    user_key: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    text: str | None = None
    """Some text within the comment or the correction."""


def list_votes(
    store: Store, wanted: VoteFilter = VoteFilter(), *, limit: int = 50, before_id: int | None = None
) -> list[dict[str, Any]]:
    """Current votes beside their completions, newest first; `before_id` turns the page."""
    query = select_current(wanted).order_by(votes.c.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(votes.c.id < before_id)
    with store.read() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def count_votes(store: Store, wanted: VoteFilter = VoteFilter()) -> int:
    """How many current votes there are."""
    current = select_current(wanted).subquery()
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(current)) or 0


def find_newest_vote(store: Store) -> int:
    """The number of the last press, 0 where there is none: it grows where anybody pressed."""
    with store.read() as connection:
        return connection.scalar(select(func.max(votes.c.id))) or 0


def list_history(store: Store, completion_id: str) -> list[dict[str, Any]]:
    """Every press on a completion, oldest first."""
    with store.read() as connection:
        rows = connection.execute(
            select(votes).where(votes.c.completion_id == completion_id).order_by(votes.c.id)
        )
        return [dict(row._mapping) for row in rows]


def iterate_votes(
    connection: Connection, wanted: VoteFilter, *, batch_size: int = 1_000
) -> Iterator[dict[str, Any]]:
    """Current votes beside their completions, in the order of their presses, a batch in memory at a time."""
    last = 0
    while True:
        query = select_current(wanted).where(votes.c.id > last).order_by(votes.c.id).limit(batch_size)
        rows = connection.execute(query).all()
        yield from (dict(row._mapping) for row in rows)
        if len(rows) < batch_size:
            return
        last = rows[-1].id


def count_by_version(store: Store) -> list[dict[str, Any]]:
    """For each model version: completions served, and the current explicit votes on them."""
    up = func.sum(case((votes.c.label.is_(True), 1), else_=0)).label("n_up")
    down = func.sum(case((votes.c.label.is_(False), 1), else_=0)).label("n_down")
    voted = (
        select(completions.c.model_version, up, down)
        .join(votes, votes.c.completion_id == completions.c.id)
        .where(*_conditions(VoteFilter(kinds=EXPLICIT)))
        .group_by(completions.c.model_version)
    )
    served = select(completions.c.model_version, func.count().label("n_completions")).group_by(
        completions.c.model_version
    )
    with store.read() as connection:
        counts = {
            row.model_version: {"n_completions": row.n_completions} for row in connection.execute(served)
        }
        for row in connection.execute(voted):
            counts[row.model_version] |= {"n_up": int(row.n_up), "n_down": int(row.n_down)}
    return [
        {"model_version": version, "n_up": 0, "n_down": 0} | numbers
        for version, numbers in sorted(counts.items())
    ]


def count_by_user(wanted: VoteFilter) -> Select[Any]:
    """(user_key, number of current votes, when the last one was pressed)."""
    return (
        select(votes.c.user_key, func.count(), func.max(votes.c.created_us))
        .join(completions, votes.c.completion_id == completions.c.id)
        .where(*_conditions(wanted))
        .group_by(votes.c.user_key)
    )


def select_current(wanted: VoteFilter) -> Select[Any]:
    """The newest press of each user, completion and kind that was not taken back, beside its completion."""
    beside = (
        completions.c.messages,
        completions.c.tools,
        completions.c.completion,
        completions.c.finish_reason,
        completions.c.model_version,
        completions.c.arm,
        completions.c.conversation_key,
        completions.c.erased_us,
        completions.c.user_key.label("asked_by"),
        completions.c.created_us.label("served_us"),
    )
    return (
        select(votes, *beside)
        .join(completions, votes.c.completion_id == completions.c.id)
        .where(*_conditions(wanted))
    )


def _conditions(wanted: VoteFilter) -> list[ColumnElement[bool]]:
    newer = votes.alias("newer")
    superseded = exists().where(
        and_(
            newer.c.completion_id == votes.c.completion_id,
            newer.c.user_key == votes.c.user_key,
            newer.c.kind == votes.c.kind,
            newer.c.id > votes.c.id,
        )
    )
    conditions: list[ColumnElement[bool]] = [~superseded, votes.c.label.is_not(None)]
    if wanted.label is not None:
        conditions.append(votes.c.label.is_(wanted.label))
    if wanted.kinds is not None:
        conditions.append(votes.c.kind.in_(wanted.kinds))
    if wanted.model_version is not None:
        conditions.append(completions.c.model_version == wanted.model_version)
    if wanted.reason is not None:
        conditions.append(votes.c.reason == wanted.reason)
    if wanted.user_key is not None:
        conditions.append(votes.c.user_key == wanted.user_key)
    if wanted.since_us is not None:
        conditions.append(votes.c.created_us >= wanted.since_us)
    if wanted.until_us is not None:
        conditions.append(votes.c.created_us < wanted.until_us)
    if wanted.text is not None:
        conditions.append(
            votes.c.comment.icontains(wanted.text, autoescape=True)
            | votes.c.correction.icontains(wanted.text, autoescape=True)
        )
    return conditions
