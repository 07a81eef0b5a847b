"""The nouns that every layer shares: frozen, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
