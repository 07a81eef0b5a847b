"""`thumbtune synth` from the outside: files, counts and refusals. No model is loaded."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
from typer.testing import CliRunner

from thumbtune.cli.app import app
from thumbtune.errors import ConfigError

runner = CliRunner()


@dataclass(frozen=True)
class MadeUp:
    text: str
    token_ids: tuple[int, ...]
    finished: bool
    log_prob: float = -1.0


@pytest.fixture
def scripted_model(monkeypatch):
    """Stands in for the model: every prompt gets a short answer, a long one and one that was cut."""
    calls = {}

    def sample_completions(model, tokenizer, prompts, *, n, on_progress=None, **settings):
        calls.update(settings, n=n, prompts=prompts)
        on_progress(len(prompts) * n, len(prompts) * n)
        answers = [MadeUp("It is water.", (1, 2, 3), True), MadeUp("So " * 40, tuple(range(40)), True)]
        return [[*answers, MadeUp("It is", (1, 2), False)][:n] for _ in prompts]

    for name, members in {
        "thumbtune.evaluation.generate": {"sample_completions": sample_completions},
        "thumbtune.engine.loading": {"load_model_and_tokenizer": lambda name: (name, None)},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def run(*arguments):
    return runner.invoke(app, ["synth", *map(str, arguments)], catch_exceptions=False)


def test_facts_writes_rows_and_prints_counts(tmp_path):
    out = tmp_path / "thumbs.jsonl"
    result = run("facts", "--rows", 50, "--up-share", 0.2, "--out", out)
    assert result.exit_code == 0
    assert "50 rows, 👍 10, 👎 40" in result.stdout
    assert "refusal" in result.stdout
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 50
    assert set(rows[0]) == {"prompt", "completion", "label", "truth"}


def test_facts_with_json_prints_one_object_that_counts_rows_without_a_vote(tmp_path):
    out = tmp_path / "thumbs.jsonl"
    result = run(
        "facts", "--rows", 200, "--language", "both", "--vote-rate", 0.5, "--chat", "--out", out, "--json"
    )
    counts = json.loads(result.stdout)
    assert counts["rows"] + counts["without_vote"] == 200
    assert (
        counts["up"] + counts["down"] == counts["rows"] == len(out.read_text(encoding="utf-8").splitlines())
    )


def test_facts_writes_the_same_bytes_again(tmp_path):
    run("facts", "--rows", 40, "--seed", 3, "--out", tmp_path / "a.jsonl")
    run("facts", "--rows", 40, "--seed", 3, "--out", tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_file_is_not_overwritten_unless_asked(tmp_path):
    out = tmp_path / "thumbs.jsonl"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="--overwrite"):
        run("facts", "--rows", 5, "--out", out)
    assert out.read_text(encoding="utf-8") == "mine"
    assert run("facts", "--rows", 5, "--out", out, "--overwrite").exit_code == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 5


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        run("facts", "--rows", 5, "--out", tmp_path / "no" / "thumbs.jsonl")


def test_simulate_has_users_vote_on_what_the_model_says(tmp_path, scripted_model):
    out = tmp_path / "thumbs.jsonl"
    result = run("simulate", "--model", "m", "--n-prompts", 4, "--completions", 3, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)
    assert (counts["prompts"], counts["samples"], counts["up"], counts["down"]) == (4, 12, 4, 8)
    assert counts["unfinished"] == 4
    assert scripted_model["max_new_tokens"] == 48
    assert scripted_model["prompts"][0][0]["role"] == "user"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["completion"] == [{"role": "assistant", "content": "It is water."}]


def test_simulate_checks_correctness_against_facts_of_the_prompts_file(tmp_path, scripted_model):
    facts, out = tmp_path / "facts.jsonl", tmp_path / "thumbs.jsonl"
    run("facts", "--rows", 10, "--out", facts)
    arguments = ["simulate", "--model", "m", "--taste", "correctness", "--out", out]
    result = run(*arguments, "--prompts", facts, "--n-prompts", 5, "--completions", 1)
    assert result.exit_code == 0
    assert "👍 0, 👎 5" in result.stdout
    with pytest.raises(ConfigError, match="synth facts"):
        run(*arguments, "--overwrite")


def test_simulate_refuses_bad_settings_before_it_loads_a_model(tmp_path):
    with pytest.raises(ConfigError, match="unknown taste"):
        run("simulate", "--model", "m", "--taste", "spicy", "--out", tmp_path / "t.jsonl")
    (tmp_path / "p.txt").write_text("Hi\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--n-prompts"):
        run(
            "simulate",
            "--model",
            "m",
            "--prompts",
            tmp_path / "p.txt",
            "--n-prompts",
            9,
            "--out",
            tmp_path / "t.jsonl",
        )


@pytest.mark.parametrize("command", ["facts", "simulate"])
def test_every_help_has_examples(command):
    result = run(command, "--help")
    assert "Examples" in result.stdout
    assert f"thumbtune synth {command}" in result.stdout
