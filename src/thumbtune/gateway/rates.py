"""How much one user and one key may ask for; each process counts for itself.

Windows are fixed: a counter for each name, forgotten when its window ends. The `limits` library was tried first: its
memory storage walks every name each ten milliseconds, in a thread of its own, and 100,000 users would fill a core.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from thumbtune.errors import ConfigError
from thumbtune.gateway.identity import Identity
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.settings import GatewaySettings

KINDS = ("requests", "tokens", "votes")
SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}


@dataclass
class Window:
    """So many of something in so many seconds, for each name."""

    amount: int
    seconds: int
    _ends: float = 0.0
    _used: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, amount: int) -> int:
        """Count `amount` for a name; gives what it has used in this window."""
        now = time.time()
        if now >= self._ends:
            self._ends = (now // self.seconds + 1) * self.seconds
            self._used = {}
        used = self._used.get(name, 0) + amount
        self._used[name] = used
        return used

    @property
    def wait_seconds(self) -> int:
        """Until the window ends, whole seconds."""
        return max(1, round(self._ends - time.time()))


class Rates:
    """Limits on requests, tokens and votes, per user and per API key."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._windows = {
            (scope, kind): _parse(f"{scope}_{kind}", getattr(settings, f"{scope}_{kind}"))
            for scope in ("user", "key")
            for kind in KINDS
        }

    def take(self, identity: Identity, kind: str, amount: int = 1) -> None:
        """Count, and raise a 429 `Problem` where the limit is passed: it says when to come again."""
        for scope, name in _list_names(identity):
            window = self._windows[scope, kind]
            if window.add(name, amount) > window.amount:
                raise _refuse(scope, kind, window)

    def check(self, identity: Identity, kind: str) -> None:
        """Raises a 429 `Problem` where the limit is used up; counts nothing."""
        for scope, name in _list_names(identity):
            window = self._windows[scope, kind]
            if window.add(name, 0) >= window.amount:
                raise _refuse(scope, kind, window)

    def charge(self, identity: Identity, kind: str, amount: int) -> None:
        """Count what was used, known only afterwards; the next request feels it."""
        for scope, name in _list_names(identity):
            self._windows[scope, kind].add(name, amount)


def _list_names(identity: Identity) -> list[tuple[str, str]]:
    names = [("user", identity.user_key)]
    if identity.key_id is not None:
        names.append(("key", identity.key_id))
    return names


def _refuse(scope: str, kind: str, window: Window) -> Problem:
    wait = window.wait_seconds
    return Problem(
        429,
        f"{kind} of one {scope} are limited to {window.amount} in {window.seconds} s: come again in {wait} s",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(wait)},
    )


def _parse(name: str, text: str) -> Window:
    match = re.fullmatch(r"(\d+)\s*/\s*(second|minute|hour|day)", text.strip())
    if match is None:
        raise ConfigError(f"gateway setting '{name}': '{text}' is no rate: write it as 60/minute")
    return Window(int(match[1]), SECONDS[match[2]])
