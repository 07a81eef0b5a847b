"""Which votes are learned from: one relational expression over the presses, the same on DuckDB and on Spark.

    outcomes = curate(presses, CurationRules(), newest_us)      # (vote_id, outcome), one row a press

Every press gets an `outcome`: the first reason that keeps it out, or that it is kept, and where. So counting is one
`group_by`, and explaining a vote is one filter. A step sees what the steps before it let through.

What is guaranteed. The outcome of a press depends on the presses, not on the order in which they were stored (but a
person's presses on one completion: there the newest number wins, as in the store). A person is held out or not by a
hash of their key alone, for good: votes of others, later votes and other rules move nobody, only another salt or share
does. A row is held out if the one who asked or the one who voted is; so no held-out person is ever trained on, and no
training row shares a prompt or a conversation with a held-out row.

What would break it. `Column.hash()` differs between backends, `lower()` and white space classes too: texts come as
SHA-256 digests of their NFC form, made once in Python (`staging`). Times are whole microseconds. No step sorts or
groups by text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from thumbtune.data.weights import DAY_US, recency_weight, round_weight
from thumbtune.errors import ConfigError
from thumbtune.records import BROKEN_OFF, VoteKind

if TYPE_CHECKING:
    from ibis import Table
    from ibis.expr.types import BooleanValue, StringValue

TRAINING = "kept: training"
HELD_OUT = "kept: held out"
NEAR_DUPLICATE = "near duplicate"

OUTCOMES = (
    "superseded by a newer press",
    "taken back",
    "text erased",
    "empty completion",
    "broken off before its end",
    "kind not asked for",
    "too old",
    "voter pressed too fast",
    "voter's share is full",
    "no quorum",
    "outvoted",
    "prompt is in the hold-out",
    "conversation is in the hold-out",
    "exact duplicate",
    NEAR_DUPLICATE,
    TRAINING,
    HELD_OUT,
)
"""All there are, in the order in which they are looked for."""

MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True)
class CurationRules:
    """Which votes are learned from; None switches a rule off. Raises `ConfigError`."""

    kinds: tuple[str, ...] = ("explicit",)
    """Kinds of votes: explicit, edit, retry, copy."""
    max_age_days: float | None = None
    """Votes this much older than the newest press are left out."""
    burst_votes: int | None = 30
    """More votes than this by one voter within one window of the clock, and all of the window are left out."""
    burst_minutes: int = 1
    """The length of that window."""
    most_votes_of_one: int | None = 20
    """So many of each voter's votes are kept, the newest ones."""
    quorum: float | None = 2 / 3
    """The share of the voters on one prompt and completion that must agree, or none of them counts."""
    near_duplicates: float | None = 0.9
    """Training rows of one label whose texts are at least this similar (Jaccard, of word triples) count once.

    Those as similar to a held-out row are left out."""
    held_out_share: float = 0.1
    """The share of people whose votes are kept for measuring, and never trained on."""
    keep_apart: Literal["prompt", "completion"] = "prompt"
    """What training must not share with the hold-out. A service that is asked the same few prompts again and again has
    nothing left to train on by "prompt": there "completion" keeps the same answer to the same prompt apart."""
    half_life_days: float | None = None
    """A vote this much older than the newest press weighs half."""
    salt: str = "thumbtune"
    """Who is held out hangs on this and on nothing else: another salt, other people."""

    def __post_init__(self) -> None:
        known: tuple[str, ...] = get_args(VoteKind)
        unknown = [kind for kind in self.kinds if kind not in known]
        if unknown or not self.kinds:
            raise ConfigError(f"kinds: {unknown[:1] or 'none'} is no kind of vote: {', '.join(known)}")
        if self.keep_apart not in ("prompt", "completion"):
            raise ConfigError(f"keep_apart is {self.keep_apart!r}: prompt or completion")
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(f"held_out_share is {self.held_out_share}: expected 0 to below 1")
        for name in ("quorum", "near_duplicates"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(f"{name} is {share}: expected above 0 to 1, or none")
        for name in ("max_age_days", "burst_votes", "burst_minutes", "most_votes_of_one", "half_life_days"):
            number = getattr(self, name)
            if number is not None and number <= 0:
                raise ConfigError(f"{name} is {number}: expected above 0, or none")

    def weigh(self, strength: float, age_us: int) -> float:
        """What a vote counts, this much older than the newest press. In Python, so it is equal on every backend."""
        if self.half_life_days is None:
            return round_weight(strength)
        return round_weight(strength * recency_weight(age_us, self.half_life_days))


def curate(
    presses: Table,
    rules: CurationRules,
    newest_us: int,
    keep: Callable[[Table, int], Table] = lambda judged, _: judged,
) -> Table:
    """(vote_id, outcome) of every press; near duplicates are still among those kept.

    `presses` has the columns of `staging.PRESSES`; `newest_us` is when the newest of them was pressed. `keep` may
    carry out what a step judged, given its number, and hand back the table: the expression means the same, but each
    step is used twice, and a backend that does not see this computes the first one many times (DuckDB: more than
    twice the seconds).
    """
    import ibis

    oldest_us = None if rules.max_age_days is None else newest_us - int(rules.max_age_days * DAY_US)
    of_voters: list[Callable[[Table], Table]] = [lambda votes: _judge_alone(votes, rules, oldest_us)]
    if rules.burst_votes is not None:
        of_voters.append(lambda votes: _judge_bursts(votes, rules))
    if rules.most_votes_of_one is not None:
        of_voters.append(lambda votes: _judge_shares(votes, rules))
    of_texts: list[Callable[[Table], Table]] = []
    if rules.quorum is not None:
        of_texts.append(lambda votes: _judge_contradictions(votes, rules))
    of_texts += [lambda votes: _judge_split(votes, rules), _judge_duplicates]

    settled: list[Table] = []

    def settle(votes: Table, steps: list[Callable[[Table], Table]]) -> Table:
        for step in steps:
            judged = keep(step(votes), len(settled))
            settled.append(judged.filter(judged.outcome.notnull()).select("vote_id", "outcome"))
            votes = judged.filter(judged.outcome.isnull()).drop("outcome")
        return votes

    remaining = settle(presses, of_voters)
    remaining = settle(
        remaining.select("vote_id").inner_join(presses, "vote_id").select(*_OF_TEXTS), of_texts
    )
    side = remaining.held_out.ifelse(HELD_OUT, TRAINING)
    return ibis.union(remaining.select("vote_id", outcome=side), *settled)


_OF_VOTERS = ("vote_id", "completion_id", "user_key", "kind", "created_us")
"""What the steps look at through which every press goes: the fewer columns, the faster."""

_OF_TEXTS = (
    *_OF_VOTERS,
    "label",
    "conversation_key",
    "asked_by",
    "prompt_digest",
    "completion_digest",
    "correction_digest",
)
"""What the steps after them look at."""


def _judge_alone(presses: Table, rules: CurationRules, oldest_us: int | None) -> Table:
    """What can be said of a press by itself; before that, only a person's newest of a kind on a completion counts."""
    reasons = [
        (presses.label.isnull(), "taken back"),
        (presses.erased, "text erased"),
        (~presses.has_text, "empty completion"),
        (presses.finish_reason.isin(BROKEN_OFF), "broken off before its end"),
        (presses.kind.notin(rules.kinds), "kind not asked for"),
    ]
    if oldest_us is not None:
        reasons.append((presses.created_us < oldest_us, "too old"))
    judged = presses.select(*_OF_VOTERS, alone=_first(*reasons))
    place = judged.group_by("completion_id", "user_key", "kind")
    ranked = place.mutate(newest_id=judged.vote_id.max())
    superseded = ranked.vote_id != ranked.newest_id
    outcome = superseded.ifelse("superseded by a newer press", ranked.alone)
    return ranked.mutate(outcome=outcome).drop("newest_id", "alone")


def _judge_bursts(votes: Table, rules: CurationRules) -> Table:
    window = votes.created_us - votes.created_us % (rules.burst_minutes * MINUTE_US)
    timed = votes.mutate(window=window)
    counted = timed.group_by("user_key", "window").mutate(n_in_window=timed.count())
    outcome = _first((counted.n_in_window > rules.burst_votes, "voter pressed too fast"))
    return counted.mutate(outcome=outcome).drop("window", "n_in_window")


def _judge_shares(votes: Table, rules: CurationRules) -> Table:
    import ibis

    newest_first = [votes.created_us.desc(), votes.completion_id, votes.kind]
    ranked = votes.mutate(
        n_newer=ibis.row_number().over(ibis.window(group_by=votes.user_key, order_by=newest_first))
    )
    outcome = _first((ranked.n_newer >= rules.most_votes_of_one, "voter's share is full"))
    return ranked.mutate(outcome=outcome).drop("n_newer")


def _judge_contradictions(votes: Table, rules: CurationRules) -> Table:
    """Voters are counted, not votes; one who said both counts for both."""
    pair = ["prompt_digest", "completion_digest"]
    opinions = votes.select(*pair, "label", "user_key").distinct()
    counted = opinions.group_by(prompt=opinions.prompt_digest, answer=opinions.completion_digest).agg(
        n_up=opinions.label.cast("int64").sum(), n_voters=opinions.count()
    )
    beside = votes.inner_join(
        counted, [votes.prompt_digest == counted.prompt, votes.completion_digest == counted.answer]
    )
    n_agreeing = beside.label.ifelse(beside.n_up, beside.n_voters - beside.n_up)
    needed = rules.quorum
    agreeing, others = n_agreeing / beside.n_voters, (beside.n_voters - n_agreeing) / beside.n_voters
    outcome = _first(
        ((agreeing < needed) & (others < needed), "no quorum"),
        # below one half both sides may have their quorum: the larger one stands, and of two equal ones neither
        ((agreeing < needed) | (agreeing < others), "outvoted"),
        ((agreeing == others), "no quorum"),
    )
    return beside.mutate(outcome=outcome).drop("prompt", "answer", "n_up", "n_voters")


def _judge_split(votes: Table, rules: CurationRules) -> Table:
    held_out = _is_held_out(votes.asked_by, rules) | _is_held_out(votes.user_key, rules)
    sides = votes.mutate(held_out=held_out)
    measured = sides.filter(sides.held_out)
    names = {"held_prompt": "prompt_digest"}
    if rules.keep_apart == "completion":
        names["held_answer"] = "completion_digest"
    shown = measured.select(**{held: measured[own] for held, own in names.items()}).distinct()
    talks = measured.select(held_talk=measured.conversation_key).distinct()
    beside = sides.left_join(shown, [sides[own] == shown[held] for held, own in names.items()])
    beside = beside.left_join(talks, beside.conversation_key == talks.held_talk)
    outcome = _first(
        (~beside.held_out & beside.held_prompt.notnull(), "prompt is in the hold-out"),
        (~beside.held_out & beside.held_talk.notnull(), "conversation is in the hold-out"),
    )
    return beside.mutate(outcome=outcome).drop(*names, "held_talk")


def _is_held_out(key: StringValue, rules: CurationRules) -> BooleanValue:
    """Whether the person's hash, a number below 2 ** 32 in hex, lies in the share; hex sorts as its numbers do."""
    import ibis

    share = f"{int(rules.held_out_share * 2**32):08x}"
    return (ibis.literal(f"{rules.salt}:") + key).hexdigest("sha256").substr(0, 8) < share


def _judge_duplicates(votes: Table) -> Table:
    """Voters who agree on one prompt and completion are one row: the newest press stands for all."""
    import ibis

    same = ["prompt_digest", "completion_digest", "correction_digest", "label"]
    newest_first = [votes.created_us.desc(), votes.completion_id, votes.user_key, votes.kind]
    ranked = votes.mutate(n_newer=ibis.row_number().over(ibis.window(group_by=same, order_by=newest_first)))
    return ranked.mutate(outcome=_first((ranked.n_newer > 0, "exact duplicate"))).drop("n_newer")


def _first(*reasons: tuple[Any, str]) -> StringValue:
    """The text of the first condition that holds, else null."""
    import ibis

    return ibis.cases(*reasons, else_=ibis.null("string"))
