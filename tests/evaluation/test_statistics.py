from __future__ import annotations

from dataclasses import replace

import pytest

from thumbtune.evaluation.statistics import estimate_auc, estimate_mean, estimate_ratio, estimate_share


def test_the_share_of_single_samples_has_wilsons_interval() -> None:
    estimate = estimate_share([[True]] * 6 + [[False]] * 42)
    # Wilson by hand, z = 1.96, n = 48, p = 0.125: centre (0.125 + 0.04002) / 1.08003, half-width 0.0969
    assert estimate.mean == 0.125
    assert (estimate.low, estimate.high) == (pytest.approx(0.0586, abs=1e-3), pytest.approx(0.2470, abs=1e-3))
    assert estimate.n == 48


def test_an_extreme_share_still_has_an_interval() -> None:
    assert estimate_share([[False]] * 20).high > 0.1
    assert estimate_share([[True] * 5] * 20) == replace(estimate_share([[True]] * 20), n=100)


def test_samples_of_one_prompt_are_resampled_together() -> None:
    copies = estimate_share([[True] * 10, [False] * 10] * 5)
    apart = estimate_share([[True, False] * 5] * 10)
    assert copies.high - copies.low > 0.4
    assert apart.high == apart.low == 0.5


def test_a_ratio_weighs_prompts_by_their_tokens() -> None:
    assert estimate_ratio([2.0, 1.0], [3.0, 1.0]).mean == pytest.approx(0.75)


def test_intervals_are_the_same_on_every_call() -> None:
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    assert estimate_mean(values) == estimate_mean(values)


def test_auc_has_an_interval_around_it_and_none_for_one_class() -> None:
    estimate = estimate_auc(
        [[0.9, 0.8, 0.3, 0.2, 0.7, 0.1]], [True, True, False, False, False, True], [0, 1, 2, 3, 4, 5]
    )
    assert estimate is not None
    # Nine pairs of 👍 and 👎: 0.9 and 0.8 beat all three, 0.1 beats none: 6 of 9
    assert estimate.mean == pytest.approx(6 / 9)
    assert estimate.low <= estimate.mean <= estimate.high
    assert estimate_auc([[0.1, 0.2]], [True, True], [0, 1]) is None


def test_the_auc_of_two_runs_is_the_mean_of_theirs_whatever_their_scales() -> None:
    # pooled, the second's larger numbers would rule
    estimate = estimate_auc([[0.2, 0.1, 0.4, 0.3], [50.0, 60.0, 70.0, 80.0]], [True, False] * 2, [0, 0, 1, 1])
    assert estimate is not None
    # first: 0.2 > 0.1, 0.4 > 0.1, 0.4 > 0.3, 0.2 < 0.3: 3 of 4; second: 70 > 60 alone: 1 of 4
    assert estimate.mean == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert estimate.n == 4


def test_intervals_that_touch_are_not_apart() -> None:
    low, high = estimate_share([[True]] * 2 + [[False]] * 46), estimate_share([[True]] * 34 + [[False]] * 14)
    assert high.above(low)
    assert not low.above(high)
    assert not high.above(high)
