"""One answer on its way out: its names, its choices, and what has been said so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thumbtune.gateway.identity import Identity
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.schemas import ChatRequest


@dataclass
class ServedChoice:
    """One of an answer's choices on its way out: its names, and what has been said so far."""

    completion_id: str
    vote_token: str
    content: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, delta: Mapping[str, Any], finish_reason: str | None) -> None:
        """Take up a streamed piece."""
        if delta.get("content"):
            self.content.append(delta["content"])
        for call in delta.get("tool_calls") or ():
            _merge_tool_call(self.tool_calls.setdefault(call.get("index", 0), {}), call)
        self.finish_reason = finish_reason or self.finish_reason

    def as_message(self) -> dict[str, Any]:
        """The assistant's message as it was served."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[place] for place in sorted(self.tool_calls)]
        return message


@dataclass
class Serving:
    """One chat under way."""

    request: ChatRequest
    identity: Identity
    version: str
    arm: str
    choices: list[ServedChoice]
    started_us: int
    usage: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, choice: ServedChoice) -> dict[str, str]:
        """What a vote on this choice needs."""
        return {
            "completion_id": choice.completion_id,
            "vote_token": choice.vote_token,
            "model_version": self.version,
        }

    def find(self, choice: Mapping[str, Any]) -> ServedChoice:
        """The choice that an engine's choice is about. Raises a 502 `Problem` where nobody asked for it."""
        if choice["index"] not in range(len(self.choices)):
            raise Problem(502, "the model gave more choices than were asked for", code="upstream")
        return self.choices[choice["index"]]

    @property
    def has_begun(self) -> bool:
        """True once a piece of the answer is known."""
        return any(choice.content or choice.tool_calls or choice.finish_reason for choice in self.choices)

    def count_tokens(self) -> int:
        """What it cost: as the model says, or four characters a token where it was broken off before it could say."""
        known = self.usage.get("total_tokens")
        if known is not None:
            return int(known)
        said = sum(len(text) for choice in self.choices for text in choice.content)
        return (said + sum(len(str(message.content or "")) for message in self.request.messages)) // 4

    @property
    def headers(self) -> dict[str, str]:
        """The same for the first choice, for clients that show headers only."""
        first = self.choices[0]
        return {
            "Thumbtune-Completion-Id": first.completion_id,
            "Thumbtune-Vote-Token": first.vote_token,
            "Thumbtune-Model-Version": self.version,
        }


def _merge_tool_call(call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Streamed tool calls come in pieces: names once, arguments bit by bit."""
    for name, value in piece.items():
        if name == "function" and value is not None:
            function = call.setdefault("function", {})
            for part, text in value.items():
                if text is not None:
                    function[part] = function.get(part, "") + text if part == "arguments" else text
        elif name != "index" and value is not None:
            call[name] = value
