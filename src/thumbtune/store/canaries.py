"""A candidate in service on a share of users: its row, its stages, and the votes that came meanwhile.

At most one runs at a time; the database sees to it. Who is answered by it follows from its id and the user's key
alone, so the same person meets the same version everywhere, and whoever was in at 1 % is in at 5 %.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Row, case, distinct, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from thumbtune.errors import ConfigError
from thumbtune.store.database import Store, now_us
from thumbtune.store.keys import write_audit
from thumbtune.store.models import CHAMPION, find_pointer, point_within
from thumbtune.store.schema import canaries, completions, model_versions, votes

CANARY = "canary"

State = Literal["running", "promoted", "rolled_back", "inconclusive", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Canary:
    """One candidate's time on a share of users."""

    id: str
    candidate: str
    champion: str
    state: State
    stages: Sequence[Sequence[float]]
    """[share of users, since_us], oldest first; the last one holds now."""
    rules: Mapping[str, Any]
    history: Sequence[int]
    """[up-votes, votes] of the champion before it."""
    record: Mapping[str, Any] | None
    started_us: int
    ended_us: int | None

    @property
    def share(self) -> float:
        """Share of users that it answers."""
        return self.stages[-1][0]

    def answers(self, user_key: str) -> bool:
        """Whether it answers this user."""
        digest = hashlib.sha256(f"{self.id}\0{user_key}".encode()).digest()
        return int.from_bytes(digest[:7], "big") / 2**56 < self.share

    def stage_at(self, at_us: int) -> int:
        """Index of the stage that held at a time."""
        return max(0, sum(since <= at_us for _, since in self.stages) - 1)


@dataclass(frozen=True, slots=True)
class CanaryVote:
    """A first press on an answer of the canary's time."""

    user_key: str
    by_canary: bool
    up: bool
    served_us: int


def start_canary(
    store: Store, candidate: str, rules: Mapping[str, Any], first_share: float, *, actor: str
) -> Canary:
    """Put a version in service on a share of users, beside the champion. Raises `ConfigError`."""
    pointer = find_pointer(store)
    if pointer is None:
        raise ConfigError("there is no champion yet to hold a canary against: start the gateway once")
    if pointer.version == candidate:
        raise ConfigError(f"{candidate} is the champion already")
    history = _count_votes(store, pointer.version)
    started = now_us()
    values = {
        "id": f"canary-{secrets.token_hex(6)}",
        "candidate": candidate,
        "champion": pointer.version,
        "state": "running",
        "stages": [[first_share, started]],
        "rules": dict(rules),
        "history": history,
        "record": None,
        "started_us": started,
        "ended_us": None,
    }
    try:
        with store.write() as connection:
            known = connection.scalar(
                select(model_versions.c.version).where(model_versions.c.version == candidate)
            )
            if known is None:
                raise ConfigError(
                    f"there is no model version '{candidate}': `thumbtune models list` shows them"
                )
            connection.execute(insert(canaries).values(**values))
            write_audit(connection, actor, "start canary", {"canary": values["id"], "candidate": candidate})
    except IntegrityError as error:
        running = find_running_canary(store)
        raise ConfigError(
            f"a canary runs already, {running.candidate if running else 'another one'}: wait for its end, or stop it "
            "with `thumbtune canary stop`"
        ) from error
    return find_canary(store, str(values["id"]))


def find_running_canary(store: Store) -> Canary | None:
    """The canary in service, or None."""
    with store.read() as connection:
        row = connection.execute(select(canaries).where(canaries.c.state == "running")).first()
    return None if row is None else _as_canary(row)


def find_canary(store: Store, canary_id: str) -> Canary:
    """A canary by its id. Raises `ConfigError`."""
    with store.read() as connection:
        row = connection.execute(select(canaries).where(canaries.c.id == canary_id)).first()
    if row is None:
        raise ConfigError(f"there is no canary '{canary_id}': `thumbtune canary list` shows them")
    return _as_canary(row)


def list_canaries(store: Store, limit: int = 100) -> list[Canary]:
    """All canaries, newest first."""
    with store.read() as connection:
        rows = connection.execute(select(canaries).order_by(canaries.c.started_us.desc()).limit(limit))
        return [_as_canary(row) for row in rows]


