"""The gate's checks, on measurements that are written down."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from thumbtune.errors import ConfigError
from thumbtune.loop.gate import (
    Answer,
    Check,
    Evidence,
    GateRules,
    Measured,
    as_record,
    decide,
    read_rules,
    replay,
)

N = 40
RULES = GateRules()


def make_side(
    n: int = N,
    *,
    ranks_well: bool = True,
    flattery: float = 0.0,
    must_pass: dict[str, bool] | None = None,
    **answer: Any,
) -> Measured:
    """A model whose answers are all alike."""
    settings = {"length": 20, "refuses": False, "repetition": 0.0, "log_prob": -40.0, "base_log_prob": -42.0}
    ratios = [(1.0 if i % 2 else -1.0) if ranks_well else 0.0 for i in range(60)]
    return Measured([Answer(**{**settings, **answer})] * n, ratios, [flattery] * 16, must_pass or {})


def make_evidence(
    candidate: Measured | None = None, champion: Measured | None = None, **more: Any
) -> Evidence:
    settings = {
        "base_entropy": 2.0,
        "labels": [bool(i % 2) for i in range(60)],
        "vote_prompts": list(range(60)),
    }
    return Evidence(champion or make_side(), candidate or make_side(), **{**settings, **more})


def find(evidence: Evidence, name: str, rules: GateRules = RULES) -> Check:
    (check,) = [one for one in decide(evidence, rules).checks if one.name == name]
    return check


def test_a_twin_of_the_champion_passes() -> None:
    decision = decide(make_evidence(), RULES)
    assert decision.outcome == "pass", decision.reasons
    assert {check.name for check in decision.checks} == {
        *("held-out votes", "length", "refusals", "repetition", "flattery", "KL to the base", "entropy")
    }


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("held-out votes", make_side(ranks_well=False)),
        ("length", make_side(length=60)),
        ("length", make_side(length=3)),
        ("refusals", make_side(refuses=True)),
        ("repetition", make_side(repetition=0.5)),
        ("flattery", make_side(flattery=0.3)),
        ("KL to the base", make_side(base_log_prob=-40 - 21.0)),
        ("entropy", make_side(log_prob=-20 * 0.1, base_log_prob=-3.0)),
        ("must pass", make_side(must_pass={"greeting": False})),
        ("up-rate", make_side(liked=0.0)),
        ("negative flips", make_side(liked=0.0)),
        ("numbers", make_side(log_prob=math.nan)),
    ],
)
def test_harm_of_one_kind_is_enough_to_refuse(name: str, candidate: Measured) -> None:
    evidence = make_evidence(candidate, make_side(liked=1.0))
    assert find(evidence, name).outcome == "refuse"
    decision = decide(evidence, RULES)
    assert decision.outcome == "refuse"
    assert find(evidence, name).told in decision.reasons


def test_more_thumbs_are_no_way_around_the_flattery_probe() -> None:
    evidence = make_evidence(make_side(flattery=1.0, liked=1.0), make_side(liked=0.0))
    assert find(evidence, "up-rate").outcome == "pass"
    assert decide(evidence, RULES).outcome == "refuse"


def test_harm_that_could_be_chance_does_not_refuse() -> None:
    liked = [1.0] * (N - 1) + [0.0]  # one prompt of forty
    candidate = make_side()
    answers = [replace(answer, liked=value) for answer, value in zip(candidate.answers, liked, strict=True)]
    evidence = make_evidence(replace(candidate, answers=answers), make_side(liked=1.0))
    assert find(evidence, "up-rate").outcome == "pass"
    assert find(evidence, "negative flips").outcome == "pass"


def test_too_few_cases_are_not_enough_data_and_no_pass() -> None:
    few = make_evidence(make_side(10), make_side(10))
    assert decide(few, RULES).outcome == "not enough data"
    one_sided = make_evidence(labels=[True] * 58 + [False] * 2)
    assert find(one_sided, "held-out votes").outcome == "not enough data"
    assert decide(one_sided, RULES).outcome == "not enough data"
    nobody = make_evidence(labels=[], vote_prompts=[])
    assert decide(nobody, RULES).outcome == "not enough data"


def test_harm_outweighs_missing_data() -> None:
    assert decide(make_evidence(make_side(10, flattery=1.0), make_side(10)), RULES).outcome == "refuse"


def test_votes_on_one_prompt_are_one_witness() -> None:
    # every vote under one prompt: resampling prompts draws the same votes each time, so the interval has no width
    # and says nothing of other prompts; with sixty prompts it has some
    ratios = [float(i % 7) for i in range(60)]
    mixed = replace(make_side(), vote_log_ratios=ratios)
    alone = find(make_evidence(mixed, vote_prompts=[0] * 60), "held-out votes").number
    apart = find(make_evidence(mixed), "held-out votes").number
    assert alone is not None
    assert apart is not None
    assert alone["high"] - alone["low"] == 0 < apart["high"] - apart["low"]


def test_the_auc_difference_by_hand() -> None:
    # up: 1, 3; down: 2, 0 → pairs (1,2) lost, (1,0) won, (3,2) won, (3,0) won: 3 of 4
    labels, scores = [True, True, False, False] * 15, [1.0, 3.0, 2.0, 0.0] * 15
    sides = replace(make_side(), vote_log_ratios=scores), replace(make_side(), vote_log_ratios=[0.0] * 60)
    number = find(make_evidence(*sides, labels=labels), "held-out votes").number
    assert number is not None
    assert number["mean"] == pytest.approx(0.75 - 0.5)


def test_a_decision_is_replayed_from_its_record() -> None:
    evidence = make_evidence(make_side(flattery=0.5), make_side(liked=1.0))
    decision = decide(evidence, RULES)
    record = json.loads(json.dumps(as_record(evidence, RULES, decision)))
    assert replay(record) == decision
    record["rules"]["flattery_nats"] = 1.0
    assert replay(record).outcome == "pass"


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="no gate rule 'kl'"):
        read_rules({"kl": 1})
