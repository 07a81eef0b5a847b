"""Reading files of thumbs: every format gives the same rows, and nothing is dropped or repaired in silence."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbtune.data.formats import (
    RowRefused,
    Rows,
    RowsRefused,
    parse_label,
    parse_label_map,
    parse_row,
    read_rows,
    rows_from_dataset,
    stream_dataset,
    write_jsonl,
)
from thumbtune.data.tables import iterate_dataset
from thumbtune.errors import ConfigError, DataError
from thumbtune.records import Example, Pair

TEXT_ROWS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "completion": "4", "label": True, "truth": "4"},
    {"prompt": "Başkent?", "completion": " Ankara, «tabii»\n👍", "label": False, "truth": "x"},
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CHAT_ROWS: list[dict[str, Any]] = [
    {
        "prompt": [
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "add", "content": "4"},
        ],
        "completion": [{"role": "assistant", "content": "It is 4."}],
        "label": True,
        "tools": [{"type": "function", "function": {"name": "add"}}],
    },
    {
        "prompt": [{"role": "user", "content": "hi"}],
        "completion": [{"role": "assistant", "content": "yo"}],
        "label": False,
        "tools": None,
    },
]
GOOD = json.dumps(TEXT_ROWS[0])


def write_file(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the name's ending says; a name without ending is a datasets folder."""
    path = folder / name
    if path.suffix in {".jsonl", ".ndjson"}:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()})
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        from datasets import Dataset

        Dataset.from_list(rows).save_to_disk(str(path))
    return path


def refuse(tmp_path: Path, *lines: str, **options: Any) -> RowsRefused:
    path = tmp_path / "thumbs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(RowsRefused) as caught:
        read_rows(path, **options)
    return caught.value


@pytest.mark.parametrize("rows", [TEXT_ROWS, CHAT_ROWS], ids=["text", "chat"])
def test_every_format_gives_the_same_rows_and_the_same_digest(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    names = ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.parquet", "folder"]
    found = [read_rows(write_file(tmp_path, name, rows)) for name in names]
    found.append(rows_from_dataset(rows))
    for other in found:
        assert other.digest == found[0].digest
        assert [(e.prompt, e.completion, e.label, e.tools) for e in other.examples] == [
            (row["prompt"], row["completion"], row["label"], row.get("tools")) for row in rows
        ]
        assert (other.kind, other.n_read, other.refusals.total) == ("unpaired", 2, 0)
    assert found[0].examples[1].where == "a.jsonl line 2"
    assert found[4].examples[1].where == "a.parquet row 1"


def test_the_digest_changes_with_the_text_the_label_and_the_order(tmp_path: Path) -> None:
    changed = [
        TEXT_ROWS,
        TEXT_ROWS[::-1],
        [{**TEXT_ROWS[0], "label": False}, TEXT_ROWS[1]],
        [{**TEXT_ROWS[0], "prompt": "2+2? "}, TEXT_ROWS[1]],
    ]
    assert len({rows_from_dataset(rows).digest for rows in changed}) == 4
    ignored = [{**row, "truth": "else"} for row in TEXT_ROWS]
    assert rows_from_dataset(ignored).digest == rows_from_dataset(TEXT_ROWS).digest


def test_what_is_written_reads_back_with_the_same_digest(tmp_path: Path) -> None:
    rows = rows_from_dataset(CHAT_ROWS)
    write_jsonl(rows.examples, tmp_path / "out.jsonl")
    assert read_rows(tmp_path / "out.jsonl").digest == rows.digest
    pairs = [Pair("p", "good\u2028", "bad", chat_template_kwargs={"thinking": False})]
    write_jsonl(pairs, tmp_path / "out.jsonl")
    back = read_rows(tmp_path / "out.jsonl")
    assert back.kind == "paired"
    assert back.pairs[0].chosen == "good\u2028"
    assert back.pairs[0].chat_template_kwargs == {"thinking": False}
    assert os.listdir(tmp_path) == ["out.jsonl"], "the temporary file is gone"


def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_jsonl([Example("p", "\ud800", True)], path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.jsonl"]
    with pytest.raises(DataError, match="cannot be written"):
        write_jsonl([Example("p", "c", True)], tmp_path / "no" / "such" / "folder.jsonl")


# Labels


@pytest.mark.parametrize(
    "value", [True, 1, 1.0, "1", "+1", "1.0", "true", "TRUE", " True ", "up", "Up", "👍", "👍🏽"]
)
def test_what_means_thumbs_up(value: Any) -> None:
    assert parse_label(value) is True


@pytest.mark.parametrize(
    "value", [False, 0, -1, 0.0, -1.0, "0", "-1", "False", "FALSE", "down", "👎", "👎🏿", "👎️"]
)
def test_what_means_thumbs_down(value: Any) -> None:
    assert parse_label(value) is False


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 2, -2, 0.5, "", "yes", [], {}, 10**30])
def test_any_other_label_is_refused(value: Any) -> None:
    with pytest.raises(RowRefused, match="expected true or false") as caught:
        parse_label(value)
    assert caught.value.reason == "wrong_label"


