"""`thumbtune data`: what it prints, and exit codes that mean something."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from thumbtune import cli
from thumbtune.data.formats import read_rows

GOOD = '{"prompt": "2+2?", "completion": "[b]4[/b]", "label": true}'
BAD_THUMB = '{"prompt": "2+2?", "completion": "five", "label": false}'


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def thumbtune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line as a shell would, in this process, without colour and 200 columns wide."""

    def run(*arguments: Any, **environment: str) -> Outcome:
        for name, value in {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "xterm", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["thumbtune", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def thumbs(tmp_path: Path) -> Path:
    path = tmp_path / "thumbs.jsonl"
    path.write_text(f"{GOOD}\n{BAD_THUMB}\n")
    return path


def test_a_good_file_is_counted_and_exits_with_0(thumbtune: Any, thumbs: Path) -> None:
    outcome = thumbtune("data", "check", thumbs)
    assert outcome.code == 0
    assert re.search(r"unpaired rows\W+2 of 2 read", outcome.out)
    assert re.search(r"👍 desirable\W+1 \(50\.0%\)", outcome.out)
    assert re.search(r"pairs contained\W+1 ", outcome.out)
    assert "length in words" in outcome.out


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ('{"prompt": "p"', "broken_json", "thumbs.jsonl line 2: broken JSON at column"),
        (
            '{"prompt": "p", "completion": "c", "label": "meh"}',
            "wrong_label",
            "thumbs.jsonl line 2: label is 'meh', expected true or false. Map it with --label-map meh=false",
        ),
        ('{"prompt": "p", "label": true}', "missing_key", "thumbs.jsonl line 2: no 'completion'"),
        (
            '{"prompt": "p", "completion": " ", "label": 1}',
            "empty_completion",
            "thumbs.jsonl line 2: completion holds no text",
        ),
        (
            '{"prompt": "p", "completion": "' + "x" * 50_000_000 + '", "label": 1}',
            "line_too_long",
            "thumbs.jsonl line 2: the line is longer than 33,554,432 bytes",
        ),
    ],
    ids=["broken-json", "wrong-label", "missing-key", "empty-completion", "50-mb-line"],
)
def test_a_refused_row_is_named_by_file_and_line_and_exits_with_1(
    thumbtune: Any, tmp_path: Path, line: str, reason: str, message: str
) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{BAD_THUMB}\n")
    outcome = thumbtune("data", "check", path)
    assert outcome.code == 1
    assert f"1 of 3 rows cannot be used: 1 {reason}" in outcome.out
    assert message in outcome.out
    found = json.loads(thumbtune("data", "check", path, "--json").out)
    assert (found["n_rows"], found["refusals"]["by_reason"]) == (2, {reason: 1})
    strict = thumbtune("data", "pairs", path, "--out", tmp_path / "pairs.jsonl")
    assert strict.code == 2
    assert strict.err.startswith("thumbtune: ")
    assert message in strict.err
    assert "--skip-refused" in strict.err


