"""A gateway that runs, as its tests see it: requests from outside, the store from inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import select

from thumbtune.gateway.service import Gateway
from thumbtune.store.keys import Role, create_key
from thumbtune.store.schema import completions, votes

TIMEOUT = httpx.Timeout(20.0)


ROLES: dict[tuple[str, str], tuple[str, ...]] = {
    ("POST", "/v1/chat/completions"): ("client", "admin"),
    ("GET", "/v1/models"): ("client", "voter", "admin"),
    ("POST", "/v1/feedback"): ("client", "voter", "admin"),
    ("POST", "/v1/import"): ("admin",),
    ("GET", "/v1/votes"): ("client", "voter", "admin"),
    ("GET", "/v1/votes/{completion_id}/history"): ("voter", "admin"),
    ("GET", "/v1/versions"): ("admin",),
    ("POST", "/v1/champion"): ("admin",),
    ("POST", "/v1/champion/back"): ("admin",),
    ("GET", "/v1/canary"): ("admin",),
    ("GET", "/v1/canaries"): ("admin",),
    ("POST", "/v1/canary/end"): ("admin",),
    ("GET", "/v1/cycles"): ("admin",),
    ("POST", "/v1/adapters"): ("admin",),
    ("DELETE", "/v1/users/{user}"): ("admin",),
    ("GET", "/v1/keys"): ("admin",),
    ("POST", "/v1/keys"): ("admin",),
    ("DELETE", "/v1/keys/{key_id}"): ("admin",),
    ("GET", "/v1/audit"): ("admin",),
    ("GET", "/v1/state"): ("admin",),
    ("GET", "/metrics"): ("admin",),
    ("GET", "/healthz"): ("nobody", "client", "voter", "admin"),
    ("GET", "/readyz"): ("nobody", "client", "voter", "admin"),
}
"""Who may pass which door; written by hand, so that a new route fails here until somebody decided."""


@dataclass
class Served:
    """A gateway that answers at `address`, and its insides."""

    address: str
    gateway: Gateway
    engine: Any
    http: httpx.Client
    """Without a key."""

    @property
    def v1(self) -> str:
        return f"{self.address}/v1"

    def make_key(self, role: Role, *, speaks_for_users: bool = False) -> str:
        """A key that another process made: the gateway is not told, and knows it within two seconds."""
        secret = create_key(self.gateway.store, role, role, speaks_for_users=speaks_for_users)[1]
        headers = {"Authorization": f"Bearer {secret}"}
        wait_until(lambda: self.http.get("/v1/models", headers=headers).status_code == 200, seconds=2)
        return secret

    def chat(self, text: str, key: str | None = None, **more: Any) -> httpx.Response:
        """One user message."""
        headers = more.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        body = {"messages": [{"role": "user", "content": text}], **more}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def ask(self, text: str = "hello", key: str | None = None, **more: Any) -> dict[str, str]:
        """What a vote on a new answer needs: its id, token and version."""
        response = self.chat(text, key, **more)
        assert response.status_code == 200, response.text
        found: dict[str, str] = response.json()["thumbtune"]
        return found

    def vote(
        self, key: str | None = None, headers: dict[str, str] | None = None, **press: Any
    ) -> httpx.Response:
        """One press."""
        headers = (headers or {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        return self.http.post("/v1/feedback", json=press, headers=headers)

    def read_completions(self) -> dict[str, Any]:
        """Every stored completion by its id."""
        with self.gateway.store.read() as connection:
            return {row.id: row for row in connection.execute(select(completions))}

    def read_presses(self, completion_id: str) -> list[Any]:
        """Every press on a completion, oldest first."""
        with self.gateway.store.read() as connection:
            query = select(votes).where(votes.c.completion_id == completion_id).order_by(votes.c.id)
            return list(connection.execute(query))


@dataclass
class Keyed(Served):
    """A gateway with keys."""

    admin: str = ""
    client: str = ""
    voter: str = ""
    speaker: str = ""
    """A client that speaks for users."""


def wait_until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """What the condition gives once it holds; fails after a while."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found
