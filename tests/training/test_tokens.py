"""Tokenizing rows: chunks, streams and windows give what row by row gives, in bounded memory."""

from __future__ import annotations

import copy
import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.data import chat
from thumbtune.data.formats import RowRefused, Rows, read_rows, rows_from_dataset, stream_dataset
from thumbtune.data.pairs import unpair
from thumbtune.engine.logprobs import Branch
from thumbtune.errors import DataError
from thumbtune.records import Example
from thumbtune.training import tokens as tokens_module
from thumbtune.training.tokens import TokenizedRows, tokenize_rows, windows

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def settings_of(**changed: Any) -> Any:
    """What tokenization reads of a config."""
    known = {"max_length": None, "max_prompt_length": None, "truncation": "keep_end"}
    all_rows = {"one_per_prompt": False, "max_pairs_per_prompt": None}
    return SimpleNamespace(**{**known, **all_rows, "seed": 0, "method": "dpo", **changed})


def talk(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def make_thumbs(n: int) -> list[dict[str, Any]]:
    """Plain and chat rows, of all lengths, some of them unfinished or with tools."""
    rows: list[dict[str, Any]] = []
    for number in range(n):
        prompt, completion = f"Frage {number // 2}" + "?" * (number % 5), "ja " * (number % 4) + f"{number}"
        row = {"prompt": prompt, "completion": completion, "label": number % 2 == 0}
        if number % 3:
            row |= {"prompt": talk("user", prompt), "completion": talk("assistant", completion)}
        if number % 5 == 1:
            row["finished"] = False
        if number % 6 == 1:
            row["tools"] = TOOLS
        rows.append(row)
    return rows


def make_pairs(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i}?", "chosen": "yes" + "." * (i % 4), "rejected": f"no {i}"} for i in range(n)]


def tokenize_one_by_one(rows: Rows, tokenizer: Any, config: Any, *, paired: bool) -> tuple[Any, ...]:
    """The slow reference: branches, labels, places and counts, a row at a time."""
    records: Any = rows.pairs if paired else rows.examples or unpair(rows.pairs)
    kept, labels, where, counts = [], [], [], Counter[str]()
    for record in records:
        branches: list[Branch] | None = []
        for example in [record] if isinstance(record, Example) else unpair([record]):
            cut = chat.truncate(
                chat.tokenize_example(tokenizer, example),
                max_length=config.max_length,
                max_prompt_length=config.max_prompt_length,
                truncation=config.truncation,
            )
            if cut is None:
                branches = None
                counts["dropped: prompt fills max_length"] += 1
                break
            counts["cut: prompt"] += cut.prompt_cut > 0
            counts["cut: completion"] += cut.completion_cut > 0
            counts["boundary moved"] += cut.boundary_moved
            assert branches is not None
            branches.append(Branch(cut.prompt_ids, cut.completion_ids))
        if branches is not None:
            kept.append(tuple(branches))
            labels.append(None if paired else record.label)
            where.append(record.where)
    return kept, None if paired else labels, where, +counts


def describe(rows: TokenizedRows) -> tuple[Any, ...]:
    return list(rows.branches), rows.labels, list(rows.where), +rows.counts


@pytest.mark.parametrize(
    ("paired_data", "paired_method"), [(False, False), (True, False), (True, True)], ids=str
)
@settings(deadline=None, max_examples=30)
@given(
    n_rows=st.integers(1, 20),
    rows_per_chunk=st.integers(1, 6),
    characters=st.integers(1, 100),
    room=st.sampled_from([(None, None), (60, None), (60, 20), (30, 4), (None, 9)]),
    side=st.sampled_from(["keep_end", "keep_start"]),
)
def test_chunks_and_streams_give_the_rows_of_one_by_one(
    tiny_tokenizer: Any,
    paired_data: bool,
    paired_method: bool,
    n_rows: int,
    rows_per_chunk: int,
    characters: int,
    room: tuple[int | None, int | None],
    side: str,
) -> None:
    raw = make_pairs(n_rows) if paired_data else make_thumbs(n_rows)
    config = settings_of(max_length=room[0], max_prompt_length=room[1], truncation=side)
    rows = rows_from_dataset(raw)
    expected = tokenize_one_by_one(rows, tiny_tokenizer, config, paired=paired_method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "_ROWS_PER_CHUNK", rows_per_chunk)
        patch.setattr(tokens_module, "_CHARACTERS_PER_CHUNK", characters)
        for given_rows in (rows, stream_dataset(iter(raw))):
            if not expected[0]:
                with pytest.raises(DataError, match="no row is left, since every prompt fills max_length="):
                    tokenize_rows(given_rows, tiny_tokenizer, config, paired=paired_method)
                continue
            tokenized = tokenize_rows(given_rows, tiny_tokenizer, config, paired=paired_method)
            assert describe(tokenized) == expected
            assert tokenized.digest == rows.digest


def test_thumbs_of_a_stream_are_paired_up_as_those_that_were_read(tiny_tokenizer: Any) -> None:
    raw = [{"prompt": f"{i // 4}?", "completion": f"answer {i}", "label": i % 4 != 1} for i in range(16)]
    read = tokenize_rows(rows_from_dataset(raw), tiny_tokenizer, settings_of(), paired=True)
    streamed = tokenize_rows(stream_dataset(iter(raw)), tiny_tokenizer, settings_of(), paired=True)
    assert describe(read) == describe(streamed)
    assert read.counts["not paired: surplus"] == 8
    assert read.labels is None
    assert "train_dataset row 1" in read.where[0]
    with pytest.raises(DataError, match=r"no prompt has both a 👍 and a 👎.*--method kto"):
        tokenize_rows(stream_dataset(raw[:1]), tiny_tokenizer, settings_of(), paired=True)


def test_rows_that_were_refused_in_a_file_stay_counted(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "label": true}\n{"prompt": "a"}\nnot json\n')
    rows = tokenize_rows(read_rows(path, skip_refused=True), tiny_tokenizer, settings_of(), paired=False)
    assert rows.counts["refused: missing_key"] == rows.counts["refused: broken_json"] == 1
    assert rows.where[:] == ["thumbs.jsonl line 1"]


def test_the_first_row_that_cannot_be_rendered_is_the_one_named(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].content == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
        "{% if messages[0].content == 'mute' %}always the same{% else %}"
        + tokenizer.chat_template
        + "{% endif %}"
    )
    texts = ["good"] * 5 + ["mute"] + ["good"] + ["bad"]
    raw = [
        {"prompt": talk("user", text), "completion": talk("assistant", "yo"), "label": True} for text in texts
    ]
    with pytest.raises(DataError, match=r"^train_dataset row 5: the completion renders to no token"):
        tokenize_rows(stream_dataset(raw), tokenizer, settings_of(), paired=False)
    with pytest.raises(DataError, match=r"^train_dataset row 1: the chat template refuses these messages"):
        tokenize_rows(stream_dataset(raw[6:]), tokenizer, settings_of(), paired=False)