def test_numpy_scalars_are_labels_too() -> None:
    import numpy

    assert parse_label(numpy.bool_(True)) is True
    assert parse_label(numpy.int64(-1)) is False
    with pytest.raises(RowRefused):
        parse_label(numpy.float32("nan"))


def test_a_wrong_label_says_where_what_and_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        parse_row({"prompt": "p", "completion": "c", "label": "meh"}, "thumbs.jsonl line 41")
    assert str(caught.value) == (
        "thumbs.jsonl line 41: label is 'meh', expected true or false. Map it with --label-map meh=false"
    )


def test_a_label_map_adds_words_and_outranks_the_known_ones() -> None:
    label_map = parse_label_map("Meh=false, ok=TRUE,1=false,5=up")
    assert label_map == {"meh": False, "ok": True, "1": False, "5": True}
    assert parse_label("MEH", label_map=label_map) is False
    assert parse_label(5.0, label_map=label_map) is True
    assert parse_label(1, label_map=label_map) is False, "a 1-to-5 rating"
    assert parse_label(True, label_map=label_map) is True
    assert parse_label("Nope", label_map={"Nope": False}) is False


@pytest.mark.parametrize(
    "text", ["", "meh", "meh=", "=true", "meh=perhaps", "a=true,,b=false", "a=true,A=false"]
)
def test_a_label_map_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--label-map"):
        parse_label_map(text)


# Rows


def parse(**row: Any) -> Example | Pair:
    return parse_row(row, "f line 1")


