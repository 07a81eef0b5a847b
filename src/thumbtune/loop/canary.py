"""A candidate on a share of users, and what their votes say: pure, numbers in, a verdict with its reasons out.

Two tests are looked at after every vote. Harm rolls back; better, or not worse by a margin, promotes. Each is wrong
with a chance of at most alpha over the canary's whole life, however often it is looked at (`evidence`). Not enough
votes by the end is a verdict too: the champion stays.

What the chance holds for: people vote on their own, alike in both arms before they see a difference. So one person's
further votes do not count as further people (`votes_of_one_user`), and a vote counts as it was first pressed.
A champion's votes are matched with the canary's in the order in which they came: a level that drifts slowly, as on a
Sunday, moves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thumbtune.errors import ConfigError
from thumbtune.loop.evidence import Level, log_evidence, log_harm, log_split_evidence
from thumbtune.loop.rules import read_fields

Action = Literal["wait", "widen", "promote", "roll back", "stop"]
"""stop: it ends without an answer, and the champion stays."""


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """What a canary is judged by."""

    alpha: float = 0.05
    """Chance, over the canary's whole life, to promote one that is not better; the same to roll back one that is not
    worse."""
    stages: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5)
    """Shares of users that it answers, one after the other."""
    votes_per_stage: int = 20
    """Votes on the canary's answers before the next stage."""
    promote_on: Literal["better", "not_worse"] = "better"
    """not_worse: it is enough to be shown less than `margin` below the champion."""
    margin: float = 0.05
    """Points of up-rate."""
    max_days: float = 28.0
    """After these, without an answer, the champion stays."""
    votes_of_one_user: int = 1
    """So many votes of each person count: the first ones on answers of this canary's time."""
    split_alpha: float = 0.001
    """Chance that a sound split of users is called broken."""

    def __post_init__(self) -> None:
        shares = self.stages
        if not shares or any(not 0 < share <= 0.5 for share in shares) or list(shares) != sorted(set(shares)):
            raise ConfigError(
                f"canary stages are {list(shares)}: give growing shares, above 0 and at most 0.5"
            )
        for name in ("alpha", "split_alpha", "margin"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"canary {name} is {getattr(self, name)}, expected a number between 0 and 1"
                )
        for name in ("votes_per_stage", "votes_of_one_user", "max_days"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"canary {name} is {getattr(self, name)}, expected more than 0")


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a canary at one look. The streams are in the order in which they were pressed."""

    stage: int
    """Index into the rules' stages."""
    votes: str
    """A letter a vote: C and c on the canary's answers, 👍 and 👎; H and h on the champion's."""
    vote_stages: str
    """A digit a vote: the stage in which its answer was served."""
    answers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """For canary and champion: [answers, those that broke off by an error of ours], since the start."""
    users: Sequence[int] = (0, 0)
    """Users who were answered in this stage: those of the canary, and all."""
    usual: Sequence[float] = (0, 0)
    """The champion's up-votes and votes before the canary."""
    days: float = 0.0
    """Since the start."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a canary, and why."""

    action: Action
    reasons: tuple[str, ...]
    numbers: Mapping[str, Any]
    """Counts, rates, and the evidence as natural logarithms; an action is taken at log(1/alpha)."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The evidence after each block, for a picture. Natural logarithms."""

    better: NDArray[np.float64]
    harm: NDArray[np.float64]
    n_canary: NDArray[np.int64]
    """Votes on the canary's answers up to the block."""


ERROR_ANSWERS = 10
"""Answers of the canary before errors alone end it."""
ERROR_SHARE = 0.2
"""Share of its answers that may break off above the champion's."""
MOST_USUAL_VOTES = 200
"""The champion's earlier votes count at most as so many: the level may have moved since."""


