"""The numbers that `check_rows` gives, each against a file small enough to count by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from thumbtune.data.check import Lengths, check_rows, measure_lengths
from thumbtune.data.formats import rows_from_dataset
from thumbtune.errors import ConfigError

ROWS = [
    {"prompt": "one two", "completion": "a b c", "label": True},
    {"prompt": "one two", "completion": "a b c", "label": True},  # a duplicate
    {"prompt": "one two", "completion": "a b c", "label": False},  # a contradiction
    {"prompt": "one two", "completion": "d", "label": False},
    {"prompt": "three", "completion": "e", "label": False},
]


def test_rows_classes_doubles_and_pairs_are_counted() -> None:
    rows = rows_from_dataset(ROWS)
    check = check_rows(rows)
    assert (check.n_rows, check.n_desirable, check.n_undesirable) == (5, 2, 3)
    assert (check.n_prompts, check.n_prompts_with_both) == (2, 1)
    assert (check.n_duplicates, check.n_contradictions) == (1, 1)
    assert check.n_pairs == 1, "a b c over d; a b c never over itself"
    assert (check.desirable_weight, check.undesirable_weight) == (1.5, 1.0)  # 1.5 x 2 / 3 = 1
    assert check.digest == rows.digest


def test_lengths_are_words_without_a_tokenizer_and_tokens_with_one(tiny_tokenizer: Any) -> None:
    rows = rows_from_dataset(ROWS)
    words = check_rows(rows)
    assert words.length_unit == "words"
    assert words.completion_lengths == Lengths(3, 3, 3, 3)  # of 1, 1, 3, 3, 3 the third
    tokens = check_rows(rows, tokenizer=tiny_tokenizer)
    assert tokens.length_unit == "tokens"
    assert tokens.prompt_lengths == Lengths(7, 7, 7, 7)  # "one two" is seven bytes
    assert tokens.completion_lengths == Lengths(6, 6, 6, 6)  # five bytes and the end of sequence
    assert tokens.cuts is None


def test_percentiles_are_by_nearest_rank() -> None:
    assert measure_lengths(list(range(1, 101))) == Lengths(50, 90, 99, 100)
    assert measure_lengths([7]) == Lengths(7, 7, 7, 7)
    assert measure_lengths([]) is None


def test_what_truncation_would_cut_is_counted(tiny_tokenizer: Any) -> None:
    rows = rows_from_dataset(
        [
            {"prompt": "p" * 10, "completion": "c" * 9, "label": True},  # 10 + 10 tokens
            {"prompt": "p" * 2, "completion": "c", "label": False},  # 2 + 2: fits
        ]
    )
    cuts = check_rows(rows, tokenizer=tiny_tokenizer, max_length=12, max_prompt_length=8).cuts
    assert cuts is not None
    assert (cuts.rows_prompt_cut, cuts.rows_completion_cut, cuts.rows_dropped) == (1, 1, 0)
    assert (cuts.prompt_tokens_cut, cuts.completion_tokens_cut) == (2, 6)  # 10 - 8; 10 - (12 - 8)
    dropped = check_rows(rows, tokenizer=tiny_tokenizer, max_length=10).cuts
    assert dropped is not None
    assert (dropped.rows_dropped, dropped.completion_tokens_cut) == (1, 0)


def test_limits_need_a_tokenizer_and_a_token(tiny_tokenizer: Any) -> None:
    rows = rows_from_dataset(ROWS)
    with pytest.raises(ConfigError, match="max_length counts tokens: name the model"):
        check_rows(rows, max_length=5)
    with pytest.raises(ConfigError, match="max_prompt_length is 0"):
        check_rows(rows, tokenizer=tiny_tokenizer, max_prompt_length=0)


def test_rows_that_the_template_refuses_are_counted_and_named(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    guard = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = guard + tokenizer.chat_template
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    system = {"role": "system", "content": "Be brief."}
    rows = rows_from_dataset(
        [
            {"prompt": [user], "completion": [answer], "label": True},
            {"prompt": [system, user], "completion": [answer], "label": True},
        ]
    )
    check = check_rows(rows, tokenizer=tokenizer)
    assert check.n_unrendered == 1
    assert "train_dataset row 1" in check.unrendered_messages[0]
    assert "no system role" in check.unrendered_messages[0]


def test_paired_rows_are_checked_as_the_thumbs_that_they_stand_for() -> None:
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    turned = {"prompt": "p", "chosen": "bad", "rejected": "worse"}
    check = check_rows(rows_from_dataset([pair, pair, turned]))
    assert (check.kind, check.n_rows, check.n_pairs) == ("paired", 3, 3)
    assert (check.n_desirable, check.n_undesirable) == (3, 3)
    assert (check.n_duplicates, check.n_contradictions) == (1, 1), "bad is chosen once and rejected twice"
    assert (check.desirable_weight, check.undesirable_weight) == (1.0, 1.0)


def test_the_result_is_plain_json() -> None:
    check = check_rows(rows_from_dataset(ROWS))
    assert json.loads(json.dumps(check.as_dict()))["n_rows"] == 5


def test_the_watcher_sees_every_example_once(tiny_tokenizer: Any) -> None:
    seen = []

    def watch(examples: Any) -> Any:
        for example in examples:
            seen.append(example)
            yield example

    check_rows(rows_from_dataset(ROWS), tokenizer=tiny_tokenizer, watch=watch)
    assert len(seen) == len(ROWS)
