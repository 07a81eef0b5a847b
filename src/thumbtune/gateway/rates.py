"""How much one user and one key may ask for, by the `limits` library; each process counts for itself."""

from __future__ import annotations

import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from thumbtune.errors import ConfigError
from thumbtune.gateway.identity import Identity
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.settings import GatewaySettings

KINDS = ("requests", "tokens", "votes")


class Rates:
    """Limits on requests, tokens and votes, per user and per API key."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._limits = {
            (scope, kind): _parse(f"{scope}_{kind}", getattr(settings, f"{scope}_{kind}"))
            for scope in ("user", "key")
            for kind in KINDS
        }

    def take(self, identity: Identity, kind: str) -> None:
        """Count one. Raises a 429 `Problem` that says when to come again."""
        for item, name in self._list_limits(identity, kind):
            if not self._limiter.hit(item, name):
                raise self._refuse(item, name, kind)

    def check(self, identity: Identity, kind: str) -> None:
        """Raises a 429 `Problem` where the limit is used up; counts nothing."""
        for item, name in self._list_limits(identity, kind):
            if not self._limiter.test(item, name):
                raise self._refuse(item, name, kind)

    def charge(self, identity: Identity, kind: str, amount: int) -> None:
        """Count what was used, known only afterwards; the next request feels it."""
        if amount > 0:
            for item, name in self._list_limits(identity, kind):
                self._limiter.hit(item, name, cost=amount)

    def _list_limits(self, identity: Identity, kind: str) -> list[tuple[RateLimitItem, str]]:
        found = [(self._limits["user", kind], f"user {kind} {identity.user_key}")]
        if identity.key_id is not None:
            found.append((self._limits["key", kind], f"key {kind} {identity.key_id}"))
        return found

    def _refuse(self, item: RateLimitItem, name: str, kind: str) -> Problem:
        wait = max(1, round(self._limiter.get_window_stats(item, name).reset_time - time.time()))
        scope = name.split(" ", 1)[0]
        return Problem(
            429,
            f"{kind} of this {scope} are limited to {item.amount} per {item.get_expiry()} seconds: "
            f"come again in {wait} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(wait)},
        )


def _parse(name: str, text: str) -> RateLimitItem:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"gateway setting '{name}': '{text}' is no rate: write it as 60/minute") from error
