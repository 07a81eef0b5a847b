"""Prospect theory's value function: concave in gains, steeper in losses, and tame at zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.preference.prospect import LINEAR_BELOW, prospect_value

alphas = st.floats(0.2, 1.0)
aversions = st.floats(0.5, 5.0)
sizes = st.floats(0, 1e4)
many = settings(deadline=None, max_examples=80)


def value_of(outcome: float, **parameters: float) -> float:
    return float(prospect_value(torch.tensor(outcome, dtype=torch.float64), **parameters))


def slope_of(outcome: float, **parameters: float) -> float:
    point = torch.tensor(outcome, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(prospect_value(point, **parameters), point)
    return float(slope)


def test_gains_and_losses_worked_by_hand() -> None:
    # 100^0.88 = e^(0.88 × 4.605170) = e^4.052550 = 57.5440; a loss of 100: −2.25 × 57.5440 = −129.4740
    assert value_of(100.0) == pytest.approx(57.5440, abs=1e-4)
    assert value_of(-100.0) == pytest.approx(-129.4740, abs=1e-4)
    # α = 0.5, λ = 2: √9 = 3 and −2 × 3 = −6; slope 0.5 / √9 = 1/6 and 2/6
    assert value_of(9.0, alpha=0.5, loss_aversion=2.0) == pytest.approx(3.0)
    assert value_of(-9.0, alpha=0.5, loss_aversion=2.0) == pytest.approx(-6.0)
    assert slope_of(9.0, alpha=0.5, loss_aversion=2.0) == pytest.approx(1 / 6)
    assert slope_of(-9.0, alpha=0.5, loss_aversion=2.0) == pytest.approx(2 / 6)


def test_a_loss_hurts_two_and_a_quarter_times_as_much_as_an_equal_gain_pleases() -> None:
    assert -value_of(-3.0) / value_of(3.0) == pytest.approx(2.25)


@many
@given(size=sizes, alpha=alphas, aversion=aversions)
def test_the_value_is_odd_up_to_loss_aversion(size: float, alpha: float, aversion: float) -> None:
    gain = value_of(size, alpha=alpha, loss_aversion=aversion)
    loss = value_of(-size, alpha=alpha, loss_aversion=aversion)
    assert loss == pytest.approx(-aversion * gain)


@many
@given(outcome=st.floats(-1e4, 1e4))
def test_without_bend_and_aversion_it_is_the_identity(outcome: float) -> None:
    assert value_of(outcome, alpha=1.0, loss_aversion=1.0) == pytest.approx(outcome)
    assert slope_of(outcome, alpha=1.0, loss_aversion=1.0) == pytest.approx(1.0)


@many
@given(a=sizes, b=sizes, alpha=alphas)
def test_gains_are_valued_concavely_and_in_order(a: float, b: float, alpha: float) -> None:
    low, high = sorted((a, b))
    middle = value_of((low + high) / 2, alpha=alpha)
    assert value_of(low, alpha=alpha) <= middle * (1 + 1e-12)
    assert middle <= value_of(high, alpha=alpha) * (1 + 1e-12)
    chord = (value_of(low, alpha=alpha) + value_of(high, alpha=alpha)) / 2
    assert middle >= chord * (1 - 1e-12) - 1e-300  # half of the smallest number is nothing


@many
@given(alpha=alphas, aversion=aversions, sign=st.sampled_from([1, -1]))
def test_the_straight_piece_meets_the_curve_without_a_jump(alpha: float, aversion: float, sign: int) -> None:
    inside = value_of(sign * LINEAR_BELOW * (1 - 1e-9), alpha=alpha, loss_aversion=aversion)
    outside = value_of(sign * LINEAR_BELOW * (1 + 1e-9), alpha=alpha, loss_aversion=aversion)
    assert inside == pytest.approx(outside, rel=1e-8)
    assert value_of(0.0, alpha=alpha, loss_aversion=aversion) == 0.0


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_an_outcome_of_exactly_zero_has_a_finite_slope_and_not_a_slope_of_zero(zero: float) -> None:
    # α = 0.88: 0.001^(0.88 − 1) = 10^0.36 = 2.2909
    assert slope_of(zero) == pytest.approx(2.2909, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_stay_finite_through_tiny_outcomes(dtype: torch.dtype) -> None:
    points = torch.tensor([0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1e-3, -1e-3], dtype=dtype, requires_grad=True)
    prospect_value(points, alpha=0.2).sum().backward()
    assert points.grad is not None
    assert bool(torch.isfinite(points.grad).all())
    assert bool((points.grad > 0).all())


@many
@given(outcome=st.floats(-LINEAR_BELOW, LINEAR_BELOW))
def test_the_straight_piece_errs_by_no_more_than_it_says(outcome: float) -> None:
    exact = math.copysign(abs(outcome) ** 0.88, outcome) * (1 if outcome >= 0 else 2.25)
    assert abs(value_of(outcome) - exact) <= 5e-4


@many
@given(
    outcomes=st.lists(st.floats(-1e3, 1e3).filter(lambda x: abs(x) > 2e-3), min_size=1, max_size=10),
    alpha=alphas,
    aversion=aversions,
)
def test_it_equals_a_plain_loop(outcomes: list[float], alpha: float, aversion: float) -> None:
    points = torch.tensor(outcomes, dtype=torch.float64, requires_grad=True)
    values = prospect_value(points, alpha=alpha, loss_aversion=aversion)
    (slopes,) = torch.autograd.grad(values.sum(), points)
    for value, slope, outcome in zip(values.tolist(), slopes.tolist(), outcomes, strict=True):
        weight = 1.0 if outcome > 0 else aversion
        assert value == pytest.approx(math.copysign(weight * abs(outcome) ** alpha, outcome))
        assert slope == pytest.approx(weight * alpha * abs(outcome) ** (alpha - 1))


def test_any_shape_comes_back_as_it_went_in() -> None:
    outcomes = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert prospect_value(outcomes).shape == (2, 3, 4)
    assert torch.equal(prospect_value(outcomes).flatten(), prospect_value(outcomes.flatten()))
