"""Presses in, rows out: what each press does to the store, decided for a whole batch at once.

The same request twice is one vote: an idempotency key, or a source's own id, that the store has seen answers
`repeated`, and a press that says what the current vote says answers `unchanged`; it is kept if it has a key, or its
late repetition would count as new. The batch is settled in the order of its presses, so that a press and its change
may stand in one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, insert, select, text

from thumbtune.records import Completion, Vote
from thumbtune.store.schema import ERASED_USER, completions, votes

Status = Literal[
    "recorded",
    "changed",
    "retracted",
    "repeated",
    "unchanged",
    "unknown_completion",
    "not_yours",
    "conflict",
]

ACCEPTED: frozenset[Status] = frozenset(("recorded", "changed", "retracted", "repeated", "unchanged"))
"""The press is on disk, now or since an earlier request."""

_CONTENT = ("completion_id", "kind", "label", "score", "strength", "reason", "comment", "correction")
"""What a press says; equal in two of them, they are the same press."""

_COLUMNS = tuple(field.name for field in fields(Vote))


@dataclass(frozen=True, slots=True)
class Press:
    """A vote on its way in."""

    vote: Vote
    own_only: bool = False
    """True: only on a completion that this user was served."""


def write_completions(connection: Connection, batch: Sequence[Completion]) -> int:
    """Store completions, without imports that are known by their source already. Gives how many were new."""
    imported: set[tuple[str, str | None]] = {
        (row.source, row.source_id) for row in batch if row.source_id is not None
    }
    known = _find_sources(connection, completions, imported)
    ids = {row.id for row in batch if row.source_id is not None}  # an erased one has lost its source
    here = (
        set(connection.scalars(select(completions.c.id).where(completions.c.id.in_(ids)))) if ids else set()
    )
    rows = []
    for completion in batch:
        if completion.source_id is not None:
            if (completion.source, completion.source_id) in known or completion.id in here:
                continue
            known.add((completion.source, completion.source_id))
        rows.append(_as_columns(completion))
    if rows:
        connection.execute(insert(completions), rows)
    return len(rows)


def write_votes(connection: Connection, presses: Sequence[Press]) -> list[Status]:
    """Store what has to be stored; one status a press, in order."""
    if not presses:
        return []
    _look_up_by_index(connection)
    batch = [press.vote for press in presses]
    owners = _find_owners(connection, {vote.completion_id for vote in batch})
    current = _find_current(connection, batch)
    seen = _find_idempotent(connection, batch)
    sources = _find_sources(
        connection, votes, {(v.source, v.source_id) for v in batch if v.source_id is not None}
    )
    statuses, rows = [], []
    for press in presses:
        vote = press.vote
        place = (vote.completion_id, vote.user_key, vote.kind)
        status = _settle(press, owners, current.get(place), seen, sources)
        statuses.append(status)
        names_itself = vote.idempotency_key is not None or vote.source_id is not None
        if status in ("recorded", "changed", "retracted") or (status == "unchanged" and names_itself):
            row = {name: getattr(vote, name) for name in _COLUMNS}
            rows.append(row)
            current[place] = row
            seen[vote.user_key, vote.idempotency_key] = row
            sources.add((vote.source, vote.source_id))
    if rows:
        connection.execute(insert(votes), rows)
    return statuses


def _look_up_by_index(connection: Connection) -> None:
    """For the rest of this transaction: a table that PostgreSQL has not analysed since it grew looks small to it, and
    it would read all of it for each batch."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL enable_seqscan = off"))


def _settle(
    press: Press,
    owners: Mapping[str, str],
    current: Mapping[str, Any] | None,
    seen: Mapping[tuple[str, str | None], Mapping[str, Any]],
    sources: Iterable[tuple[str, str | None]],
) -> Status:
    vote = press.vote
    owner = owners.get(vote.completion_id)
    if owner is None:
        return "unknown_completion"
    if press.own_only and owner != vote.user_key:
        return "not_yours"
    earlier = seen.get((vote.user_key, vote.idempotency_key)) if vote.idempotency_key is not None else None
    if earlier is not None:
        return "repeated" if _says_the_same(vote, earlier) else "conflict"
    if vote.source_id is not None and (vote.source, vote.source_id) in sources:
        return "repeated"
    stands = current is not None and current["label"] is not None
    if vote.label is None:
        return "retracted" if stands else "unchanged"
    if current is None or not stands:
        return "recorded"
    return "unchanged" if _says_the_same(vote, current) else "changed"


def _says_the_same(vote: Vote, row: Mapping[str, Any]) -> bool:
    return all(getattr(vote, name) == row[name] for name in _CONTENT)


def _find_owners(connection: Connection, ids: set[str]) -> dict[str, str]:
    query = select(completions.c.id, completions.c.user_key).where(
        completions.c.id.in_(ids), completions.c.user_key != ERASED_USER
    )
    return {row.id: row.user_key for row in connection.execute(query)}


def _find_current(connection: Connection, batch: Sequence[Vote]) -> dict[tuple[str, str, str], Any]:
    newest = (
        select(func.max(votes.c.id))
        .where(votes.c.completion_id.in_({vote.completion_id for vote in batch}))
        .group_by(votes.c.completion_id, votes.c.user_key, votes.c.kind)
    )
    found = connection.execute(select(votes).where(votes.c.id.in_(newest)))
    return {(row.completion_id, row.user_key, row.kind): row._mapping for row in found}


def _find_idempotent(connection: Connection, batch: Sequence[Vote]) -> dict[tuple[str, str | None], Any]:
    keys = {vote.idempotency_key for vote in batch if vote.idempotency_key is not None}
    if not keys:
        return {}
    found = connection.execute(select(votes).where(votes.c.idempotency_key.in_(keys)))
    return {(row.user_key, row.idempotency_key): row._mapping for row in found}


def _find_sources(
    connection: Connection, table: Any, pairs: set[tuple[str, str | None]]
) -> set[tuple[str, str | None]]:
    if not pairs:
        return set()
    query = select(table.c.source, table.c.source_id).where(
        table.c.source.in_({source for source, _ in pairs}),
        table.c.source_id.in_({source_id for _, source_id in pairs}),
    )
    found: Iterable[Row[Any]] = connection.execute(query)
    return {(row.source, row.source_id) for row in found}


def _as_columns(completion: Completion) -> dict[str, Any]:
    row = {field.name: getattr(completion, field.name) for field in fields(Completion)}
    row["messages"] = [dict(message) for message in completion.messages]
    row["completion"] = dict(completion.completion)
    row["sampling"] = dict(completion.sampling)
    row["tools"] = None if completion.tools is None else [dict(tool) for tool in completion.tools]
    return row
