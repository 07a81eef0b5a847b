"""`thumbtune train`, from its arguments to its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from thumbtune.cli import main

Run = Callable[..., "Done"]

THUMBS = [
    {
        "prompt": f"Where is town {i}?",
        "completion": "In the north." if i % 2 else "No idea at all.",
        "label": bool(i % 2),
    }
    for i in range(12)
]


def write_thumbs(path: Path, rows: list[dict] | None = None) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows or THUMBS))
    return path


class Done(NamedTuple):
    stdout: str
    stderr: str


@pytest.fixture
def run_thumbtune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line's entry point, called in this process: importing torch anew for each call takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THUMBTUNE_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object, expect: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["thumbtune", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        done = Done(*capfd.readouterr())
        assert (stop.value.code or 0) == expect, done.stderr + done.stdout
        return done

    return run


def test_an_adapter_its_manifest_and_its_metrics_come_out(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    file = write_thumbs(tmp_path / "thumbs.jsonl")
    done = run_thumbtune(
        "train", file, "--model", tiny_model_path, "--out", "run", "--max-steps", 2, "--beta", "0.3",
        "--eval", file, "--json"
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["finished"]
    assert result["steps"] == 2
    assert 0 <= result["eval"]["eval_auc"] <= 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["beta"] == 0.3
    assert manifest["data"]["classes"] == {"desirable": 6, "undesirable": 6}
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert [
        json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ][:2] == [1, 2]


def test_a_finished_run_is_found_and_another_one_in_its_folder_is_refused(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    file = write_thumbs(tmp_path / "thumbs.jsonl")
    common = ["train", file, "--model", tiny_model_path, "--out", "run", "--max-steps", 1]
    run_thumbtune(*common)
    before = (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns
    run_thumbtune(*common)
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns == before
    refused = run_thumbtune(*common, "--beta", "0.2", expect=2)
    assert "holds another run" in refused.stderr
    run_thumbtune(*common, "--beta", "0.2", "--overwrite")


@pytest.mark.parametrize("shape", [[], ["--full"]])
def test_a_finished_run_is_evaluated_with_the_weights_that_it_ended_with(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path, shape: list[str]
) -> None:
    file = write_thumbs(tmp_path / "thumbs.jsonl")
    command = ["train", file, "--model", tiny_model_path, "--out", "run", "--max-steps", 3, "--json", *shape]
    command += ["--learning-rate", 1e-2, "--warmup-steps", 0, "--eval", file]
    first, again = (json.loads(run_thumbtune(*command).stdout) for _ in range(2))
    assert (first["steps"], again["steps"]) == (3, 3)
    assert abs(first["eval"]["eval_loss"] - 0.5) > 1e-3, "nothing was learned: the test sees nothing"
    for name in ("eval_loss", "eval_z0", "eval_rewards/chosen", "eval_rewards/rejected"):
        assert again["eval"][name] == pytest.approx(first["eval"][name], abs=1e-6)


def test_dpo_learns_from_the_pairs_in_the_thumbs_and_counts_what_is_left_over(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    rows = [
        {"prompt": "Where?", "completion": "Here.", "label": "👍"},
        {"prompt": "Where?", "completion": "No idea.", "label": "👎"},
        {"prompt": "When?", "completion": "Now.", "label": "up"},
    ]
    file = write_thumbs(tmp_path / "thumbs.jsonl", rows)
    done = run_thumbtune(
        "train", file, "--model", tiny_model_path, "--method", "dpo", "--out", "run", "--max-steps", 1, "--json"
    )  # fmt: skip
    counts = json.loads(done.stdout)["data"]["counts"]
    assert counts == {"not paired: no_counterpart": 1} | {name: 0 for name in counts if not counts[name]}


def test_one_class_only_works_for_kto_with_a_warning_and_is_refused_for_dpo(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    file = write_thumbs(tmp_path / "thumbs.jsonl", [row | {"label": True} for row in THUMBS])
    common = ["train", file, "--model", tiny_model_path, "--max-steps", 1]
    done = run_thumbtune(*common, "--out", "kto")
    assert "one class" in done.stderr
    refused = run_thumbtune(*common, "--out", "dpo", "--method", "dpo", expect=2)
    assert "no prompt has both" in refused.stderr
    assert not (tmp_path / "dpo").exists()


def test_a_prompt_longer_than_max_length_is_cut_or_refused_and_counted(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    rows = [*THUMBS, {"prompt": "long " * 50, "completion": "Yes.", "label": True}]
    file = write_thumbs(tmp_path / "thumbs.jsonl", rows)
    common = ["train", file, "--model", tiny_model_path, "--max-steps", 1, "--max-length", 60, "--json"]
    dropped = run_thumbtune(*common, "--out", "a")
    assert json.loads(dropped.stdout)["data"]["counts"]["dropped: prompt fills max_length"] == 1
    cut = run_thumbtune(*common, "--max-prompt-length", 40, "--out", "b")
    assert json.loads(cut.stdout)["data"]["counts"]["cut: prompt"] == 1
    refused = run_thumbtune(*common[:-2], 10, "--out", "c", expect=2)
    assert "max_length=10" in refused.stderr
    assert not (tmp_path / "c").exists()


def _bad_lines(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


BAD_FILES = {
    "empty file": (b"", "empty"),
    "broken JSON line": (_bad_lines(json.dumps(THUMBS[0]).encode(), b'{"prompt": '), "line 2"),
    "wrong label": (_bad_lines(b'{"prompt": "a", "completion": "b", "label": "meh"}'), "label is 'meh'"),
    "missing key": (_bad_lines(b'{"prompt": "a", "label": true}'), "completion"),
    "empty completion": (_bad_lines(b'{"prompt": "a", "completion": " ", "label": true}'), "line 1"),
    "binary file": (bytes(range(256)) * 10, "binary file"),
    "a line of 50 MB": (
        b'{"prompt": "' + b"a" * 50_000_000 + b'", "completion": "b", "label": true}\n',
        "line 1",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_before_anything_is_written(
    run_thumbtune: Run, kind: str, tmp_path: Path, tiny_model_path: Path
) -> None:
    content, message = BAD_FILES[kind]
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    done = run_thumbtune("train", file, "--model", tiny_model_path, "--out", "run", expect=2)
    assert "bad.jsonl" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


BAD_CALLS = {
    "missing file": (["train", "nowhere.jsonl", "--model", "MODEL"], "nowhere.jsonl"),
    "a directory": (["train", ".", "--model", "MODEL"], "is a directory"),
    "unknown method": (["train", "good.jsonl", "--model", "MODEL", "--method", "ktoo"], "did you mean 'kto'"),
    "unknown setting": (["train", "good.jsonl", "--model", "MODEL", "--betta", "1"], "did you mean 'beta'"),
    "a setting without a value": (["train", "good.jsonl", "--model", "MODEL", "--beta"], "no value"),
    "a setting of the wrong type": (
        ["train", "good.jsonl", "--model", "MODEL", "--beta", "high"],
        "beta='high'",
    ),
    "unknown key in a config file": (
        ["train", "good.jsonl", "--model", "MODEL", "--config", "c.toml"],
        "lerning_rate",
    ),
    "a config file that is missing": (
        ["train", "good.jsonl", "--model", "MODEL", "--config", "no.toml"],
        "no.toml",
    ),
    "a model path without a model": (["train", "good.jsonl", "--model", "."], "holds no model"),
    "a model path that is missing": (["train", "good.jsonl", "--model", "./none"], "no such folder"),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_a_bad_call_is_refused_before_anything_is_written(
    run_thumbtune: Run, kind: str, tmp_path: Path, tiny_model_path: Path
) -> None:
    arguments, message = BAD_CALLS[kind]
    write_thumbs(tmp_path / "good.jsonl")
    (tmp_path / "c.toml").write_text("lerning_rate = 1e-4\n")
    arguments = [str(tiny_model_path) if argument == "MODEL" else argument for argument in arguments]
    done = run_thumbtune(*arguments, "--out", "run", expect=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_rows_that_cannot_be_used_are_counted_where_the_user_goes_on_without_them(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    file = write_thumbs(
        tmp_path / "thumbs.jsonl", [*THUMBS, {"prompt": "a", "completion": "b", "label": "meh"}]
    )
    done = run_thumbtune(
        "train", file, "--model", tiny_model_path, "--out", "run", "--max-steps", 1, "--skip-refused", "--json"
    )  # fmt: skip
    assert json.loads(done.stdout)["data"]["counts"]["refused: wrong_label"] == 1


def test_rows_with_images_are_refused_by_their_line(
    run_thumbtune: Run, tmp_path: Path, tiny_model_path: Path
) -> None:
    file = write_thumbs(tmp_path / "thumbs.jsonl", [*THUMBS, {**THUMBS[0], "image": "a.png"}])
    done = run_thumbtune("train", file, "--model", tiny_model_path, "--out", "run", expect=2)
    assert "thumbs.jsonl line 13: the row holds 'image': thumbtune trains on text alone" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_settings_are_listed_with_their_meaning(run_thumbtune: Run) -> None:
    listed = run_thumbtune("train", "--help-fields").stdout
    assert "  beta = 0.1\n      How strongly" in listed
    assert "label_smoothing = 0.0" in listed
    assert "TrainingArguments" in listed


def test_seeds_that_are_no_numbers_are_refused_before_anything_is_read(run_thumbtune: Run) -> None:
    done = run_thumbtune(
        "compare", "none.jsonl", "-m", "none", "-o", "run", "--taste", "brevity:9", "--seeds", "a,b", expect=2
    )
    assert "--seeds 'a,b'" in done.stderr
