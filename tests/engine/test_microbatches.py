"""The cut of a batch: nothing lost, nothing twice, within its bounds, the same each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.engine.microbatches import Cost, cut_batch

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=25)
"""Prompt and completion tokens of each row; the prompt's number is also its length."""


MakeCost = Callable[[Sequence[tuple[int, int]]], Cost]


def packed_cost(rows: Sequence[tuple[int, int]]) -> Cost:
    """Each distinct prompt once, as a packed row costs."""
    return lambda places: sum({rows[place][0] for place in places}) + sum(rows[place][1] for place in places)


def padded_cost(rows: Sequence[tuple[int, int]]) -> Cost:
    return lambda places: len(places) * max((sum(rows[place]) for place in places), default=0)


def test_a_cut_by_tokens_worked_by_hand() -> None:
    # two rows of prompt 3 cost 3 + 2 + 4 = 9, the row of prompt 1 costs 1 + 5 = 6, that of prompt 2 costs 2 + 1 = 3
    held = [(3, 2), (1, 5), (3, 4), (2, 1)]
    prompts = [prompt for prompt, _ in held]
    assert cut_batch(prompts, cost=packed_cost(held), max_tokens=9) == [[0, 2], [1, 3]]
    assert cut_batch(prompts, cost=packed_cost(held), max_tokens=12) == [[0, 2, 3], [1]]
    assert cut_batch(prompts, cost=packed_cost(held), max_tokens=18) == [[0, 2, 1, 3]]


def test_a_cut_by_rows_worked_by_hand() -> None:
    held = [(3, 2), (1, 5), (3, 4), (2, 1), (1, 1)]
    prompts = [prompt for prompt, _ in held]
    assert cut_batch(prompts, cost=packed_cost(held), max_rows=2) == [[0, 2], [1, 4], [3]]
    assert cut_batch(prompts, cost=packed_cost(held), max_rows=3) == [[0, 2, 1], [4, 3]]
    assert cut_batch(prompts, cost=packed_cost(held)) == [[0, 2, 1, 4, 3]]


@pytest.mark.parametrize("make_cost", [packed_cost, padded_cost])
@given(rows=rows, max_tokens=st.none() | st.integers(1, 40), max_rows=st.none() | st.integers(1, 6))
@settings(deadline=None)
def test_every_row_is_in_one_microbatch_and_none_is_empty(
    make_cost: MakeCost, rows: list[tuple[int, int]], max_tokens: int | None, max_rows: int | None
) -> None:
    cuts = cut_batch([p for p, _ in rows], cost=make_cost(rows), max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(place for part in cuts for place in part) == list(range(len(rows)))
    assert all(cuts)


@pytest.mark.parametrize("make_cost", [packed_cost, padded_cost])
@given(rows=rows, max_tokens=st.integers(1, 40))
@settings(deadline=None)
def test_no_microbatch_exceeds_its_tokens_unless_one_row_does(
    make_cost: MakeCost, rows: list[tuple[int, int]], max_tokens: int
) -> None:
    cost = make_cost(rows)
    for part in cut_batch([p for p, _ in rows], cost=cost, max_tokens=max_tokens):
        assert cost(part) <= max_tokens or len(part) == 1


@given(rows=rows, max_rows=st.integers(1, 6))
@settings(deadline=None)
def test_no_microbatch_exceeds_its_rows_and_all_but_one_are_full(
    rows: list[tuple[int, int]], max_rows: int
) -> None:
    cuts = cut_batch([p for p, _ in rows], cost=packed_cost(rows), max_rows=max_rows)
    assert [len(part) for part in cuts[:-1]] == [max_rows] * (len(cuts) - 1)
    assert all(len(part) <= max_rows for part in cuts)


@given(rows=rows, max_tokens=st.integers(1, 40))
@settings(deadline=None)
def test_rows_of_one_prompt_share_microbatches_as_far_as_the_bound_allows(
    rows: list[tuple[int, int]], max_tokens: int
) -> None:
    cost = packed_cost(rows)
    cuts = cut_batch([p for p, _ in rows], cost=cost, max_tokens=max_tokens)
    for prompt in {p for p, _ in rows}:
        siblings = [place for place, (p, _) in enumerate(rows) if p == prompt]
        if cost(siblings) <= max_tokens:
            assert sum(bool(set(part) & set(siblings)) for part in cuts) == 1


@given(rows=rows, max_tokens=st.integers(1, 40))
@settings(deadline=None)
def test_no_row_is_left_alone_beside_another_that_it_would_fit_with(
    rows: list[tuple[int, int]], max_tokens: int
) -> None:
    cost = packed_cost(rows)
    alone = [
        part for part in cut_batch([p for p, _ in rows], cost=cost, max_tokens=max_tokens) if len(part) == 1
    ]
    assert all(cost(one + other) > max_tokens for one, other in combinations(alone, 2))


@given(rows=rows, max_tokens=st.none() | st.integers(1, 40))
@settings(deadline=None)
def test_the_same_batch_is_cut_the_same_way(rows: list[tuple[int, int]], max_tokens: int | None) -> None:
    prompts, cost = [str(p) for p, _ in rows], packed_cost(rows)
    first = cut_batch(prompts, cost=cost, max_tokens=max_tokens, max_rows=4)
    assert cut_batch(list(prompts), cost=cost, max_tokens=max_tokens, max_rows=4) == first


@given(rows=rows)
@settings(deadline=None)
def test_what_a_prompt_is_called_does_not_matter(rows: list[tuple[int, int]]) -> None:
    cost = packed_cost(rows)
    by_number = cut_batch([p for p, _ in rows], cost=cost, max_tokens=20)
    by_ids = cut_batch([(p, p + 1) for p, _ in rows], cost=cost, max_tokens=20)
    assert by_number == by_ids