def test_a_file_of_nothing_but_refused_rows_exits_with_1(thumbtune: Any, tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text("oops\n")
    outcome = thumbtune("data", "check", path)
    assert (outcome.code, "1 of 1 rows cannot be used: 1 broken_json" in outcome.out) == (1, True)
    assert json.loads(thumbtune("data", "check", path, "--json").out)["n_rows"] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.jsonl", None, "there is no such file"),
        ("empty.jsonl", b"", "is empty"),
        ("binary.jsonl", b"\x7fELF\0\0", "is a binary file"),
        (".", None, "is a directory"),
        ("thumbs.docx", b"x", "unknown ending '.docx'"),
    ],
)
def test_a_wrong_file_is_one_line_of_error_and_exits_with_2(
    thumbtune: Any, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    outcome = thumbtune("data", "check", path)
    assert outcome.code == 2
    assert outcome.err.startswith(f"thumbtune: {path}")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_wrong_options_exit_with_2(thumbtune: Any, thumbs: Path) -> None:
    assert thumbtune("data", "check", thumbs, "--max-length", "5").code == 2
    assert thumbtune("data", "check", thumbs, "--max-length", "0").code == 2
    assert thumbtune("data", "check", thumbs, "--truncation", "keep_middle").code == 2
    outcome = thumbtune("data", "check", thumbs, "--label-map", "meh")
    assert (outcome.code, "--label-map: 'meh' is not of the form" in outcome.err) == (2, True)


def test_a_label_map_lets_the_row_through(thumbtune: Any, tmp_path: Path) -> None:
    path = tmp_path / "thumbs.csv"
    path.write_text("prompt,completion,label\np,c,meh\np,d,good\n")
    assert thumbtune("data", "check", path, "--label-map", "meh=false,good=true").code == 0


def test_tokens_and_cuts_are_counted_with_a_model(
    thumbtune: Any, thumbs: Path, tiny_model_path: Path
) -> None:
    arguments = ("data", "check", thumbs, "--model", tiny_model_path, "--max-length", 8)
    outcome = thumbtune(*arguments)
    assert outcome.code == 0
    assert "length in tokens" in outcome.out
    assert re.search(r"completion tokens cut\W+6 ", outcome.out)  # 4 + 9 and 4 + 5 tokens, against 8
    found = json.loads(thumbtune(*arguments, "--json").out)
    assert found["cuts"]["completion_tokens_cut"] == 6
    assert found["length_unit"] == "tokens"


def test_show_marks_trained_tokens_cuts_and_control_characters(
    thumbtune: Any, tmp_path: Path, tiny_model_path: Path
) -> None:
    path = tmp_path / "thumbs.jsonl"
    rows = [
        {"prompt": "abc\x1b[31m", "completion": "[red]é\n\u202e", "label": True},
        {"prompt": "0123456789", "completion": "abcdef", "label": False},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = thumbtune("data", "show", path, "--model", tiny_model_path)
    assert shown.code == 0
    assert "thumbs.jsonl line 1 · 👍 desirable · prompt 8 tokens, trained 12 tokens" in shown.out
    assert "abc␛[31m⟦[red]é⏎\n‹U+202E›<|im_end|>⟧" in shown.out
    assert "\x1b" not in shown.out
    limits = ("--start", 1, "--max-length", 6, "--max-prompt-length", 4)
    cut = thumbtune("data", "show", path, "--model", tiny_model_path, *limits)
    assert "line 1" not in cut.out
    assert "✂⟨6 prompt tokens cut: 012345⟩6789⟦ab⟧✂⟨5 completion tokens cut: cdef<|im_end|>⟩" in cut.out
    start = thumbtune("data", "show", path, "--model", tiny_model_path, *limits, "--truncation", "keep_start")
    assert "0123✂⟨6 prompt tokens cut: 456789⟩⟦ab⟧" in start.out
    dropped = thumbtune("data", "show", path, "--model", tiny_model_path, "--max-length", 4)
    assert "dropped: 8 prompt tokens leave no room for the completion" in dropped.out


def test_show_colours_the_completion_by_its_label(thumbs: Path, tiny_tokenizer: Any) -> None:
    from rich.console import Console

    from thumbtune.cli.rendering import render_example

    up, down = read_rows(thumbs).examples
    for example, background in ((up, "42"), (down, "41")):
        console = Console(force_terminal=True, color_system="standard", no_color=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(render_example(tiny_tokenizer, example), soft_wrap=True)
        assert f"\x1b[30;{background}m" in capture.get()
        assert "⟦" not in capture.get()


def test_show_says_what_it_passed_over(thumbtune: Any, tmp_path: Path, tiny_model_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text(f"{GOOD}\noops\n")
    outcome = thumbtune("data", "show", path, "--model", tiny_model_path, "--start", 9)
    assert "has 1 rows to show: --start 9 passes over all" in outcome.err
    assert "1 rows cannot be used and are not shown (1 broken_json)" in outcome.err


def test_pairs_are_written_and_what_is_left_over_is_counted(
    thumbtune: Any, tmp_path: Path, thumbs: Path
) -> None:
    lonely = '{"prompt": "q", "completion": "c", "label": true}'
    thumbs.write_text(f"{GOOD}\n{BAD_THUMB}\n{lonely}\n")
    out = tmp_path / "pairs.jsonl"
    outcome = thumbtune("data", "pairs", thumbs, "--out", out)
    assert outcome.code == 0
    assert "1 pairs from 2 of 3 thumbs" in outcome.out
    assert "left over: 1 no_counterpart" in outcome.out
    [pair] = read_rows(out).pairs
    assert (pair.prompt, pair.chosen, pair.rejected) == ("2+2?", "[b]4[/b]", "five")
    assert "holds pairs already" in thumbtune("data", "pairs", out, "--out", tmp_path / "x.jsonl").err


@pytest.mark.parametrize("command", ["check", "show", "pairs"])
def test_every_help_has_examples(thumbtune: Any, command: str) -> None:
    outcome = thumbtune("data", command, "--help")
    assert outcome.code == 0
    assert f"thumbtune data {command} thumbs." in outcome.out
    assert "Examples" in outcome.out
