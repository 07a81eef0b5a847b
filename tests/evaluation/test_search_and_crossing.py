"""What settings are tried and taken, and where a curve of bought pairs reaches the thumbs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thumbtune.errors import ConfigError
from thumbtune.evaluation.crossing import find_crossing
from thumbtune.evaluation.search import Trial, choose, propose_settings
from thumbtune.evaluation.statistics import Estimate, paired_p_value

START = {"learning_rate": 1e-4, "beta": 0.1, "num_train_epochs": 1}


def rate(mean: float) -> Estimate:
    return Estimate(mean, 0.0, 1.0, 10)


def test_every_method_gets_the_same_steps_around_its_start() -> None:
    tried = [(t["learning_rate"], t["beta"]) for t in propose_settings(START, 5)]
    assert tried == [(1e-4, 0.1), (3e-4, 0.1), (3.33e-5, 0.1), (1e-4, 0.3), (1e-4, 0.0333)]
    assert all(t["num_train_epochs"] == 1 for t in propose_settings(START, 5))
    with pytest.raises(ConfigError, match="0 trials"):
        propose_settings(START, 0)


def test_the_best_is_taken_the_earliest_among_equals_and_never_one_that_failed() -> None:
    trials = [Trial({"n": 0}, rate(0.3)), Trial({"n": 1}, rate(0.5)), Trial({"n": 2}, rate(0.5))]
    assert choose(trials) == {"n": 1}
    assert choose([Trial({"n": 0}, None, "no"), Trial({"n": 1}, rate(0.0))]) == {"n": 1}
    assert choose([Trial({"n": 0}, None, "no"), Trial({"n": 1}, None, "no")]) == {"n": 0}


def test_a_crossing_worked_by_hand() -> None:
    # rates 0.2, 0.4, 0.8 at 10, 40, 160 pairs; wanted 0.6, half way from 40 to 160 on a log scale: √(40 × 160) = 80
    curve = [[0.2] * 4, [0.4] * 4, [0.8] * 4]
    found = find_crossing([10, 40, 160], curve, [0.6] * 4)
    assert found.pairs == pytest.approx(80.0)
    assert (found.low, found.high, found.share_beyond) == (pytest.approx(80.0), pytest.approx(80.0), 0.0)
    assert find_crossing([10, 40, 160], curve, [0.9] * 4).pairs == math.inf
    assert find_crossing([10, 40, 160], curve, [0.1] * 4).pairs == 0.0


def test_a_point_that_lies_high_by_luck_is_no_crossing() -> None:
    # 0.2, 0.7, 0.3, 0.4 are made monotone: 0.2, then (0.7 + 0.3 + 0.4) / 3 = 0.4667 three times; 0.6 is never reached
    assert find_crossing([10, 20, 40, 80], [[0.2], [0.7], [0.3], [0.4]], [0.6]).pairs == math.inf


def test_the_interval_of_a_crossing_holds_the_truth_about_as_often_as_it_says() -> None:
    """Prompts drawn from known rates: 0.2, 0.5, 0.8 at 10, 40, 160; wanted 0.65, so 80 pairs."""
    rng, held, n_runs = np.random.default_rng(7), 0, 40
    for _ in range(n_runs):
        curve = [(rng.random(200) < p).astype(float) for p in (0.2, 0.5, 0.8)]
        target = (rng.random(200) < 0.65).astype(float)
        found = find_crossing([10, 40, 160], curve, target)
        held += found.low <= 80 <= found.high
    assert held >= 34  # 95 % of 40 is 38; below 34 has a chance of 1 %


def test_the_paired_test_worked_by_hand() -> None:
    # eight differences of one sign: both signs in 2 of 2^8 flips are as extreme, p = 2 / 256
    assert paired_p_value([1.0] * 8) == pytest.approx(2 / 256)
    assert paired_p_value([0.0] * 8) == 1.0
    assert paired_p_value([1.0, -1.0]) == 1.0
