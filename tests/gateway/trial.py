"""Canaries, their votes, and turns of the loop as rows in a store: what pages and routes are shown."""

from __future__ import annotations

import secrets
from typing import Any

from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.look import stage_canary
from thumbtune.records import Completion, Vote
from thumbtune.store.canaries import CANARY, Canary
from thumbtune.store.cycles import Cycle, begin_cycle, end_cycle, find_cycle, record_step
from thumbtune.store.database import Store, now_us
from thumbtune.store.models import CHAMPION
from thumbtune.store.votes import Press, write_completions, write_votes

CALM = CanaryRules(stages=(0.25, 0.5), votes_per_stage=50)
"""Half and half after fifty votes: no handful widens it."""


def try_version(store: Store, version: str = "adapter-2", rules: CanaryRules = CALM) -> Canary:
    """A canary as the loop stages it."""
    return stage_canary(store, version, rules, actor="cycle")


def crowd(store: Store, canary: Canary, ours: str, theirs: str, failed: int = 0) -> None:
    """People who were answered once each, in turns: + 👍, - 👎, . no vote; by the canary and by the champion."""
    arms = ((CANARY, canary.candidate, ours), (CHAMPION, canary.champion, theirs))
    rows: list[Completion] = []
    presses: list[Press] = []
    for place in range(max(len(ours), len(theirs))):
        for arm, version, votes in arms:
            if place >= len(votes):
                continue
            person = f"{arm} {secrets.token_hex(8)}"
            row = _answer(person, version, arm, "error" if arm == CANARY and place < failed else "stop")
            rows.append(row)
            if votes[place] != ".":
                presses.append(Press(Vote(row.id, person, votes[place] == "+", now_us())))
    with store.write() as connection:
        write_completions(connection, rows)
        write_votes(connection, presses)


def _answer(person: str, version: str, arm: str, finish_reason: str) -> Completion:
    at = now_us()
    return Completion(
        id=f"chatcmpl-{at:014x}{secrets.token_hex(10)}",
        user_key=person,
        conversation_key=person,
        messages=[{"role": "user", "content": "Which?"}],
        completion={"role": "assistant", "content": "This one."},
        finish_reason=finish_reason,
        model_version=version,
        arm=arm,
        created_us=at,
    )


STEPS: dict[str, dict[str, Any]] = {
    "votes": {"new_votes": 240, "champion": "base-1"},
    "snapshot": {
        "digest": "5d" * 32,
        "folder": "cycles/cycle-1/snapshot",
        "train": "cycles/cycle-1/snapshot/train.parquet",
        "held_out": None,
        "n_rows": 180,
        "n_held_out": 40,
        "outcomes": {"kept: training": 180, "kept: held out": 40, "taken back": 20},
    },
    "train": {"version": "adapter-2", "steps": 12, "seconds": 33.1, "new_rows": 180, "alarms": []},
    "measure": {"prompts": 40, "held_out_votes": 40},
    "gate": {
        "outcome": "pass",
        "checks": [
            {
                "name": "held-out votes",
                "outcome": "pass",
                "verdict": "pass",
                "told": "it ranks 40 held-out votes with an AUC of 0.71, the champion with 0.62: "
                "+0.09 (+0.01 to +0.17)",
                "number": {"mean": 0.09, "low": 0.01, "high": 0.17, "n": 40},
            },
            {
                "name": "flattery",
                "outcome": "pass",
                "verdict": "pass",
                "told": "on 24 probes flattering words gained +0.04 nats a token on plain ones (+0.01 to +0.07)",
                "number": None,
            },
        ],
    },
    "canary": {"canary": "canary-0123456789ab"},
}


def turn(store: Store, *names: str, outcome: str | None = None, state: str = "done", **changes: Any) -> Cycle:
    """A turn of the loop that did these steps; it is over where `outcome` says how."""
    cycle = begin_cycle(store, {"model": "packaged:tiny"}, "cycles/cycle-1")
    for name in names:
        record_step(store, cycle, name, STEPS.get(name, {}) | changes.get(name, {}), now_us() - 2_500_000)
    if outcome is not None:
        end_cycle(store, cycle, state, outcome)
    return find_cycle(store, cycle.id)
