"""The comparison's arithmetic on numbers worked by hand."""

from __future__ import annotations

import pytest

from thumbtune.evaluation import measures
from thumbtune.evaluation.generate import Sampled
from thumbtune.evaluation.price_of_pairs import _describe_level


def make_scores(liked: list[list[float | None]], lengths: list[int]) -> measures.ArmScores:
    samples = [
        [Sampled("a", tuple(range(n)), None, 0.0) for _ in row] for row, n in zip(liked, lengths, strict=True)
    ]
    zeros = [[0.0] * len(row) for row in liked]
    return measures.ArmScores(samples, liked, zeros, zeros)


def test_wins_ties_losses_and_flips_worked_by_hand() -> None:
    base = [[1.0], [1.0], [0.0], [0.0], [1.0]]
    ours: list[list[float | None]] = [[1.0], [0.0], [1.0], [0.0], [None]]
    assert measures.count_outcomes(ours, base) == {"wins": 1, "ties": 2, "losses": 1, "not_judged": 1}
    # liked before: prompts 1 and 2 (the fifth was not judged); prompt 2 is not liked any more
    flips = measures.estimate_negative_flips(ours, base)
    assert flips is not None
    assert (flips["mean"], flips["n"]) == (0.5, 2)
    assert measures.estimate_negative_flips(ours, [[0.0]] * 5) is None


def test_the_up_rate_at_the_base_s_length_worked_by_hand() -> None:
    # the base's lengths 10, 20, 30, 40, one in each quarter. Ours: short ones liked (1), long ones not:
    # quarters 1 and 2 hold 1, 1, 1 and 0; quarter 4 holds 0; quarter 3 nothing.
    base = make_scores([[0.0]] * 4, [10, 20, 30, 40])
    ours = make_scores([[1.0, 1.0], [1.0], [0.0, None], [0.0]], [10, 20, 20, 40])
    found = measures.estimate_at_base_length([ours], base)
    # quarter 1: 1; quarter 2: 1/2; quarter 4: 0; each 1/4 of the base: (1 + 1/2 + 0) / 3 = 1/2, of 3/4
    assert found is not None
    assert (found["mean"], found["covered"], found["n"]) == (pytest.approx(0.5), pytest.approx(0.75), 5)
    assert 0 <= found["low"] < 0.5 < found["high"] <= 1
    only_short = make_scores([[1.0]] * 4, [5] * 4)
    assert measures.estimate_at_base_length([only_short], base) is None


def test_the_interval_at_the_base_s_length_narrows_as_prompts_are_more_and_holds_the_truth() -> None:
    # short completions are liked by 3 in 4, long ones by 1 in 4; base and ours are short half of the time
    def measure(n: int) -> tuple[float, float]:
        base = make_scores([[0.0]] * n, [10, 40] * (n // 2))
        short = [[1.0], [1.0], [1.0], [0.0]]
        ours = [
            make_scores(short * (n // 4), [10] * n),
            make_scores([[row[0] == 0.0] for row in short] * (n // 4), [40] * n),
        ]
        found = measures.estimate_at_base_length(ours, base)
        assert found is not None
        assert found["mean"] == pytest.approx(0.5)
        assert found["low"] < 0.5 < found["high"]
        return found["low"], found["high"]

    (low, high), (lower, higher) = measure(400), measure(16)
    assert higher - lower > 2 * (high - low)


def test_kl_per_token_is_nats_over_tokens_worked_by_hand() -> None:
    # Two prompts: log ratios 3 − 1 over 2 tokens + the end, and 1 − 0 over 1 token: (2 + 1) / (3 + 1) = 0.75 nats
    samples = [[Sampled("a b", (1, 2), 9, 3.0)], [Sampled("a", (1,), None, 1.0)]]
    scores = measures.ArmScores(samples, [[True], [False]], [[1.0], [0.0]], [[0.0], [0.0]])
    assert measures.estimate_kl_per_token([scores])["mean"] == pytest.approx(0.75)


def test_a_level_of_the_crossing_worked_by_hand() -> None:
    # pairs at 10, 40, 160 with rates 0, 0.5, 1, KTO on 100 thumbs at 0.75: √(40 × 160) = 80 pairs, 400 labels, 4 times
    kto = make_scores([[1.0], [0.5], [1.0], [0.5]], [1] * 4)
    base = make_scores([[0.0]] * 4, [1] * 4)
    curves = [(n, [[rate]] * 4) for n, rate in ((10, 0.0), (40, 0.5), (160, 1.0))]
    found = _describe_level(100, [kto], base, curves, pair_cost=5.0)
    assert found["pairs"] == pytest.approx(80.0)
    assert found["times_the_labels"]["mean"] == pytest.approx(4.0)
    assert found["up_rate"]["mean"] == found["gain"]["mean"] == pytest.approx(0.75)