def conclude(seen: Seen, rules: CanaryRules) -> Verdict:
    """The verdict on all votes so far. The same numbers give the same verdict, so a record can be judged again."""
    curves = draw_curves(seen, rules)
    split = log_split_evidence(seen.users[0], seen.users[1], rules.stages[seen.stage])
    numbers = _count(seen, rules, curves, split)
    rates = (
        f"👍 on {_tell(numbers['canary'])} of its answers, on {_tell(numbers['champion'])} of the champion's"
    )
    limit = numbers["log_limit"]
    # the first test to reach its limit decides, whatever the other did later
    first_better, first_harm = _first(curves.better, limit), _first(curves.harm, limit)
    share = rules.stages[seen.stage]

    def decide(action: Action, reason: str) -> Verdict:
        return Verdict(action, (reason,), numbers)

    if broken := _too_many_errors(seen.answers):
        return decide("roll back", broken)
    if split >= np.log(1 / rules.split_alpha):
        told = f"it answered {seen.users[0]} of {seen.users[1]} users, {share:.0%} were expected"
        return decide("roll back", f"the split of users is broken: {told}")
    if first_harm < first_better:
        return decide("roll back", f"it is worse (E = {_show(numbers['log_harm'], limit)}): {rates}")
    if first_better < np.inf:
        claim = "better" if rules.promote_on == "better" else f"not worse by {rules.margin:.0%}"
        return decide("promote", f"it is {claim} (E = {_show(numbers['log_better'], limit)}): {rates}")
    if seen.days >= rules.max_days:
        return decide("stop", f"not enough votes to tell within {rules.max_days:g} days: {rates}")
    n_here = sum(
        letter in "Cc" and stage == str(seen.stage)
        for letter, stage in zip(seen.votes, seen.vote_stages, strict=True)
    )
    if seen.stage + 1 < len(rules.stages) and n_here >= rules.votes_per_stage:
        return decide("widen", f"{n_here} votes at {share:.0%} of users show no harm: {rates}")
    return decide("wait", f"nothing is shown yet: {rates}")


def _count(seen: Seen, rules: CanaryRules, curves: Curves, log_split: float) -> dict[str, Any]:
    return {
        "stage": seen.stage,
        "share": rules.stages[seen.stage],
        "canary": [seen.votes.count("C"), seen.votes.count("C") + seen.votes.count("c")],
        "champion": [seen.votes.count("H"), seen.votes.count("H") + seen.votes.count("h")],
        "matched": len(curves.n_canary),
        "log_better": float(curves.better.max(initial=0.0)),
        "log_harm": float(curves.harm.max(initial=0.0)),
        "log_limit": float(np.log(1 / rules.alpha)),
        "log_split": log_split,
        "days": seen.days,
    }


def draw_curves(seen: Seen, rules: CanaryRules) -> Curves:
    """Both tests' evidence over the votes."""
    blocks = match_votes(seen, rules)
    up, votes = seen.usual
    weight = min(1.0, MOST_USUAL_VOTES / votes) if votes else 0.0
    streams = (blocks.champion_up, blocks.champion_votes, blocks.canary_up)
    level = Level(1.0 + weight * up, 2.0 + weight * votes)
    margin = -rules.margin if rules.promote_on == "not_worse" else 0.0
    return Curves(
        better=log_evidence(*streams, margin=margin, before=level),
        harm=log_harm(*streams, before=level),
        n_canary=np.arange(1, len(blocks.canary_up) + 1),
    )


@dataclass(frozen=True, slots=True)
class Blocks:
    """One canary vote each, beside the champion's votes that came for it. Arrays (blocks,)."""

    champion_up: NDArray[np.int64]
    champion_votes: NDArray[np.int64]
    canary_up: NDArray[np.int64]


def match_votes(seen: Seen, rules: CanaryRules) -> Blocks:
    """Votes in blocks: the next vote on the canary's answers with the champion's next ones, so many as its stage has
    users for each of the canary's. What has no partner yet waits."""
    champion = [letter == "H" for letter in seen.votes if letter in "Hh"]
    ups, votes, canary = [], [], []
    used = 0
    for letter, stage in zip(seen.votes, seen.vote_stages, strict=True):
        if letter not in "Cc":
            continue
        n = champions_for_one(rules.stages[int(stage)])
        if used + n > len(champion):
            break
        ups.append(sum(champion[used : used + n]))
        votes.append(n)
        canary.append(letter == "C")
        used += n
    return Blocks(np.array(ups, np.int64), np.array(votes, np.int64), np.array(canary, np.int64))


