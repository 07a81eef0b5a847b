"""What strangers send, as our records: a press, and rows of another product."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from thumbtune.gateway.identity import Identity
from thumbtune.gateway.schemas import Feedback, ImportedCompletion, ImportedVote, ImportRequest
from thumbtune.records import Completion, Vote, VoteKind, text_key
from thumbtune.store.database import now_us
from thumbtune.store.votes import Press

IMPLICIT: Mapping[VoteKind, tuple[bool, float]] = {
    "edit": (False, 1.0),
    "retry": (False, 0.5),
    "copy": (True, 0.5),
}
"""Label and strength of the implicit kinds: an edit says that the completion was wrong, a retry and a copy hint."""

HashUser = Callable[[str, str], str]
"""`Secrets.user_key`."""


def as_vote(feedback: Feedback, identity: Identity) -> Vote:
    """A press of this identity, now."""
    label, strength = feedback.label, 1.0
    if feedback.score is not None:
        label = feedback.score > 0
    if feedback.kind != "explicit":
        label, strength = IMPLICIT[feedback.kind]
    if feedback.retract:
        label = None
    return Vote(
        completion_id=feedback.completion_id,
        user_key=identity.user_key,
        label=label,
        created_us=now_us(),
        kind=feedback.kind,
        score=feedback.score,
        strength=strength,
        reason=feedback.reason,
        comment=feedback.comment,
        correction=feedback.correction,
        idempotency_key=feedback.idempotency_key,
        api_key_id=identity.key_id,
    )


def as_rows(request: ImportRequest, hash_user: HashUser) -> tuple[list[Completion], list[Press]]:
    """What an import stores; the newest press of a batch is its last one."""
    completions = [_as_completion(row, request.source, hash_user) for row in request.completions]
    in_time = sorted(request.votes, key=lambda row: row.created)
    return completions, [Press(_as_imported_vote(row, request.source, hash_user)) for row in in_time]


def make_conversation_key(user_key: str, messages: list[dict[str, Any]]) -> str:
    """Equal for the turns of one conversation: its user and what it began with, to the first user message."""
    end = next(
        (place for place, message in enumerate(messages) if message["role"] == "user"), len(messages) - 1
    )
    return hashlib.sha256(f"{user_key}\n{text_key(messages[: end + 1])}".encode()).hexdigest()[:32]


def _as_imported_vote(row: ImportedVote, source: str, hash_user: HashUser) -> Vote:
    return Vote(
        completion_id=_name_completion(source, row.completion_source_id),
        user_key=hash_user(f"user of {source}", row.user),
        label=row.label,
        created_us=int(row.created * 1e6),
        kind=row.kind,
        strength=1.0 if row.kind == "explicit" else IMPLICIT[row.kind][1],
        reason=row.reason,
        comment=row.comment,
        correction=row.correction,
        source=source,
        source_id=row.source_id,
    )


def _as_completion(row: ImportedCompletion, source: str, hash_user: HashUser) -> Completion:
    user_key = hash_user(f"user of {source}", row.user)
    messages = [message.model_dump(exclude_unset=True) for message in row.messages]
    return Completion(
        id=_name_completion(source, row.source_id),
        user_key=user_key,
        conversation_key=make_conversation_key(user_key, messages),
        messages=messages,
        completion={"role": "assistant", "content": row.completion},
        finish_reason=row.finish_reason,
        model_version=row.model,
        arm="imported",
        created_us=int(row.created * 1e6),
        source=source,
        source_id=row.source_id,
    )


def _name_completion(source: str, source_id: str) -> str:
    return "imported-" + hashlib.sha256(f"{source}\n{source_id}".encode()).hexdigest()[:32]
