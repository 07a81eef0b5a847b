"""Everyday questions, and prompts from files."""

import json

import pytest

from thumbtune.data.synth.facts import make_fact_thumbs
from thumbtune.data.synth.files import write_rows
from thumbtune.data.synth.prompts import question_prompts, read_known_prompts, read_prompts
from thumbtune.errors import ConfigError, DataError


def test_there_are_at_least_600_different_short_questions():
    questions = question_prompts(600)
    assert len(set(questions)) == 600
    assert all(2 <= len(question.split()) <= 12 for question in questions)
    assert all(question[-1] in ".?" and question[0].isupper() for question in questions)


def test_articles_fit_their_nouns():
    with pytest.raises(ConfigError, match="there are") as error:
        question_prompts(10**6)
    everything = question_prompts(int(str(error.value).split("there are ")[1].split(":")[0]))
    assert not any(f" a {vowel}" in question for question in everything for vowel in "aeio")
    assert not any("{" in question for question in everything)


def test_the_seed_decides_the_order_and_a_longer_list_begins_with_the_shorter():
    assert question_prompts(50, seed=1) == question_prompts(100, seed=1)[:50]
    assert question_prompts(50, seed=1) != question_prompts(50, seed=2)


@pytest.mark.parametrize("n", [-1, 100_000])
def test_asking_for_more_questions_than_there_are_is_refused(n):
    with pytest.raises(ConfigError, match="prompts"):
        question_prompts(n)


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("What is rain?\r\n\nYağmur nedir?\nWhat is rain?\n".encode())
    assert read_prompts(file) == ["What is rain?", "Yağmur nedir?"]


def test_a_jsonl_file_gives_its_prompt_fields_text_or_chat(tmp_path):
    file = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "Merhaba"}]
    file.write_text(
        json.dumps({"prompt": "Hi"}) + "\n" + json.dumps({"prompt": chat}) + "\n", encoding="utf-8"
    )
    assert read_prompts(file) == ["Hi", chat]


def test_prompts_of_our_own_fact_thumbs_bring_their_facts(tmp_path):
    rows = make_fact_thumbs(rows=20)
    write_rows(tmp_path / "facts.jsonl", rows)
    prompts = read_known_prompts(tmp_path / "facts.jsonl")
    assert prompts[0].fact == rows[0]["truth"]["fact"]


@pytest.mark.parametrize(
    "line", ["not json", "[1]", '{"prompt": 3}', '{"prompt": ""}', '{"prompt": []}', '{"p": "x"}']
)
def test_a_row_without_a_usable_prompt_is_named_by_its_line(tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hi"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_prompts(file)


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")
