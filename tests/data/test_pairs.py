"""Pairs to thumbs and back: nothing lost uncounted, nothing paired with itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.data.pairs import pair_thumbs, unpair
from thumbtune.errors import ConfigError
from thumbtune.records import Example, Pair


def thumb(prompt: str, completion: str, label: bool, **more: object) -> Example:
    return Example(prompt, completion, label, **more)  # type: ignore[arg-type]


thumbs = st.lists(
    st.builds(Example, st.sampled_from("pq"), st.sampled_from("abcd"), st.booleans()), max_size=14
)


def test_a_pair_becomes_a_true_and_a_false_example_in_turn() -> None:
    pairs = [Pair("p", "good", "bad", "f line 1"), Pair("q", "yes", "no", "f line 2", tools=[{"name": "t"}])]
    assert unpair(pairs) == [
        Example("p", "good", True, "f line 1 chosen"),
        Example("p", "bad", False, "f line 1 rejected"),
        Example("q", "yes", True, "f line 2 chosen", [{"name": "t"}]),
        Example("q", "no", False, "f line 2 rejected", [{"name": "t"}]),
    ]


def test_unpaired_pairs_are_found_again() -> None:
    pairs = [Pair(f"p{number}", "good", "bad") for number in range(5)]
    found = pair_thumbs(unpair(pairs))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found.pairs] == [
        (pair.prompt, "good", "bad") for pair in pairs
    ]
    assert (found.n_used, found.left_over) == (10, {})


def test_what_is_left_over_is_counted_by_reason() -> None:
    examples = [
        thumb("one class", "a", True),
        thumb("one class", "b", True),
        thumb("more up", "a", True),
        thumb("more up", "b", True),
        thumb("more up", "c", True),
        thumb("more up", "d", False),
        thumb("both on one text", "a", True),
        thumb("both on one text", "a", False),
    ]
    found = pair_thumbs(examples)
    assert len(found.pairs) == 1
    assert found.left_over == {"no_counterpart": 2, "surplus": 2, "contradiction": 2}


def test_the_cap_holds_for_each_prompt_and_is_counted() -> None:
    examples = [
        thumb(prompt, f"{label}{n}", label) for prompt in "pq" for n in range(4) for label in (True, False)
    ]
    found = pair_thumbs(examples, max_pairs_per_prompt=3)
    assert [pair.prompt for pair in found.pairs] == ["p"] * 3 + ["q"] * 3
    assert found.left_over == {"over_cap": 4}
    with pytest.raises(ConfigError, match="at least 1"):
        pair_thumbs(examples, max_pairs_per_prompt=0)


def test_other_tools_or_template_arguments_make_another_prompt() -> None:
    up = thumb("p", "a", True, tools=[{"name": "t"}])
    assert pair_thumbs([up, thumb("p", "b", False)]).left_over == {"no_counterpart": 2}
    thinking = thumb("p", "b", False, tools=[{"name": "t"}], chat_template_kwargs={"thinking": True})
    assert pair_thumbs([up, thinking]).pairs == []
    found = pair_thumbs([up, thumb("p", "b", False, tools=[{"name": "t"}])])
    assert found.pairs[0].tools == [{"name": "t"}]


def test_a_text_prompt_is_not_the_messages_that_it_spells() -> None:
    spelled = thumb('[{"content": "x", "role": "user"}]', "a", True)
    messages = Example([{"role": "user", "content": "x"}], [{"role": "assistant", "content": "b"}], False)
    assert pair_thumbs([spelled, messages]).pairs == []


def test_the_seed_decides_who_meets_whom_and_nothing_else() -> None:
    examples = [thumb("p", f"{label}{n}", label) for n in range(20) for label in (True, False)]
    first, again, other = (pair_thumbs(examples, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.pairs != other.pairs
    assert len(first.pairs) == len(other.pairs) == 20


def test_rows_of_another_prompt_change_nothing() -> None:
    examples = [thumb("p", f"{label}{n}", label) for n in range(9) for label in (True, False)]
    others = [thumb("q", "x", True), thumb("q", "y", False)]
    assert pair_thumbs(others + examples).pairs[1:] == pair_thumbs(examples).pairs


@given(thumbs, st.integers(0, 3), st.sampled_from([None, 1, 2]))
def test_used_and_left_over_add_up_and_no_pair_contradicts_itself(
    examples: list[Example], seed: int, cap: int | None
) -> None:
    found = pair_thumbs(examples, seed=seed, max_pairs_per_prompt=cap)
    assert found.n_used == 2 * len(found.pairs)
    assert found.n_used + sum(found.left_over.values()) == len(examples)
    assert all(pair.chosen != pair.rejected for pair in found.pairs)
    available = [(example.prompt, example.completion, example.label) for example in examples]
    for example in unpair(found.pairs):
        available.remove((example.prompt, example.completion, example.label))  # each is used at most once


@given(
    st.lists(st.sampled_from("abc"), max_size=5),
    st.lists(st.sampled_from("abc"), max_size=5),
    st.integers(0, 5),
)
@settings(max_examples=60)
def test_no_other_one_to_one_matching_has_more_pairs(ups: list[str], downs: list[str], seed: int) -> None:
    examples = [thumb("p", text, True) for text in ups] + [thumb("p", text, False) for text in downs]
    short, long = sorted((ups, downs), key=len)
    most = max(
        (
            sum(left != right for left, right in zip(short, order, strict=True))
            for order in itertools.permutations(long, len(short))
        ),
        default=0,
    )
    assert len(pair_thumbs(examples, seed=seed).pairs) == most


def test_a_cut_completion_stays_marked_through_pairing_and_unpairing() -> None:
    up, down = Example("a", "good", True), Example("a", "cut off", False, finished=False)
    (pair,) = pair_thumbs([up, down]).pairs
    assert (pair.chosen_finished, pair.rejected_finished) == (True, False)
    assert [example.finished for example in unpair([pair])] == [True, False]
