"""The evidence on two streams of votes: never above its promise, and quick enough to be of use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbtune.loop.evidence import (
    DIFFERENCES,
    LEVELS,
    WEIGHTS,
    Level,
    log_evidence,
    log_harm,
    log_split_evidence,
    nearest_null,
)

ALPHA = 0.05
GRID = np.linspace(0.005, 0.995, 100)


def draw(champion: float, canary: float, runs: int, votes: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Blocks of one vote of each arm."""
    rng = np.random.default_rng(seed)
    return (
        (rng.random((runs, votes)) < champion).astype(int),
        np.ones(votes, int),
        (rng.random((runs, votes)) < canary).astype(int),
    )


def test_the_first_block_by_hand() -> None:
    # before any vote the level is 1/2; an alternative d apart has rates expit(-d/2) and expit(d/2), pooled 1/2,
    # so a canary's 👍 beside a champion's 👎 multiplies by (2 expit(d/2))², and the other way round by (2 expit(-d/2))²
    def mixed(sign: float) -> float:
        return sum(
            w * (2 / (1 + math.exp(-sign * d / 2))) ** 2 for w, d in zip(WEIGHTS, DIFFERENCES, strict=True)
        )

    one = np.array([1])
    assert log_evidence(np.array([0]), one, np.array([1]))[0] == pytest.approx(math.log(mixed(1)))
    assert log_evidence(np.array([1]), one, np.array([0]))[0] == pytest.approx(math.log(mixed(-1)))
    assert WEIGHTS.sum() == pytest.approx(1)


def test_two_equal_votes_say_almost_nothing() -> None:
    both_up = log_evidence(np.array([1]), np.array([1]), np.array([1]))[0]
    assert -0.2 < both_up < 0  # (1 - tanh²) of each alternative, below 1


def test_harm_is_the_same_claim_about_the_other_thumb() -> None:
    up, votes, canary = draw(0.7, 0.6, 3, 50)
    turned = log_evidence(1 - up, votes, 1 - canary, before=Level(1, 3))
    assert log_harm(up, votes, canary, before=Level(2, 3)) == pytest.approx(turned)


@given(
    n=st.sampled_from([1, 3, 19, 99]),
    margin=st.sampled_from([0.0, -0.05, -0.2, 0.1]),
    level=st.sampled_from(LEVELS.tolist()),
    difference=st.sampled_from(DIFFERENCES.tolist()),
)
def test_a_block_is_worth_at_most_one_wherever_the_claim_is_false(
    n: int, margin: float, level: float, difference: float
) -> None:
    """The mean of a block's factor, exactly, on a grid over all pairs of rates with canary ≤ champion + margin."""
    centre = math.log(level / (1 - level))
    champion, canary = (1 / (1 + np.exp(-(centre + half))) for half in (-difference / 2, difference / 2))
    if canary <= champion + margin:
        return  # no alternative
    null_champion, null_canary = nearest_null(np.array([champion]), np.array([canary]), n, margin)
    p, q = np.meshgrid(GRID, GRID, indexing="ij")
    allowed = q <= p + margin
    of_champion = p * champion / null_champion + (1 - p) * (1 - champion) / (1 - null_champion)
    of_canary = q * canary / null_canary + (1 - q) * (1 - canary) / (1 - null_canary)
    mean = of_champion**n * of_canary
    assert mean[allowed].max() <= 1 + 1e-9


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
def test_it_equals_the_product_taken_block_by_block(blocks: list[tuple[int, bool]]) -> None:
    champion_up = np.array([up for up, _ in blocks])
    canary_up = np.array([int(up) for _, up in blocks])
    ours = log_evidence(champion_up, np.full(len(blocks), 3), canary_up)
    products = [0.0] * len(DIFFERENCES)
    seen_up, seen = 1.0, 2.0
    for (up, canary), got in zip(blocks, ours, strict=True):
        level = LEVELS[np.abs(LEVELS - seen_up / seen).argmin()]
        centre = math.log(level / (1 - level))
        for k, difference in enumerate(DIFFERENCES):
            p = 1 / (1 + math.exp(-(centre - difference / 2)))
            q = 1 / (1 + math.exp(-(centre + difference / 2)))
            pooled = (3 * p + q) / 4
            products[k] += up * math.log(p / pooled) + (3 - up) * math.log((1 - p) / (1 - pooled))
            products[k] += math.log(q / pooled) if canary else math.log((1 - q) / (1 - pooled))
        total = sum(w * math.exp(x) for w, x in zip(WEIGHTS, products, strict=True))
        assert got == pytest.approx(math.log(total), abs=1e-9)
        seen_up, seen = seen_up + up + canary, seen + 4


@pytest.mark.parametrize("rate", [0.2, 0.8, 0.95])
def test_two_equal_arms_seldom_reach_the_limit_however_often_they_are_looked_at(rate: float) -> None:
    streams = draw(rate, rate, runs=1500, votes=1000)
    for test in (log_evidence, log_harm):
        wrong = (test(*streams) >= math.log(1 / ALPHA)).any(axis=-1).mean()
        assert wrong <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 1500)


def test_not_worse_is_seldom_said_of_one_that_is_worse_by_the_margin() -> None:
    streams = draw(0.8, 0.75, runs=1500, votes=1000)
    wrong = (log_evidence(*streams, margin=-0.05) >= math.log(1 / ALPHA)).any(axis=-1).mean()
    assert wrong <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 1500)


def test_ten_points_at_eighty_are_caught_about_as_fast_as_by_one_who_knows_the_rates() -> None:
    log = log_harm(*draw(0.8, 0.7, runs=600, votes=1500))
    caught = log >= math.log(1 / ALPHA)
    assert caught.any(axis=-1).all()
    assert np.median(caught.argmax(axis=-1) + 1) <= 1.15 * 224


def test_uneven_shares_keep_the_promise() -> None:
    rng = np.random.default_rng(1)
    votes = np.array([99] * 20 + [19] * 20 + [3] * 100 + [1] * 200)
    up = rng.binomial(votes, 0.8, size=(1000, len(votes)))
    canary = (rng.random((1000, len(votes))) < 0.8).astype(int)
    for test in (log_evidence, log_harm):
        assert (test(up, votes, canary) >= math.log(1 / ALPHA)).any(axis=-1).mean() <= 0.07


def test_a_split_of_users_is_judged_by_its_share() -> None:
    assert log_split_evidence(50, 1000, 0.05) < 0  # as it should be
    assert log_split_evidence(120, 1000, 0.05) > math.log(1000)  # far too many
    assert log_split_evidence(0, 0, 0.05) == 0
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(500):
        arrivals = np.cumsum(rng.random(400) < 0.25)
        wrong += any(
            log_split_evidence(int(arrivals[n]), n + 1, 0.25) > math.log(20) for n in range(0, 400, 7)
        )
    assert wrong / 500 <= 0.05 + 0.03
