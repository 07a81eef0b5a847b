"""The class weights keep the weighted balance in the interval that the KTO paper asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbtune.errors import ConfigError
from thumbtune.preference.class_weights import recommend_class_weights, weigh_balance

counts = st.integers(min_value=1, max_value=10**9)


def test_the_paper_s_example_of_one_desirable_row_in_ten() -> None:
    # 100 up, 1000 down: the balance is 0.1, and 10 x 100 / 1000 = 1
    assert recommend_class_weights(100, 1000) == (10.0, 1.0)


def test_many_thumbs_up_raise_the_weight_of_the_thumbs_down_to_the_upper_bound() -> None:
    # 900 / (w x 100) = 1.5, so w = 6
    assert recommend_class_weights(900, 100) == (1.0, 6.0)


@pytest.mark.parametrize("n_desirable", [100, 120, 149, 150])
def test_counts_that_fit_keep_weights_of_one(n_desirable: int) -> None:
    assert recommend_class_weights(n_desirable, 100) == (1.0, 1.0)


@pytest.mark.parametrize("n_pair", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_class_keeps_weights_of_one(n_pair: tuple[int, int]) -> None:
    assert recommend_class_weights(*n_pair) == (1.0, 1.0)
    assert weigh_balance(*n_pair) is None


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="counts start at 0"):
        recommend_class_weights(-1, 5)


@given(counts, counts)
def test_the_weighted_balance_lies_in_the_interval(n_desirable: int, n_undesirable: int) -> None:
    weights = recommend_class_weights(n_desirable, n_undesirable)
    balance = weigh_balance(n_desirable, n_undesirable, *weights)
    assert balance is not None
    assert 1 - 1e-12 <= balance <= 1.5 + 1e-12


@given(counts, counts)
def test_one_weight_stays_at_one_and_none_is_lowered(n_desirable: int, n_undesirable: int) -> None:
    weights = recommend_class_weights(n_desirable, n_undesirable)
    assert min(weights) == 1.0


@given(counts, counts)
def test_a_weight_is_raised_no_further_than_to_the_nearest_bound(
    n_desirable: int, n_undesirable: int
) -> None:
    desirable_weight, undesirable_weight = recommend_class_weights(n_desirable, n_undesirable)
    balance = weigh_balance(n_desirable, n_undesirable, desirable_weight, undesirable_weight)
    if desirable_weight > 1:
        assert balance == pytest.approx(1.0)
    if undesirable_weight > 1:
        assert balance == pytest.approx(1.5)


@given(counts, counts, st.integers(1, 1000))
def test_only_the_ratio_of_the_counts_matters(n_desirable: int, n_undesirable: int, factor: int) -> None:
    small = recommend_class_weights(n_desirable, n_undesirable)
    assert recommend_class_weights(n_desirable * factor, n_undesirable * factor) == pytest.approx(small)
