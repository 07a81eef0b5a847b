"""The same thumbs under other circumstances: counted right, drawn from the seed alone, nested where they should be."""

from __future__ import annotations

from typing import Any

import pytest

from thumbtune.data.formats import Rows, rows_from_dataset
from thumbtune.errors import ConfigError, DataError
from thumbtune.evaluation.conditions import Condition, label, parse_sweep, vary


def make_rows(n_prompts: int = 40, per_prompt: int = 4) -> Rows:
    """A quarter of them 👍."""
    rows = [
        {"prompt": f"question {i}?", "completion": f"answer {i} {k}", "label": k == 0}
        for i in range(n_prompts)
        for k in range(per_prompt)
    ]
    return rows_from_dataset(rows, source="thumbs")


ROWS = make_rows()


def contents(rows: Rows) -> dict[Any, bool]:
    return {(str(e.prompt), str(e.completion)): e.label for e in rows.examples}


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    assert vary(ROWS, Condition(), 0) is ROWS
    assert vary(ROWS, parse_sweep("per-prompt=all")[1][0], 3) is ROWS


def test_a_ratio_has_the_numbers_that_it_says() -> None:
    for ratio, n_rows, ups, downs in (((1, 1), 40, 20, 20), ((1, 10), 44, 4, 40), ((10, 1), 44, 40, 4)):
        varied = vary(ROWS, Condition(rows=n_rows, ratio=ratio), 1)
        labels = [example.label for example in varied.examples]
        assert (sum(labels), len(labels) - sum(labels)) == (ups, downs)
    most = vary(ROWS, Condition(ratio=(1, 1)), 1)
    assert len(most.examples) == 80  # all 40 👍, and as many 👎
    with pytest.raises(DataError, match=r"10:1 asks for 50 👍 and 5 👎, and there are 40 and 120"):
        vary(ROWS, Condition(rows=55, ratio=(10, 1)), 1)


def test_noise_flips_about_its_share_and_more_noise_flips_the_same_rows_and_others() -> None:
    truth = contents(ROWS)
    flipped = {}
    for noise in (0.1, 0.3):
        varied = contents(vary(ROWS, Condition(noise=noise), 5))
        assert varied.keys() == truth.keys()
        flipped[noise] = {row for row in truth if varied[row] != truth[row]}
        assert abs(len(flipped[noise]) / len(truth) - noise) < 0.08
    assert flipped[0.1] < flipped[0.3]


def test_fewer_rows_are_among_more_rows_and_another_seed_draws_others() -> None:
    some, more = (contents(vary(ROWS, Condition(rows=n), 2)) for n in (30, 60))
    assert some.keys() < more.keys()
    assert contents(vary(ROWS, Condition(rows=30), 3)).keys() != some.keys()
    assert vary(ROWS, Condition(rows=30), 2).digest == vary(ROWS, Condition(rows=30), 2).digest
    with pytest.raises(DataError, match="there are 160 thumbs only"):
        vary(ROWS, Condition(rows=161), 0)


def test_one_per_prompt_keeps_one_of_each_and_leaves_no_pair() -> None:
    varied = vary(ROWS, Condition(one_per_prompt=True), 4)
    prompts = [str(example.prompt) for example in varied.examples]
    assert len(prompts) == len(set(prompts)) == 40


def test_a_sweep_is_read_from_words() -> None:
    assert parse_sweep("noise=0,0.1") == ("noise", [Condition(), Condition(noise=0.1)])
    assert parse_sweep("ratio=1:1,1:10@88") == (
        "ratio",
        [Condition(rows=88, ratio=(1, 1)), Condition(rows=88, ratio=(1, 10))],
    )
    assert parse_sweep("rows=50, 100")[1] == [Condition(rows=50), Condition(rows=100)]
    over, conditions = parse_sweep("per-prompt=1,all@60")
    assert [label(over, condition) for condition in conditions] == ["one", "all"]
    assert [condition.name for condition in conditions] == ["60 thumbs, one per prompt", "60 thumbs"]
    assert label("noise", Condition(noise=0.1)) == "10% wrong"


@pytest.mark.parametrize(
    "text",
    ["noise", "noise=", "noise=0.5", "noise=a", "ratio=10", "ratio=1:0", "rows=1", "per-prompt=2", "age=3",
     "rows=50@x", "rows=50@60", "noise=0.1@-5", "noise=0.1@0"],
)  # fmt: skip
def test_a_sweep_that_makes_no_sense_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="sweep"):
        parse_sweep(text)