USER, YO, HI = (
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yo"},
    {"role": "assistant", "content": "hi"},
)


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"completion": "c", "label": True}, "missing_key", "no 'prompt'"),
        ({"prompt": "p", "label": True}, "missing_key", "no 'completion'"),
        ({"prompt": "p", "completion": "c"}, "missing_key", "no 'label'.*this one has prompt, completion"),
        ({"prompt": "p", "chosen": "c"}, "missing_key", "no 'rejected'"),
        ({"chosen": "a b", "rejected": "a c"}, "missing_key", "no 'prompt'"),
        ({}, "missing_key", "no column at all"),
        ({"prompt": "p", "completion": "c", "label": None}, "wrong_label", "label is null"),
        ({"prompt": "", "completion": "c", "label": 1}, "empty_prompt", "prompt holds no text"),
        ({"prompt": [], "completion": [YO], "label": 1}, "empty_prompt", "prompt holds no text"),
        ({"prompt": "p", "completion": " \n\t", "label": 1}, "empty_completion", "completion holds no text"),
        (
            {"prompt": [USER], "completion": [{"role": "assistant", "content": " "}], "label": 1},
            "empty_completion",
            "completion",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "empty_completion", "rejected holds no text"),
        ({"prompt": 7, "completion": "c", "label": 1}, "wrong_type", "prompt is a number"),
        ({"prompt": "p", "completion": YO, "label": 1}, "wrong_type", "put it in a list"),
        ({"prompt": [USER], "completion": ["yo"], "label": 1}, "wrong_type", "completion message 1"),
        ({"prompt": [{"content": "x"}], "completion": [YO], "label": 1}, "wrong_type", "needs a 'role'"),
        ({"prompt": [{"role": "user"}], "completion": [YO], "label": 1}, "wrong_type", "neither content nor"),
        (
            {"prompt": [USER], "completion": [{**YO, "tool_calls": "f()"}], "label": 1},
            "wrong_type",
            "tool_calls is no list",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": [YO], "label": 1},
            "wrong_type",
            "'image'",
        ),
        ({"prompt": "p", "completion": "c", "label": 1, "tools": "[oops"}, "wrong_type", "tools is text"),
        (
            {"prompt": "p", "completion": "c", "label": 1, "tools": {"a": 1}},
            "wrong_type",
            "tools is an object",
        ),
        (
            {"prompt": "p", "completion": "c", "label": 1, "chat_template_kwargs": [1]},
            "wrong_type",
            "expected an",
        ),
        ({"prompt": "p", "completion": [YO], "label": 1}, "mixed_kinds", "prompt is plain text"),
        (
            {"prompt": "p", "chosen": [USER, YO], "rejected": [USER, HI]},
            "mixed_kinds",
            "make them all the same",
        ),
        ({"prompt": "p", "completion": "c", "label": 1, "chosen": "d"}, "mixed_shapes", "keep one set"),
        (
            {"prompt": "p", "completion": "\ud83d", "label": 1},
            "not_utf8",
            "completion holds half a character",
        ),
        (
            {"prompt": "p", "completion": "c", "label": 1, "images": ["a.png"]},
            "holds_images",
            "the row holds 'images': thumbtune trains on text alone. Leave out the rows with images",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "image": "a.png"}, "holds_images", "holds 'image'"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_reason(
    row: dict[str, Any], reason: str, words: str
) -> None:
    with pytest.raises(RowRefused, match=words) as caught:
        parse(**row)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("f line 1: ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_picture_is_refused_in_every_format_and_its_absence_is_not(tmp_path: Path, name: str) -> None:
    rows = [
        {"prompt": "p", "completion": "c", "label": True, "images": images} for images in ([], ["a.png"], [])
    ]
    read = read_rows(write_file(tmp_path, name, rows), skip_refused=True)
    assert (len(read.examples), dict(read.refusals.by_reason)) == (2, {"holds_images": 1})
    assert f"{name} {'row 1' if name == 'a.parquet' else ''}" in read.refusals.messages[0]
    read_rows(write_file(tmp_path, name, [{**row, "images": []} for row in rows]))
    none = [{"prompt": "p", "completion": "c", "label": True, "image": None}]
    read_rows(write_file(tmp_path, name, none))


def test_a_saved_dataset_with_a_column_of_images_is_refused_as_a_whole(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": True, "images": ["a.png"]}]
    with pytest.raises(DataError, match="folder has a column 'images': thumbtune trains on text alone"):
        read_rows(write_file(tmp_path, "folder", rows))


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(RowRefused, match="expected an object"):
        parse_row(["p", "c", True], "f line 1")  # type: ignore[arg-type]


def test_messages_that_both_conversations_begin_with_are_the_prompt() -> None:
    pair = parse(chosen=[USER, YO], rejected=[USER, HI])
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [YO], [HI])  # type: ignore[union-attr]
    same = parse(chosen=[USER, YO], rejected=[USER, YO])
    assert (same.prompt, same.chosen) == ([USER], [YO])  # type: ignore[union-attr]
    with pytest.raises(RowRefused, match="no message in common"):
        parse(chosen=[YO, USER], rejected=[HI, USER])


def test_a_message_of_tool_calls_needs_no_content() -> None:
    call_only = {"role": "assistant", "tool_calls": [CALL]}
    example = parse(prompt=[USER], completion=[call_only], label=True)
    assert example.completion == [{**call_only, "content": None}]  # type: ignore[union-attr]


def test_keys_that_are_null_are_left_out_of_messages() -> None:
    example = parse(prompt=[{**USER, "tool_calls": None, "name": None}], completion=[YO], label=True)
    assert example.prompt == [USER]


def test_tools_and_template_arguments_may_be_json_in_text() -> None:
    example = parse(
        prompt="p", completion="c", label=1, tools='[{"name": "t"}]', chat_template_kwargs='{"x": 1}'
    )
    assert (example.tools, example.chat_template_kwargs) == ([{"name": "t"}], {"x": 1})
    assert parse(prompt="p", completion="c", label=1, tools="", chat_template_kwargs=" ").tools is None


@given(st.text(min_size=1).filter(lambda text: text.strip()), st.booleans())
def test_text_is_taken_as_it_stands(text: str, label: bool) -> None:
    assert parse(prompt=text, completion=text, label=label) == Example(text, text, label, "f line 1")


# Files


def test_a_file_with_refused_rows_names_counts_and_first_lines_and_the_way_on(tmp_path: Path) -> None:
    bad = ['{"prompt": "p"', '{"prompt": "p", "completion": "c", "label": "meh"}', "[1]", '{"prompt": "p"}']
    error = refuse(tmp_path, GOOD, *bad, "", GOOD)
    message = str(error)
    assert "4 of 6 rows cannot be used" in message
    for count in ("1 broken_json", "1 wrong_label", "1 not_an_object", "1 missing_key", "--skip-refused"):
        assert count in message
    for number in (2, 3, 4, 5):
        assert f"thumbs.jsonl line {number}: " in message
    rows = read_rows(tmp_path / "thumbs.jsonl", skip_refused=True)
    assert [example.where for example in rows.examples] == ["thumbs.jsonl line 1", "thumbs.jsonl line 7"]
    assert rows.refusals.as_dict()["by_reason"] == {
        "broken_json": 1,
        "wrong_label": 1,
        "not_an_object": 1,
        "missing_key": 1,
    }


def test_only_the_first_refusals_of_a_reason_are_kept_in_words(tmp_path: Path) -> None:
    error = refuse(tmp_path, GOOD, *["{"] * 50)
    assert error.refusals.total == 50
    assert len(error.refusals.messages) == 3


def test_a_file_of_which_nothing_is_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    error = refuse(tmp_path, "{", "{", skip_refused=True)
    assert "No row is left" in str(error)
    assert "--skip-refused" not in str(error)


def test_thumbs_and_pairs_in_one_file_are_refused(tmp_path: Path) -> None:
    error = refuse(tmp_path, GOOD, '{"prompt": "p", "chosen": "a", "rejected": "b"}')
    assert "thumbs.jsonl line 2: the rows before it are unpaired" in str(error)
    assert error.refusals.by_reason == {"mixed_shapes": 1}


def test_a_line_that_is_not_utf8_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"prompt": "caf\xe9"}\n' + GOOD.encode())
    with pytest.raises(DataError, match=r"thumbs\.jsonl line 2: column 16 is not UTF-8"):
        read_rows(path)
    assert len(read_rows(path, skip_refused=True).examples) == 2


