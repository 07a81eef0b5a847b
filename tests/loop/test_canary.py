"""A canary's verdicts, on votes that are written down."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from thumbtune.errors import ConfigError
from thumbtune.loop.canary import (
    CanaryRules,
    Seen,
    as_record,
    champions_for_one,
    conclude,
    draw_curves,
    forecast,
    match_votes,
    nats_of_a_block,
    read_rules,
    replay,
)

HALF = CanaryRules(stages=(0.5,))


def see(votes: str, *, stage: int = 0, **more: Any) -> Seen:
    """Votes that all came in one stage."""
    return Seen(stage=stage, votes=votes, vote_stages=str(stage) * len(votes), **more)


def draw_votes(champion: float, canary: float, n: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return "".join(
        ("C" if rng.random() < canary else "c") + ("H" if rng.random() < champion else "h") for _ in range(n)
    )


def test_votes_are_matched_in_the_order_in_which_they_came() -> None:
    blocks = match_votes(see("CHhcHC"), HALF)
    assert blocks.canary_up.tolist() == [True, False, True]
    assert blocks.champion_up.tolist() == [1, 0, 1]
    assert match_votes(see("CcC"), HALF).canary_up.tolist() == []  # they wait for the champion's
    assert match_votes(see("HHhC" + "h"), CanaryRules(stages=(0.25,))).champion_up.tolist() == [2]


@pytest.mark.parametrize(("share", "n"), [(0.5, 1), (0.25, 3), (0.05, 19), (0.01, 99)])
def test_a_block_has_the_champions_of_its_share(share: float, n: int) -> None:
    assert champions_for_one(share) == n


def test_a_worse_candidate_is_rolled_back_and_a_better_one_promoted() -> None:
    assert conclude(see(draw_votes(0.9, 0.4, 150)), HALF).action == "roll back"
    assert conclude(see(draw_votes(0.4, 0.9, 150)), HALF).action == "promote"
    verdict = conclude(see(draw_votes(0.8, 0.8, 150)), HALF)
    assert verdict.action == "wait"
    assert "n = 150" in verdict.reasons[0]


def test_the_first_test_to_speak_decides() -> None:
    bad, good = draw_votes(0.9, 0.3, 150), draw_votes(0.3, 0.9, 2000, seed=1)
    assert conclude(see(bad + good), HALF).action == "roll back"


def test_evidence_beyond_all_doubt_is_told_in_a_few_digits() -> None:
    for votes in ("Ch" * 50, "Ch" * 1500):
        (reason,) = conclude(see(votes), HALF).reasons
        assert re.match(r"it is better \(E = (\d{1,6}|\de\+\d+), 20 were asked for\)", reason), reason


def test_not_worse_promotes_where_better_cannot() -> None:
    votes = see(draw_votes(0.8, 0.82, 2500))
    assert conclude(votes, HALF).action == "wait"
    verdict = conclude(votes, replace(HALF, promote_on="not_worse"))
    assert verdict.action == "promote"
    assert "not worse by 5%" in verdict.reasons[0]


def test_enough_votes_without_harm_widen_it() -> None:
    rules = CanaryRules(stages=(0.25, 0.5), votes_per_stage=20)
    votes = draw_votes(0.8, 0.8, 20) + "H" * 40
    assert conclude(see(votes), rules).action == "widen"
    assert conclude(see(votes[2:]), rules).action == "wait"
    assert conclude(see(votes, stage=1), rules).action == "wait"  # there is no wider stage
    older = Seen(stage=1, votes=votes, vote_stages="0" * len(votes))
    assert (
        conclude(older, CanaryRules(stages=(0.05, 0.25, 0.5))).action == "wait"
    )  # votes of an earlier stage


def test_without_an_answer_in_time_the_champion_stays() -> None:
    verdict = conclude(see(draw_votes(0.8, 0.8, 30), days=28.0), HALF)
    assert verdict.action == "stop"
    assert "not enough votes" in verdict.reasons[0]


def test_errors_end_a_canary_that_gets_no_votes() -> None:
    answers = {"canary": [12, 5], "champion": [500, 3]}
    assert conclude(see("", answers=answers), HALF).action == "roll back"
    assert conclude(see("", answers={"canary": [9, 9], "champion": [500, 3]}), HALF).action == "wait"
    assert conclude(see("", answers={"canary": [12, 5], "champion": [500, 200]}), HALF).action == "wait"


def test_a_broken_split_ends_it_whatever_the_votes_say() -> None:
    verdict = conclude(see(draw_votes(0.4, 0.9, 150), users=(300, 400)), HALF)
    assert verdict.action == "roll back"
    assert "split" in verdict.reasons[0]


def test_a_decision_is_replayed_from_its_record() -> None:
    import json

    seen = see(draw_votes(0.9, 0.4, 150), users=(70, 150), usual=(80, 100), days=2.0)
    verdict = conclude(seen, HALF)
    record = json.loads(json.dumps(as_record(seen, HALF, verdict)))
    again = replay(record)
    assert (again.action, again.reasons) == (verdict.action, verdict.reasons)
    assert again.numbers == verdict.numbers
    record["rules"]["alpha"] = 1e-30
    assert replay(record).action == "wait"  # the record holds what decides


def test_the_curve_ends_where_the_verdict_stands() -> None:
    seen = see(draw_votes(0.8, 0.7, 100), usual=(8_000, 10_000))
    curves = draw_curves(seen, HALF)
    assert len(curves.n_canary) == len(curves.harm) == 100
    assert conclude(seen, HALF).numbers["log_harm"] == pytest.approx(max(0, curves.harm.max()))


def test_the_forecast_is_the_oracles_rate() -> None:
    # p 0.8 and 0.7, pooled 0.75: 0.8 ln(0.8/0.75) + 0.2 ln(0.2/0.25) + 0.7 ln(0.7/0.75) + 0.3 ln(0.3/0.25) = 0.01340
    assert nats_of_a_block(0.8, 0.7) == pytest.approx(0.01340, abs=1e-5)
    found = forecast(see("Cc", usual=(80_000, 100_000), days=1.0), HALF)
    ten_worse = next(one for one in found if one.difference == -0.1)
    assert ten_worse.votes == 224  # ln 20 / 0.01340
    assert ten_worse.days == pytest.approx(111)  # two votes a day
    assert forecast(see(""), HALF)[0].days is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"stages": ()},
        {"stages": (0.5, 0.25)},
        {"stages": (0.7,)},
        {"votes_per_stage": 0},
        {"margin": -0.1},
        {"max_days": 0},
        {"no_such_rule": 1},
    ],
)
def test_rules_that_cannot_hold_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        read_rules(wrong)
