"""A canary as it stands, for the page and for `GET /v1/canary`: the votes so far, what they show, and when more will.

One that runs is read from its votes now. One that ended is read from its record: votes that came after its end are no
part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thumbtune.loop.canary import (
    CanaryRules,
    Curves,
    Forecast,
    Seen,
    Verdict,
    conclude,
    draw_curves,
    forecast,
    read_rules,
)
from thumbtune.loop.look import gather
from thumbtune.store.canaries import Canary, State
from thumbtune.store.database import Store

MOST_POINTS = 500
"""Of a curve that is sent."""

_SAID: Mapping[State, str] = {"promoted": "promote", "rolled_back": "roll back", "withdrawn": "stop"}
"""What a person who ends a canary so has decided."""


@dataclass(frozen=True, slots=True)
class CanaryNow:
    """A canary beside what its votes show."""

    canary: Canary
    rules: CanaryRules
    seen: Seen
    verdict: Verdict
    """By its votes; what a person decided stands in the record."""
    curves: Curves
    """Not more than `MOST_POINTS` of them, with the highest one of each test."""
    forecast: list[Forecast]

    def as_json(self) -> dict[str, Any]:
        """For a program; the rules that it is judged by stand in `canary`."""
        on_canary, everybody = self.seen.users
        return {
            "canary": summarise(self.canary),
            "verdict": asdict(self.verdict),
            "answers": dict(self.seen.answers),
            "users": {
                "canary": on_canary,
                "all": everybody,
                "share": on_canary / everybody if everybody else None,
                "expected_share": self.rules.stages[self.seen.stage],
            },
            "forecast": [asdict(one) for one in self.forecast],
            "curves": {
                "n_canary": self.curves.n_canary.tolist(),
                "log_better": self.curves.better.tolist(),
                "log_harm": self.curves.harm.tolist(),
            },
        }


def read_canary(store: Store, canary: Canary) -> CanaryNow | None:
    """What is known of a canary; None for one that ended without a word on its votes."""
    rules = read_rules(canary.rules)
    if canary.state == "running":
        seen = gather(store, canary, rules)
    else:
        record = canary.record or {}
        kept = record.get("seen") or record.get("seen_then")
        if kept is None:
            return None
        seen = Seen(**kept)
    curves = thin(draw_curves(seen, rules))
    return CanaryNow(canary, rules, seen, conclude(seen, rules), curves, forecast(seen, rules))


def record_by_hand(store: Store, canary: Canary, state: State, actor: str) -> dict[str, Any]:
    """What is kept of a canary that a person ends: who, and what the votes showed at that moment.

    They decided nothing, so they are not kept as `seen`, which a decision can be replayed from.
    """
    rules = read_rules(canary.rules)
    seen = gather(store, canary, rules)
    verdict = conclude(seen, rules)
    return {
        "by": actor,
        "verdict": {
            "action": _SAID[state],
            "reasons": [f"ended by hand while the votes said {verdict.action}: {'; '.join(verdict.reasons)}"],
            "numbers": dict(verdict.numbers),
        },
        "seen_then": asdict(seen),
    }


def summarise(canary: Canary) -> dict[str, Any]:
    """A canary without the stream of its votes, which may be long."""
    record = None
    if canary.record is not None:
        record = {name: value for name, value in canary.record.items() if name not in ("seen", "seen_then")}
    return asdict(canary) | {"share": canary.share, "record": record}


def tell_why(canary: Canary) -> str | None:
    """Why it ended, in words; None where nobody said."""
    reasons = ((canary.record or {}).get("verdict") or {}).get("reasons") or ()
    return "; ".join(reasons) or None


def thin(curves: Curves, most: int = MOST_POINTS) -> Curves:
    """The same curves with at most so many points: evenly spread ones, and the highest of each test."""
    n = len(curves.n_canary)
    if n <= most:
        return curves
    spread = np.linspace(0, n - 1, most - 2).round().astype(int)
    kept = np.union1d(spread, [curves.better.argmax(), curves.harm.argmax()])
    return Curves(curves.better[kept], curves.harm[kept], curves.n_canary[kept])
