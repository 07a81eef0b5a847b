"""What answers chats: one interface for a local model and for any OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from thumbtune.store.models import ModelVersion


class Engine(Protocol):
    """Answers in OpenAI's shape. Errors are `Problem`s."""

    async def start(self) -> list[ModelVersion]:
        """Get ready; gives the versions that can be asked for, the one to serve first."""

    @property
    def versions(self) -> list[str]:
        """The versions that can be asked for now."""

    async def complete(self, body: Mapping[str, Any], version: str) -> dict[str, Any]:
        """A `chat.completion` object."""

    def stream(self, body: Mapping[str, Any], version: str) -> AsyncIterator[dict[str, Any]]:
        """`chat.completion.chunk` objects; the last one may hold the usage. Closing it stops the model."""

    async def load_adapter(self, version: ModelVersion) -> None:
        """Make an adapter answer under its version's name."""

    async def unload_adapter(self, version: str) -> None:
        """Let an adapter go."""

    def describe_load(self) -> dict[str, float]:
        """Numbers that say how busy it is."""

    async def close(self, drain_seconds: float) -> None:
        """Let answers in flight finish, then stop."""
