"""z0: a mean over the whole batch, never below zero, never with a gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.preference.reference_point import (
    MovingAverage,
    RewardShift,
    estimate_reference_point,
    estimate_uniform_reference_point,
)

batches = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)


def test_the_mean_worked_by_hand() -> None:
    # (3 − 1 + 4) / 3 = 2
    assert float(estimate_reference_point(torch.tensor([3.0, -1.0, 4.0]))) == 2.0


def test_a_negative_mean_is_clamped_at_zero_and_single_negatives_are_not() -> None:
    # (1 − 4) / 2 = −1.5 becomes 0; (−1 + 3) / 2 = 1, where clamping each first would give 1.5
    assert float(estimate_reference_point(torch.tensor([1.0, -4.0]))) == 0.0
    assert float(estimate_reference_point(torch.tensor([-1.0, 3.0]))) == 1.0


def test_it_takes_no_gradient() -> None:
    log_ratio = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not estimate_reference_point(log_ratio).requires_grad


def test_an_empty_batch_has_the_reference_point_zero() -> None:
    assert float(estimate_reference_point(torch.empty(0))) == 0.0


def test_low_precision_is_averaged_in_float32() -> None:
    # In bf16 the sum 256 + 1 + … + 1 would stop at 256: (256 + 256 × 1) / 257 = 1.9922
    log_ratio = torch.tensor([256.0] + [1.0] * 256, dtype=torch.bfloat16)
    point = estimate_reference_point(log_ratio)
    assert point.dtype == torch.float32
    assert float(point) == pytest.approx(512 / 257, rel=1e-6)


@settings(deadline=None)
@given(values=batches, data=st.data())
def test_neither_order_nor_the_cut_into_microbatches_changes_it(
    values: list[float], data: st.DataObject
) -> None:
    whole = float(estimate_reference_point(torch.tensor(values)))
    assert whole == pytest.approx(max(sum(values) / len(values), 0.0), abs=1e-4)
    shuffled = torch.tensor(data.draw(st.permutations(values)))
    cut = data.draw(st.integers(0, len(values)))
    gathered = torch.cat([shuffled[:cut], shuffled[cut:]])
    assert float(estimate_reference_point(gathered)) == pytest.approx(whole, abs=1e-4)


def test_the_mean_of_microbatch_estimates_is_another_number() -> None:
    # Why the whole batch has to be given: (2 − 6) / 2 = −2, so z0 = 0; clamped by halves it would be (2 + 0) / 2 = 1
    halves = [estimate_reference_point(torch.tensor([value])) for value in (2.0, -6.0)]
    assert float(sum(halves) / 2) == 1.0
    assert float(estimate_reference_point(torch.tensor([2.0, -6.0]))) == 0.0


def test_under_a_uniform_reference_nothing_is_clamped() -> None:
    # (−30 − 10) / 2 = −20
    assert float(estimate_uniform_reference_point(torch.tensor([-30.0, -10.0]))) == -20.0
    assert float(estimate_uniform_reference_point(torch.tensor([]))) == 0.0


def test_the_reward_shift_does_not_depend_on_how_many_each_class_has() -> None:
    # 👍: 4; 👎: (−2 + 0 − 4) / 3 = −2; middle 1, where the mean of all is −0.5
    log_ratio, labels = torch.tensor([4.0, -2.0, 0.0, -4.0]), torch.tensor([True, False, False, False])
    shift = RewardShift(0.5)
    assert shift.value == 0.0
    assert shift.update(log_ratio, labels) == 1.0
    # a batch of 👎 alone moves their mean from −2 to 0.5 × −2 + 0.5 × −6 = −4, and the middle to 0
    assert shift.update(torch.tensor([-6.0]), torch.tensor([False])) == 0.0
    assert RewardShift(0.5).update(log_ratio[1:], labels[1:]) == -2.0
    assert RewardShift(0.5).update(log_ratio[:0], labels[:0]) == 0.0
    again = RewardShift(0.5)
    again.restore(shift.state())
    assert again.value == shift.value


def test_a_moving_average_starts_at_the_first_value_and_forgets() -> None:
    # decay 0.75: 4; 0.75 × 4 + 0.25 × 8 = 5; 0.75 × 5 + 0.25 × 1 = 4
    average = MovingAverage(0.75)
    assert [average.update(value) for value in (4.0, 8.0, 1.0)] == [4.0, 5.0, 4.0]
