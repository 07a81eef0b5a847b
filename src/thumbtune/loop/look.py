"""One look at the running canary: read what is known, conclude, and do it. Anyone may look, as often as they like."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from thumbtune.data.weights import DAY_US
from thumbtune.loop.canary import Action, CanaryRules, Seen, Verdict, as_record, conclude, read_rules
from thumbtune.store.canaries import (
    Canary,
    State,
    count_canary_answers,
    count_canary_users,
    end_canary,
    find_running_canary,
    list_canary_votes,
    start_canary,
    widen_canary,
)
from thumbtune.store.database import Store, now_us

_ENDS: dict[Action, State] = {"promote": "promoted", "roll back": "rolled_back", "stop": "inconclusive"}


@dataclass(frozen=True, slots=True)
class Look:
    """A canary as it stood at one moment, and what followed."""

    canary: Canary
    seen: Seen
    rules: CanaryRules
    verdict: Verdict
    acted: bool
    """False where there was nothing to do, or somebody else had done it."""


def stage_canary(store: Store, candidate: str, rules: CanaryRules, *, actor: str) -> Canary:
    """Put a candidate in service on the first share of users. Raises `ConfigError`."""
    return start_canary(store, candidate, asdict(rules), rules.stages[0], actor=actor)


def look_at_canary(store: Store, *, actor: str) -> Look | None:
    """Judge the running canary by all votes so far and act on it; None where none runs."""
    canary = find_running_canary(store)
    if canary is None:
        return None
    rules = read_rules(canary.rules)
    seen = gather(store, canary, rules)
    verdict = conclude(seen, rules)
    acted = False
    if verdict.action == "widen":
        acted = widen_canary(store, canary, rules.stages[seen.stage + 1], actor=actor)
    elif verdict.action in _ENDS:
        record = as_record(seen, rules, verdict)
        acted = end_canary(store, canary, _ENDS[verdict.action], record, actor=actor)
    return Look(canary, seen, rules, verdict, acted)


def gather(store: Store, canary: Canary, rules: CanaryRules) -> Seen:
    """What is known of a canary now."""
    voted = Counter[str]()
    letters, stages = [], []
    for vote in list_canary_votes(store, canary):
        voted[vote.user_key] += 1
        if voted[vote.user_key] > rules.votes_of_one_user:
            continue
        letters.append(("C" if vote.up else "c") if vote.by_canary else ("H" if vote.up else "h"))
        stages.append(str(canary.stage_at(vote.served_us)))
    return Seen(
        stage=len(canary.stages) - 1,
        votes="".join(letters),
        vote_stages="".join(stages),
        answers=count_canary_answers(store, canary),
        users=count_canary_users(store, canary),
        usual=tuple(canary.history),
        days=((canary.ended_us or now_us()) - canary.started_us) / DAY_US,
    )