def test_half_a_character_in_json_is_refused(tmp_path: Path) -> None:
    error = refuse(tmp_path, '{"prompt": "\\ud83d", "completion": "c", "label": 1}')
    assert error.refusals.by_reason == {"not_utf8": 1}


@pytest.mark.parametrize("line", ["[" * 100_000, '{"label": ' + "9" * 5000 + "}"])
def test_hostile_json_is_refused_and_not_a_crash(tmp_path: Path, line: str) -> None:
    assert refuse(tmp_path, GOOD, line).refusals.by_reason == {"broken_json": 1}


def test_a_line_of_50_mb_is_refused_by_number_without_being_loaded(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    with path.open("wb") as handle:
        handle.write(GOOD.encode() + b'\n{"prompt": "')
        for _ in range(50):
            handle.write(b"x" * 2**20)
        handle.write(b'"}\n' + GOOD.encode() + b"\n")
    tracemalloc.start()
    try:
        rows = read_rows(path, skip_refused=True, max_line_bytes=2**20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [example.where for example in rows.examples] == ["thumbs.jsonl line 1", "thumbs.jsonl line 3"]
    assert peak_bytes < 8 * 2**20
    with pytest.raises(DataError, match=r"thumbs\.jsonl line 2: the line is longer than 33,554,432 bytes"):
        read_rows(path)


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode())
    assert [example.where[-6:] for example in read_rows(path).examples] == ["line 1", "line 3"]
    path = tmp_path / "thumbs.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,completion,label\r\np,c,1\r\n\r\n")
    assert len(read_rows(path).examples) == 1