def champions_for_one(share: float) -> int:
    """Users of the champion for one of the canary: 1 at a half, 99 at a hundredth."""
    return max(1, round((1 - share) / share))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What can be told by when, at the pace of votes so far."""

    difference: float
    """Points of up-rate, below 0 for a worse canary."""
    votes: int
    """Of the canary, in the middle case."""
    days: float | None
    """From now; None where no vote has come yet."""


def forecast(
    seen: Seen, rules: CanaryRules, differences: Sequence[float] = (-0.2, -0.1, -0.05, 0.05, 0.1)
) -> list[Forecast]:
    """Votes on the canary's answers that the tests need at its last stage, if it were better or worse by so much.

    By the rate of the best test that knows both up-rates, log(1/alpha) over the nats of a block; ours needs about as
    many in the median (docs/concepts/canary.md has the measured table).
    """
    ups, votes = seen.votes.count("H") + seen.usual[0], seen.votes.lower().count("h") + seen.usual[1]
    level = min(0.99, max(0.01, (ups + 1) / (votes + 2)))
    n = champions_for_one(rules.stages[-1])
    done = seen.votes.lower().count("c")
    share = rules.stages[seen.stage]
    a_day = done / seen.days * rules.stages[-1] / share if done and seen.days > 0 else None
    found = []
    for difference in differences:
        other = level + difference
        if not 0 < other < 1:
            continue
        needed = round(np.log(1 / rules.alpha) / nats_of_a_block(level, other, n))
        left = max(0, needed - done)
        found.append(Forecast(difference, needed, None if a_day is None else left / a_day))
    return found


def nats_of_a_block(champion: float, canary: float, n: int = 1) -> float:
    """What a block says on average to a test that knows both rates."""
    pooled = (n * champion + canary) / (n + 1)
    return n * _divergence(champion, pooled) + _divergence(canary, pooled)


def as_record(seen: Seen, rules: CanaryRules, verdict: Verdict) -> dict[str, Any]:
    """A decision with all that it was made from."""
    return {"seen": asdict(seen), "rules": asdict(rules), "verdict": asdict(verdict)}


def replay(record: Mapping[str, Any]) -> Verdict:
    """The verdict that a record's numbers give today."""
    return conclude(Seen(**record["seen"]), read_rules(record["rules"]))


def read_rules(content: Mapping[str, Any]) -> CanaryRules:
    """Rules from JSON. Raises `ConfigError` for an unknown name."""
    return read_fields(CanaryRules, content, "canary rule")


def _first(curve: NDArray[np.float64], limit: float) -> float:
    reached = np.flatnonzero(curve >= limit)
    return float(reached[0]) if len(reached) else np.inf


def _too_many_errors(answers: Mapping[str, Sequence[int]]) -> str | None:
    """A canary that breaks off gets no votes: its errors have to speak. A plain limit, far from chance."""
    n, failed = answers.get("canary", (0, 0))
    n_champion, failed_champion = answers.get("champion", (0, 0))
    usual = failed_champion / n_champion if n_champion else 0.0
    if n < ERROR_ANSWERS or failed / n <= usual + ERROR_SHARE:
        return None
    return f"{failed} of its {n} answers broke off, {failed_champion} of the champion's {n_champion}"


def _divergence(p: float, q: float) -> float:
    return float(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def _tell(counts: Sequence[int]) -> str:
    up, n = counts
    return f"{up / n:.0%} (n = {n})" if n else "none (n = 0)"


def _show(log_value: float, limit: float) -> str:
    value = np.exp(min(log_value, 700.0))  # beyond it is infinity
    return f"{value:{'.0f' if value < 1e6 else '.0e'}}, {np.exp(limit):.0f} were asked for"
