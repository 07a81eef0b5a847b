"""Tokenized rows: whatever is written is read back, from memory and from a mapped file alike."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.plan import PlannedRow
from thumbtune.errors import DataError
from thumbtune.training import token_storage
from thumbtune.training.token_storage import Places, RowsWriter, TokenizedRows, number_spans

many = settings(deadline=None, max_examples=100)
ids = st.lists(st.integers(0, 3), max_size=4)
single_rows = st.lists(st.tuples(st.tuples(st.builds(Branch, ids, ids)), st.booleans()), max_size=12)
paired_rows = st.lists(
    st.tuples(st.tuples(st.builds(Branch, ids, ids), st.builds(Branch, ids, ids)), st.none()), max_size=12
)


def write(rows: list[Any], n_branches: int, max_in_memory: int = 10**6) -> TokenizedRows:
    writer = RowsWriter(branches_per_row=n_branches, max_in_memory=max_in_memory)
    for number, (branches, label) in enumerate(rows):
        writer.append(branches, f"a.jsonl line {number}", label)
    return writer.finish("digest", Counter(cut=1))


@many
@given(
    rows=st.one_of(single_rows, paired_rows),
    max_in_memory=st.sampled_from([0, 5, 10**6]),
    per_write=st.integers(1, 9),
)
def test_rows_read_back_as_they_were_written(rows: list[Any], max_in_memory: int, per_write: int) -> None:
    paired = bool(rows) and len(rows[0][0]) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_storage, "_TOKENS_PER_WRITE", per_write)
        stored = write(rows, 2 if paired else 1, max_in_memory)
    branches = [row for row, _ in rows]
    assert len(stored) == len(stored.branches) == len(rows)
    assert list(stored.branches) == branches
    assert stored.branches[1:3] == branches[1:3]
    assert stored.labels == (None if paired else [label for _, label in rows])
    assert stored.where[:] == [f"a.jsonl line {number}" for number in range(len(rows))]
    assert stored.prompt_lengths.tolist() == [len(row[0].prompt_ids) for row in branches]
    assert stored.completion_lengths.tolist() == [[len(b.completion_ids) for b in row] for row in branches]
    assert (stored.digest, stored.counts) == ("digest", {"cut": 1})


@many
@given(rows=single_rows.filter(bool))
def test_prompt_keys_are_numbers_by_first_appearance_of_equal_prompts(rows: list[Any]) -> None:
    seen: dict[tuple[int, ...], int] = {}
    expected = [seen.setdefault(tuple(branches[0].prompt_ids), len(seen)) for branches, _ in rows]
    assert write(rows, 1).prompt_keys.tolist() == expected


@many
@given(
    spans=st.lists(ids, max_size=12),
    hash_bytes=st.sampled_from([lambda span: 0, lambda span: len(span), lambda span: -(sum(span) % 2)]),
)
def test_spans_whose_hashes_clash_are_still_told_apart(
    spans: list[list[int]], hash_bytes: Callable[[bytes], int]
) -> None:
    flat = np.array([token for span in spans for token in span], dtype=np.int32)
    lengths = np.array([len(span) for span in spans], dtype=np.int32)
    seen: dict[tuple[int, ...], int] = {}
    expected = [seen.setdefault(tuple(span), len(seen)) for span in spans]
    assert number_spans(flat, np.cumsum(lengths) - lengths, lengths, hash_bytes).tolist() == expected


def test_the_two_completions_of_a_pair_share_one_prompt_unless_it_differs() -> None:
    same = (Branch([1, 2, 3], [4]), Branch([1, 2, 3], [5]))
    moved = (Branch([1, 2, 3], [4]), Branch([1, 2], [3, 5]))
    stored = write([(same, None), (moved, None)], 2)
    assert stored.ids.tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1, 2, 3, 5]
    assert list(stored.branches) == [same, moved]


def test_a_mismatched_branch_is_the_lender_s_completion_under_the_row_s_prompt() -> None:
    stored = write([((Branch([1], [2, 3]),), True), ((Branch([4, 5], [6]),), False)], 1)
    assert stored.mismatched_branch(PlannedRow(0, 1)) == Branch([1], [6])


def test_the_digest_of_tokens_sees_every_id_every_boundary_and_every_class_and_not_where_they_lie() -> None:
    first, second = (Branch([1, 2], [3]),), (Branch([4], [5, 6]),)
    rows = [(first, True), (second, False)]
    changed = [
        rows,
        rows[::-1],
        rows[:1],
        [(first, True), (second, True)],
        [((Branch([1], [2, 3]),), True), (second, False)],
        [((Branch([1, 2], [7]),), True), (second, False)],
        [((Branch([1, 2], [3, 4]),), True), ((Branch([], [5, 6]),), False)],
    ]
    digests = [write(each, 1).digest_tokens() for each in changed]
    digests.append(write([((*first, *second), None)], 2).digest_tokens())
    assert len(set(digests)) == len(digests)
    assert write(rows, 1, max_in_memory=0).digest_tokens() == digests[0]


def test_many_tokens_lie_in_a_file_without_a_name_that_is_gone_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count_mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [((Branch([number] * 100, [1] * 100),), True) for number in range(100)]
    few = write(rows, 1)
    assert count_mappings() == 0
    many = write(rows, 1, max_in_memory=1000)
    assert os.listdir(tmp_path) == []
    if Path("/proc/self/maps").exists():
        assert count_mappings() == 1
    assert not many.ids.flags.writeable
    assert many.branches[99] == few.branches[99]
    del many
    gc.collect()
    if Path("/proc/self/maps").exists():
        assert count_mappings() == 0


def test_a_full_disk_says_how_much_is_needed_and_how_to_go_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def fileno(self) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **arguments: Full())
    with pytest.raises(DataError, match=r"No space left on device.*set TMPDIR to another folder"):
        write([((Branch([1] * 50, [1]),), True)], 1, max_in_memory=10)


# ---- places

PLACES = [
    "thumbs.jsonl line 41",
    "train_dataset row 0",
    "train_dataset row 12 chosen",
    "train_dataset row 12 rejected",
    "a row 1 + a row 0",
    "row 3 row 07",
    "x line 9999999999999999999999",
    "x line ٣",
    "",
    "a\nb line 5",
    "rejected",
]


@many
@given(st.lists(st.one_of(st.sampled_from(PLACES), st.text(max_size=5)), max_size=20))
def test_places_read_back_as_they_were_written(where: list[str]) -> None:
    places = Places()
    for place in where:
        places.append(place)
    assert list(places) == places[:] == where
    assert len(places) == len(where)
    assert all(place in places for place in where)


def test_a_hundred_thousand_places_of_one_file_share_one_pattern() -> None:
    places = Places()
    for number in range(100_000):
        places.append(f"train_dataset row {number} chosen")
    assert places._listed == [("train_dataset row ", " chosen")]
    assert places[99_999] == places[-1] == "train_dataset row 99999 chosen"


def test_token_ids_are_kept_in_four_bytes_here() -> None:
    assert array("i").itemsize == 4
    assert array("q").itemsize == 8