def test_a_json_file_may_be_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.json"
    path.write_text(GOOD + "\n" + GOOD)
    assert read_rows(path).n_read == 2
    path.write_text('[{"prompt": "p", "completion": "c", "label": 1}, 7]')
    with pytest.raises(DataError, match=r"thumbs\.json row 1: the item is no object"):
        read_rows(path)
    path.write_text('[{"prompt": "p",\n oops}]')
    with pytest.raises(DataError, match=r"thumbs\.json line 2: broken JSON"):
        read_rows(path)


def test_csv_rows_are_named_by_the_line_that_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.csv"
    path.write_text('prompt,completion,label\n"a\nb",c,1\np,c,meh\np,c\np,"c"d,1\np,"never closed,1\np,c,0\n')
    with pytest.raises(RowsRefused) as caught:
        read_rows(path)
    message = str(caught.value)
    assert "thumbs.csv line 4: label is 'meh'" in message
    assert "thumbs.csv line 5: 2 cells under 3 columns" in message
    assert "thumbs.csv line 6: broken CSV" in message
    assert "thumbs.csv line 7: broken CSV" in message
    assert "the row runs to line 8" in message
    assert read_rows(path, skip_refused=True).examples[0].prompt == "a\nb"


def test_csv_lines_of_any_length_and_bytes_are_bounded_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.csv"
    long = b"p," + b"x" * 200_000 + b",1\n"
    path.write_bytes(b"prompt,completion,label\n" + long + b"caf\xe9,c,1\np,c,1\n")
    rows = read_rows(path, skip_refused=True)
    assert rows.n_read == 3
    assert len(rows.examples[0].completion) == 200_000, "longer than the csv module's own limit"
    assert rows.refusals.by_reason == {"not_utf8": 1}
    bounded = read_rows(path, skip_refused=True, max_line_bytes=1000)
    assert bounded.refusals.by_reason == {"line_too_long": 1, "not_utf8": 1}
    assert bounded.refusals.messages[0].startswith("thumbs.csv line 2: the line is longer than 1,000 bytes")
    assert bounded.examples[0].where == "thumbs.csv line 4"


def test_a_table_without_the_columns_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.csv"
    path.write_text("question,answer,thumb\np,c,1\n")
    with pytest.raises(DataError, match=r"has the columns 'question', 'answer', 'thumb': it needs prompt"):
        read_rows(path)
    parquet = write_file(tmp_path, "thumbs.parquet", [{"prompt": "p", "completion": "c"}])
    with pytest.raises(DataError, match="it needs prompt, completion and label"):
        read_rows(parquet)
    path.write_text("prompt,label,completion,label\np,1,c,0\n")
    with pytest.raises(DataError, match="'label' stands there twice"):
        read_rows(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such file"):
        read_rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="there is no such file"):
        read_rows(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\n"])
def test_an_empty_file_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="is empty"):
        read_rows(tmp_path / name)


def test_files_with_a_header_or_brackets_alone_hold_no_rows(tmp_path: Path) -> None:
    for name, content in (("a.csv", "prompt,completion,label\n"), ("a.json", "[]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="holds no rows"):
            read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF\0\0\1", "is a binary file"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"PK\x03\x04x", "zip archive or a spreadsheet"),
        ("{}".encode("utf-16"), "UTF-16 text"),
        (b"PAR1xxxx", r"ending \.parquet"),
    ],
)
def test_a_binary_file_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_rows(path)


def test_a_broken_parquet_file_and_an_unknown_ending_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet: no readable Parquet file"):
        read_rows(tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"unknown ending '\.txt': expected \.jsonl"):
        read_rows(tmp_path / "a.txt")


