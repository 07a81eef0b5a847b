"""The nouns that every layer shares: frozen, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`, and `tool_calls` and the like."""

Text = str | Sequence[Message]
"""A prompt or a completion: plain text, or a list of chat messages."""


@dataclass(frozen=True, slots=True)
class Example:
    """One completion and its thumb: the unpaired row that production hands out."""

    prompt: Text
    completion: Text
    label: bool
    """True = desirable, 👍."""
    where: str = ""
    """Where the row stood, for messages: `thumbs.jsonl line 41`."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Tool descriptions for the chat template."""
    chat_template_kwargs: Mapping[str, Any] | None = None
    """Further arguments for the chat template."""
    finished: bool = True
    """False where a token limit cut the completion: its end of turn was never said, so it is not learned from."""
    weight: float = 1.0
    """How much the row's loss counts, above 0: by age, by how sure the label is, by who voted."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, one preferred: what DPO asks for."""

    prompt: Text
    chosen: Text
    rejected: Text
    where: str = ""
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True
    weight: float = 1.0


def text_key(text: Text) -> str:
    """A canonical string of a prompt or completion, equal exactly where the texts are equal."""
    import json

    if isinstance(text, str):
        return text
    return json.dumps([dict(message) for message in text], sort_keys=True, ensure_ascii=False)


VoteKind = Literal["explicit", "edit", "retry", "copy"]
"""explicit: a thumb was pressed. The others are implicit, kept apart, and off in training unless asked for."""

BROKEN_OFF = ("cancelled", "error")
"""How completions end that were neither finished nor cut by their limit: the voter saw a part of unknown length."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer as it was served, beside what it answered."""

    id: str
    user_key: str
    """HMAC of who asked; never a name."""
    conversation_key: str
    messages: Sequence[Message]
    completion: Message
    finish_reason: str
    """stop, length, tool_calls …; `cancelled` where the client left before the end."""
    model_version: str
    arm: str
    """champion, canary, or named."""
    created_us: int
    """Microseconds since 1970, UTC."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    n_prompt_tokens: int | None = None
    n_completion_tokens: int | None = None
    api_key_id: str | None = None
    source: str = "gateway"
    source_id: str | None = None


@dataclass(frozen=True, slots=True)
class Vote:
    """One press on one completion, with who, when and why. A null label takes an earlier press back."""

    completion_id: str
    user_key: str
    label: bool | None
    created_us: int
    kind: VoteKind = "explicit"
    score: float | None = None
    strength: float = 1.0
    """In (0, 1]: how much an implicit press says; 1 for an explicit one."""
    reason: str | None = None
    comment: str | None = None
    correction: str | None = None
    """The answer as the voter would have it."""
    idempotency_key: str | None = None
    api_key_id: str | None = None
    source: str = "gateway"
    source_id: str | None = None