def widen_canary(store: Store, canary: Canary, share: float, *, actor: str) -> bool:
    """Give it a larger share of users; False where somebody else changed it meanwhile."""
    with store.write() as connection:
        stages = connection.scalar(
            select(canaries.c.stages).where(canaries.c.id == canary.id, canaries.c.state == "running")
        )
        if stages != [list(stage) for stage in canary.stages]:
            return False
        connection.execute(
            update(canaries).where(canaries.c.id == canary.id).values(stages=[*stages, [share, now_us()]])
        )
        write_audit(connection, actor, "widen canary", {"canary": canary.id, "share": share})
    return True


def end_canary(
    store: Store, canary: Canary, state: State, record: Mapping[str, Any] | None, *, actor: str
) -> bool:
    """End it, and put it in service for all where it was promoted: one transaction. False where it had ended."""
    with store.write() as connection:
        ended = connection.execute(
            update(canaries)
            .where(canaries.c.id == canary.id, canaries.c.state == "running")
            .values(state=state, record=None if record is None else dict(record), ended_us=now_us())
        ).rowcount
        if not ended:
            return False
        if state == "promoted":
            point_within(connection, canary.candidate, name=CHAMPION, actor=actor)
        write_audit(
            connection, actor, f"canary {state}", {"canary": canary.id, "candidate": canary.candidate}
        )
    return True


def list_canary_votes(store: Store, canary: Canary) -> list[CanaryVote]:
    """Explicit presses on answers that canary and champion gave in the canary's time, each user and completion's first
    one, in the order in which they came."""
    first = (
        select(func.min(votes.c.id))
        .join(completions, votes.c.completion_id == completions.c.id)
        .where(*_served_by(canary), votes.c.kind == "explicit")
        .group_by(votes.c.completion_id, votes.c.user_key)
    )
    query = (
        select(votes.c.user_key, votes.c.label, completions.c.arm, completions.c.created_us)
        .join(completions, votes.c.completion_id == completions.c.id)
        .where(votes.c.id.in_(first), votes.c.label.is_not(None), votes.c.user_key == completions.c.user_key)
        .order_by(votes.c.id)
    )
    with store.read() as connection:
        return [
            CanaryVote(row.user_key, row.arm == CANARY, row.label, row.created_us)
            for row in connection.execute(query)
        ]


def count_canary_answers(store: Store, canary: Canary) -> dict[str, list[int]]:
    """For canary and champion: [answers in its time, those of them that broke off by an error]."""
    failed = func.sum(case((completions.c.finish_reason == "error", 1), else_=0))
    query = (
        select(completions.c.arm, func.count(), failed).where(*_served_by(canary)).group_by(completions.c.arm)
    )
    with store.read() as connection:
        found = {arm: [n, int(n_failed)] for arm, n, n_failed in connection.execute(query)}
    return {arm: found.get(arm, [0, 0]) for arm in (CANARY, CHAMPION)}


def count_canary_users(store: Store, canary: Canary) -> tuple[int, int]:
    """(users that the canary answered, all users answered) since its present stage began."""
    query = (
        select(completions.c.arm, func.count(distinct(completions.c.user_key)))
        .where(*_served_by(canary), completions.c.created_us >= canary.stages[-1][1])
        .group_by(completions.c.arm)
    )
    with store.read() as connection:
        found = {arm: int(n) for arm, n in connection.execute(query)}
    return found.get(CANARY, 0), sum(found.values())


def _served_by(canary: Canary) -> list[Any]:
    mine = (completions.c.arm == CANARY) & (completions.c.model_version == canary.candidate)
    theirs = (completions.c.arm == CHAMPION) & (completions.c.model_version == canary.champion)
    until = [] if canary.ended_us is None else [completions.c.created_us < canary.ended_us]
    return [completions.c.created_us >= canary.started_us, *until, mine | theirs]


def _count_votes(store: Store, version: str) -> list[int]:
    from thumbtune.store.reading import count_by_version

    for counts in count_by_version(store):
        if counts["model_version"] == version:
            return [counts["n_up"], counts["n_up"] + counts["n_down"]]
    return [0, 0]


def _as_canary(row: Row[Any]) -> Canary:
    return Canary(**row._mapping)