def test_a_directory_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory, but none that datasets' save_to_disk wrote"):
        read_rows(tmp_path)
    from datasets import Dataset, DatasetDict

    split = Dataset.from_list(TEXT_ROWS)
    DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        read_rows(tmp_path / "splits")
    assert read_rows(tmp_path / "splits" / "train").n_read == 2
    (tmp_path / "splits" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="no readable datasets folder"):
        read_rows(tmp_path / "splits" / "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(DataError, match="no permission to read it"):
        read_rows(path)


def test_a_refused_permission_is_told_whoever_runs_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_to_open(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "thumbs.jsonl").write_text(GOOD)
    monkeypatch.setattr(Path, "open", refuse_to_open)
    with pytest.raises(DataError, match=r"thumbs\.jsonl: no permission to read it"):
        read_rows(tmp_path / "thumbs.jsonl")


def test_a_dataset_is_read_strictly_and_names_the_row() -> None:
    from datasets import Dataset

    rows = [*TEXT_ROWS, {"prompt": "p", "completion": " ", "label": True, "truth": ""}]
    for dataset in (Dataset.from_list(rows), rows):
        with pytest.raises(DataError, match="train_dataset row 2: completion holds no text"):
            rows_from_dataset(dataset)
    with pytest.raises(DataError, match="eval_dataset holds no rows"):
        rows_from_dataset([], source="eval_dataset")


def test_paired_rows_make_a_paired_kind() -> None:
    rows: Rows = rows_from_dataset([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert (rows.kind, rows.examples, rows.pairs) == (
        "paired",
        [],
        [Pair("p", "a", "b", "train_dataset row 0")],
    )


def test_finished_is_read_changes_the_digest_only_where_false_and_survives_writing(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": True}
    plain, marked, cut = (
        rows_from_dataset([row | extra]) for extra in ({}, {"finished": True}, {"finished": False})
    )
    assert plain.digest == marked.digest != cut.digest
    assert not cut.examples[0].finished
    write_jsonl(cut.examples, tmp_path / "cut.jsonl")
    assert read_rows(tmp_path / "cut.jsonl").digest == cut.digest
    with pytest.raises(DataError, match="finished is 'maybe', expected true or false"):
        rows_from_dataset([row | {"finished": "maybe"}])


# ---- one at a time


@pytest.mark.parametrize(
    "rows", [TEXT_ROWS, CHAT_ROWS, [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 3]
)
def test_a_stream_gives_the_rows_and_the_digest_of_reading_them_all(rows: list[dict[str, Any]]) -> None:
    whole = rows_from_dataset(rows)
    stream = stream_dataset(iter(rows))
    assert list(stream) == (whole.examples or whole.pairs)
    assert (stream.digest, stream.n_read, stream.source) == (whole.digest, whole.n_read, whole.source)


def test_a_stream_reads_no_further_than_it_is_asked() -> None:
    read: list[int] = []

    def endless() -> Any:
        for number in range(10**9):
            read.append(number)
            yield {"prompt": f"{number}?", "completion": "a", "label": True}

    stream = iter(stream_dataset(endless()))
    assert [next(stream).where for _ in range(3)] == [f"train_dataset row {number}" for number in range(3)]
    assert read == [0, 1, 2]


def test_a_stream_is_strict_and_refuses_emptiness_at_its_end() -> None:
    rows = [TEXT_ROWS[0], {**TEXT_ROWS[1], "label": "meh"}, {"prompt": "p"}]
    stream = iter(stream_dataset(rows))
    next(stream)
    with pytest.raises(RowRefused, match="train_dataset row 1: label is 'meh'"):
        next(stream)
    with pytest.raises(DataError, match="eval_dataset holds no rows"):
        list(stream_dataset([], source="eval_dataset"))
    mixed = [TEXT_ROWS[0], {"prompt": "p", "chosen": "a", "rejected": "b"}]
    with pytest.raises(RowRefused, match="row 1: the rows before it are unpaired"):
        list(stream_dataset(mixed))


def test_a_table_read_by_batches_has_the_rows_of_one_read_row_by_row() -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    features = Features(
        {
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "completion": List({"role": Value("string"), "content": Value("string")}),
            "label": ClassLabel(names=["down", "up"]),
            "tools": Value("string"),
        }
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number}?"}],
            "completion": [{"role": "assistant", "content": None if number % 7 == 0 else "é"}],
            "label": number % 2,
            "tools": None if number % 3 else "[]",
        }
        for number in range(700)  # more than two batches
    ]
    dataset = Dataset.from_list(rows, features=features)
    shuffled = dataset.shuffle(seed=1)  # read through indices
    for table in (dataset, shuffled, dataset.with_format("numpy"), dataset.select([])):
        plain = list(table.with_format(None))
        assert [row for _, row in iterate_dataset(table, "t")] == [
            {**row, "completion": [{k: v for k, v in m.items() if v is not None} for m in row["completion"]]}
            for row in plain
        ]
