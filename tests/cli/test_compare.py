"""`thumbtune compare` at the command line: what it refuses before it loads a model, and what it hands on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from thumbtune.cli.app import app

THUMBS = [
    {"prompt": f"question {i}?", "completion": f"answer {i} {k}", "label": bool(k)}
    for i in range(6)
    for k in range(2)
]


@pytest.fixture
def thumbs(tmp_path: Path) -> Path:
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in THUMBS))
    return path


def call(thumbs: Path, *options: str) -> Any:
    arguments = [
        "compare",
        str(thumbs),
        "--model",
        str(thumbs.parent / "nowhere"),
        "--out",
        str(thumbs.parent / "run"),
    ]
    return CliRunner().invoke(app, [*arguments, *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nobody judges: give a --taste"),
        (("--taste", "brevity:24", "--judge", "oracle"), "users, check:FILE.py, votes:FILE, or model:NAME@"),
        (("--judge", "model:x"), "users, check:FILE.py, votes:FILE, or model:NAME@"),
        (("--judge", "check:absent.py"), "is no Python file"),
        (("--taste", "brevity:24", "--seeds", "a"), "--seeds 'a': whole numbers"),
        (("--taste", "brevity:24", "--crossing", "48,24"), "numbers of pairs, rising"),
        (
            ("--judge", "model:x@http://127.0.0.1:9/v1", "--noise", "0.1"),
            "--noise is that of simulated users",
        ),
        (("--taste", "brevity:24", "--sweep", "noise"), "sweep 'noise'"),
        (("--taste", "brevity:24", "--methods", "kto,dqo"), "unknown method 'dqo'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_a_model_is_loaded(
    thumbs: Path, options: tuple[str, ...], message: str
) -> None:
    result = call(thumbs, *options)
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output


def test_bought_pairs_need_a_taste(thumbs: Path) -> None:
    (thumbs.parent / "checks.py").write_text("def check(prompt, completion):\n    return True\n")
    result = call(thumbs, "--judge", f"check:{thumbs.parent / 'checks.py'}", "--pool-samples", "2")
    assert "bought pairs need someone who prefers" in str(result.exception) + result.output


def test_settings_of_one_method_stand_in_a_table_of_its_name(
    thumbs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thumbtune.cli.compare import _read_method_settings

    path = thumbs.parent / "settings.toml"
    path.write_text("learning_rate = 1e-3\n\n[kto]\nlearning_rate = 3e-4\nloss_type = 'kto_logsigmoid'\n")
    settings = _read_method_settings(path, {"kto", "simpo"}, thumbs.parent)
    assert settings["kto"]["learning_rate"] == 3e-4
    assert settings["kto"]["loss_type"] == "kto_logsigmoid"
    assert settings["simpo"]["learning_rate"] == 1e-3
    assert (settings["kto"]["beta"], settings["simpo"]["beta"]) == (0.1, 2.0)
    assert "loss_type" not in settings["simpo"]


def test_questions_are_new_ones_and_stand_behind_their_system_message() -> None:
    from thumbtune.cli.held_out import _draw_questions

    first = _draw_questions(5, 1, set(), None)
    others = _draw_questions(5, 1, set(first), "Be brief.")
    assert [prompt[0] for prompt in others] == [{"role": "system", "content": "Be brief."}] * 5
    assert not {prompt[1]["content"] for prompt in others} & set(first)


def test_trials_are_judged_on_the_validation_prompts_that_neither_thumbs_nor_held_out_prompts_hold(
    thumbs: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []
    monkeypatch.setattr(
        "thumbtune.cli.compare._run_and_report", lambda request, *_, **__: requests.append(request)
    )
    held_out, validation = thumbs.parent / "held-out.txt", thumbs.parent / "validation.txt"
    held_out.write_text("unseen 1?\nunseen 2?\n")
    validation.write_text(
        "question 1?\nunseen 2?\nother 1?\nother 2?\n"
    )  # a thumb's, a held-out one, two more
    options = ["--prompts", str(held_out), "--validation-prompts", str(validation), "--taste", "brevity:24"]
    arguments = ["compare", str(thumbs), "--model", str(tiny_model_path), "--out", str(thumbs.parent / "run")]
    for trials in ("2", "1"):
        result = CliRunner().invoke(app, [*arguments, *options, "--trials", trials], catch_exceptions=False)
        assert result.exit_code == 0
        said = "2 validation rows have prompts of the thumbs or held out: left out"
        assert (said in result.output) == (trials == "2")
    with_search, without = requests
    assert (with_search.held_out, with_search.validation) == (
        ["unseen 1?", "unseen 2?"],
        ["other 1?", "other 2?"],
    )
    assert without.validation == []