def test_a_stream_of_many_rows_leaves_no_text_behind(tiny_tokenizer: Any) -> None:
    # 2,000 rows of 2,000 characters are 4 MB of text, and 16 MB of ids on their way
    def rows(n_rows: int) -> Iterator[dict[str, Any]]:
        for number in range(n_rows):
            yield {"prompt": f"{number}" + "x" * 1000, "completion": "y" * 1000, "label": True}

    config = settings_of(max_length=8, max_prompt_length=4)
    peaks = {}
    for n_rows in (2, 500, 2000):
        tracemalloc.start()
        tokenized = tokenize_rows(stream_dataset(rows(n_rows)), tiny_tokenizer, config, paired=False)
        peaks[n_rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(tokenized) == n_rows
    assert peaks[2000] - peaks[500] < 1500 * 200


# ---- windows


@settings(deadline=None, max_examples=20)
@given(n_rows=st.integers(1, 12), rows_per_window=st.integers(1, 13))
def test_windows_one_after_another_are_the_rows_of_the_whole(
    tiny_tokenizer: Any, n_rows: int, rows_per_window: int
) -> None:
    raw = make_thumbs(n_rows)
    whole = tokenize_rows(rows_from_dataset(raw), tiny_tokenizer, settings_of(), paired=False)
    found = list(windows(iter(raw), rows_per_window, tiny_tokenizer, settings_of(), paired=False))
    assert [len(window) for window in found[:-1]] == [rows_per_window] * (len(found) - 1)
    assert 1 <= len(found[-1]) <= rows_per_window
    assert [row for window in found for row in window.branches] == list(whole.branches)
    assert [label for window in found for label in window.labels or ()] == whole.labels
    assert [place for window in found for place in window.where] == list(whole.where)
    first = rows_from_dataset(raw[:rows_per_window])
    assert found[0].digest == first.digest


def test_windows_of_an_endless_stream_read_no_further_than_they_need(tiny_tokenizer: Any) -> None:
    read: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            read.append(number)
            yield {"prompt": f"{number}?", "completion": "a", "label": True}

    stream = windows(endless(), 3, tiny_tokenizer, settings_of(), paired=False)
    assert next(stream).where[:] == [f"train_dataset row {number}" for number in range(3)]
    assert next(stream).where[:] == [f"train_dataset row {number}" for number in range(3, 6)]
    assert read == list(range(6))


def test_windows_of_a_streamed_hugging_face_dataset(tiny_tokenizer: Any) -> None:
    from datasets import Dataset

    dataset = Dataset.from_list(make_pairs(7)).to_iterable_dataset()
    found = list(windows(dataset, 3, tiny_tokenizer, settings_of(), paired=True))
    whole = tokenize_rows(rows_from_dataset(make_pairs(7)), tiny_tokenizer, settings_of(), paired=True)
    assert [row for window in found for row in window.branches] == list(whole.branches)
    assert found[2].where[:] == ["train_dataset row 6"]


def test_windows_are_strict_over_the_whole_stream(tiny_tokenizer: Any) -> None:
    good = {"prompt": "p", "completion": "a", "label": True}
    for raw, message in [
        ([good] * 4 + [{**good, "label": "meh"}], "train_dataset row 4: label is 'meh'"),
        ([good] * 3 + make_pairs(1), "row 3: the rows before it are unpaired, this one is not"),
    ]:
        stream = windows(raw, 3, tiny_tokenizer, settings_of(), paired=False)
        assert len(next(stream)) == 3
        with pytest.raises(RowRefused, match=message):
            next(stream)
    with pytest.raises(DataError, match="train_dataset holds no rows"):
        list(windows([], 3, tiny_tokenizer, settings_of(), paired=False))
