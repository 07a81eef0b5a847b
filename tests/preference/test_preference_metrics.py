"""What is watched while training: the AUC against a count of all pairs, saturation, and the alarm."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.preference.metrics import (
    SATURATED_ABOVE,
    area_under_roc,
    both_rewards_fall,
    saturated_share,
)

many = settings(deadline=None, max_examples=100)
# few values, so that ties are common
scored = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=14)


def count_pairs(rows: list[tuple[float, bool]]) -> float | None:
    """AUC as the share of (👍, 👎) pairs in the right order, ties half."""
    ups, downs = [s for s, label in rows if label], [s for s, label in rows if not label]
    if not ups or not downs:
        return None
    right = sum(
        1.0 if up > down else 0.5 if up == down else 0.0 for up, down in itertools.product(ups, downs)
    )
    return right / (len(ups) * len(downs))


def auc_of(rows: list[tuple[float, bool]]) -> float | None:
    return area_under_roc(
        torch.tensor([float(score) for score, _ in rows]), torch.tensor([label for _, label in rows])
    )


def test_the_area_worked_by_hand() -> None:
    # 👍 3, 1; 👎 2, 1. Pairs: 3>2 yes, 3>1 yes, 1>2 no, 1=1 half: 2.5 of 4 = 0.625
    assert auc_of([(3, True), (1, True), (2, False), (1, False)]) == 0.625


@many
@given(rows=scored)
def test_the_area_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    expected = count_pairs(list(rows))
    found = area_under_roc(
        torch.tensor([float(score) for score, _ in rows]),
        torch.tensor([label for _, label in rows], dtype=torch.bool),
    )
    assert found == (None if expected is None else pytest.approx(expected))


@many
@given(rows=scored)
def test_flipping_all_labels_mirrors_the_area(rows: list[tuple[int, bool]]) -> None:
    both = [*rows, (0, True), (1, False)]
    assert auc_of(both) == pytest.approx(1 - (auc_of([(s, not label) for s, label in both]) or 0.0))


@many
@given(rows=scored)
def test_only_the_order_of_scores_counts(rows: list[tuple[int, bool]]) -> None:
    both = [*rows, (0, True), (1, False)]
    assert auc_of([(s**3 * 10 + 5, label) for s, label in both]) == pytest.approx(auc_of(both))


@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_one_class_alone_has_no_area(labels: list[bool]) -> None:
    assert area_under_roc(torch.zeros(len(labels)), torch.tensor(labels, dtype=torch.bool)) is None


def test_neighbouring_float32_scores_are_no_tie() -> None:
    higher = torch.nextafter(torch.tensor(1e6), torch.tensor(2e6))
    assert area_under_roc(torch.stack([higher, torch.tensor(1e6)]), torch.tensor([True, False])) == 1.0


def test_saturation_counts_gains_beyond_four_on_both_sides() -> None:
    # |5| and |−4.5| of five are beyond 4; 4 itself is not: 2 / 5
    assert SATURATED_ABOVE == 4.0
    assert saturated_share(torch.tensor([5.0, -4.5, 4.0, -1.0, 0.0])) == pytest.approx(0.4)
    assert saturated_share(torch.empty(0)) == 0.0


def test_where_the_share_begins_the_gradient_is_seven_percent_of_its_best() -> None:
    point = torch.tensor([0.0, SATURATED_ABOVE], requires_grad=True)
    (slope,) = torch.autograd.grad(torch.sigmoid(point).sum(), point)
    assert float(slope[1] / slope[0]) == pytest.approx(0.07, abs=0.001)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "alarmed"),
    [
        ([0.1, -0.1, -0.2, -0.3], [0.0, -0.1, -0.2, -0.3], True),
        ([0.4, 0.3, 0.2, 0.1], [0.0, -0.1, -0.2, -0.3], False),  # 👍 falls but still stands above zero
        ([-0.3, -0.2, -0.1, -0.05], [0.0, -0.1, -0.2, -0.3], False),  # 👍 rises
        ([0.1, -0.1, -0.2, -0.3], [0.0, 0.1, 0.2, 0.3], False),  # 👎 rises
        ([0.1, -0.1, -0.1, -0.3], [0.0, -0.1, -0.2, -0.3], False),  # standing still is not falling
        ([-0.1, -0.2, -0.3], [-0.1, -0.2, -0.3], False),  # three values are two falls
        ([], [], False),
    ],
)
def test_the_alarm_rings_only_where_both_rewards_keep_falling(
    desirable: list[float], undesirable: list[float], alarmed: bool
) -> None:
    assert both_rewards_fall(desirable, undesirable) is alarmed


def test_the_alarm_looks_at_the_last_windows_only() -> None:
    assert both_rewards_fall([5.0, 9.0, 0.3, 0.1, -0.1], [0.0, 1.0, 0.5, 0.4, 0.3])
    assert both_rewards_fall([0.3, -0.1], [0.2, 0.1], windows=1)


def test_a_collapse_that_is_over_before_it_can_be_seen_falling_raises_the_alarm() -> None:
    noisy_floor = [-96.0, -95.0, -97.0, -96.5]
    assert both_rewards_fall(noisy_floor, noisy_floor)
    assert not both_rewards_fall([0.5, 0.4, 0.6, 0.5], noisy_floor)
