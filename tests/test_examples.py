"""The examples run as their first lines say, and say the same as the library."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from thumbtune.data.chat import tokenize
from thumbtune.data.synth.facts import make_fact_thumbs
from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.engine.logprobs import Branch, score_branches
from thumbtune.preference.losses import kto_loss

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example as a user would, with every cache in `folder`. Its warnings are its own."""
    caches = {"THUMBTUNE_CACHE": "cache", "HF_DATASETS_CACHE": "datasets", "WANDB_DIR": "."}
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "PYTHONWARNINGS"))
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        env=environment | {key: str(folder / value) for key, value in caches.items()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def import_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_thumbs(path: Path, n_rows: int, *, chat: bool = False) -> Path:
    rows = make_fact_thumbs(rows=n_rows, seed=0, chat=chat)
    columns = ("prompt", "completion", "label")
    path.write_text("".join(json.dumps({name: row[name] for name in columns}) + "\n" for row in rows))
    return path


def read_losses(output: str) -> list[float]:
    return [float(line.split("loss ")[1].split(",")[0]) for line in output.splitlines() if ": loss " in line]


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    return import_example("kto_in_one_file.py")


def test_the_loss_of_the_one_file_is_the_loss_of_the_library(one_file: ModuleType) -> None:
    torch.manual_seed(0)
    log_ratio, desirable = 30 * torch.randn(1000), torch.rand(1000) < 0.3
    for z0 in (torch.zeros(()), torch.tensor(7.5)):
        theirs = one_file.kto_loss(log_ratio, desirable, z0, 0.1, 1.3, 0.7)
        ours = kto_loss(log_ratio, desirable, z0, beta=0.1, desirable_weight=1.3, undesirable_weight=0.7)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_tokens_and_log_probs_of_the_one_file_are_those_of_the_library(
    one_file: ModuleType, tiny_model_path: Path, tmp_path: Path, chat: bool
) -> None:
    model, tokenizer = load_model_and_tokenizer(tiny_model_path)
    model.eval()
    lines = write_thumbs(tmp_path / "thumbs.jsonl", 6, chat=chat).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    branches = [one_file.tokenize(tokenizer, row, 300) for row in rows]
    for row, branch in zip(rows, branches, strict=True):
        tokens = tokenize(tokenizer, row["prompt"], row["completion"])
        assert branch == (tokens.prompt_ids, tokens.completion_ids[: 300 - len(tokens.prompt_ids)])
    with torch.no_grad():
        theirs = one_file.log_probs(model, branches)
    ours = score_branches(
        model, [Branch(*branch) for branch in branches], pad_token_id=tokenizer.pad_token_id
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-3)


def test_the_one_file_lends_each_row_a_completion_of_another_prompt(one_file: ModuleType) -> None:
    import random

    prompts = [[1], [1], [2], [3], [1], [3]]
    batches = one_file.plan_batches(prompts, 3, 2, random.Random(0))
    for epoch in (batches[:2], batches[2:]):
        assert sorted(row for batch in epoch for row, _ in batch) == list(range(6))
    for batch in batches:
        members = [row for row, _ in batch]
        for row, lender in batch:
            others = [other for other in members if prompts[other] != prompts[row]]
            assert lender in others if others else lender is None


def test_the_one_file_trains_and_does_so_bit_for_bit_again(tiny_model_path: Path, tmp_path: Path) -> None:
    thumbs = write_thumbs(tmp_path / "thumbs.jsonl", 20)
    settings = ("--max-steps", "3", "--batch-size", "8", "--learning-rate", "1e-3")
    outputs, weights = [], []
    for name in ("first", "second"):
        call = ("kto_in_one_file.py", thumbs, "--model", tiny_model_path, "--out", name)
        outputs.append(run_example(*call, *settings, folder=tmp_path).stdout.replace(name, ""))
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    losses = read_losses(outputs[0])
    assert len(losses) == 3
    assert losses[0] == 0.5  # policy and reference are one model
    assert losses[1] != 0.5
    assert outputs[0] == outputs[1]
    assert weights[0] == weights[1]
    assert weights[0] != (tiny_model_path / "model.safetensors").read_bytes()
    load_model_and_tokenizer(tmp_path / "first")


def test_the_lesson_s_lab_runs_with_the_lesson_s_settings(tiny_model_path: Path, tmp_path: Path) -> None:
    done = run_example(
        "cookbook_kto.py",
        *("--model", tiny_model_path, "--rows", "40", "--max-steps", "5", "--out", "lab"),
        folder=tmp_path,
    )
    config = json.loads((tmp_path / "lab" / "manifest.json").read_text())["config"]
    lesson = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 5e-6,
        "max_length": 4096,
        "max_prompt_length": 2048,
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "logging_steps": 5,
    }
    assert {name: config[name] for name in lesson} == lesson
    for name, word in (
        ("bf16", "bf16=True"),
        ("optim", "paged_adamw_8bit"),
    ):  # kept, or said what took its place
        assert config[name] in (True, "paged_adamw_8bit") or word in done.stderr
    assert "     5 " in done.stdout  # the log of step 5, by class
    assert "held out, 4 rows" in done.stdout
    assert "  rewards/rejected: " in done.stdout
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert (tmp_path / "lab" / "model.safetensors").is_file()


def test_one_import_apart_both_libraries_train_to_the_same_losses(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    """On two rows in one batch: there, order and mismatched completions are the same by necessity."""
    thumbs = write_thumbs(tmp_path / "two.jsonl", 2)
    losses = {}
    for library in ("trl", "thumbtune"):
        done = run_example(
            "swap_one_import.py",
            *(thumbs, "--model", tiny_model_path, "--library", library),
            *("--max-steps", "3", "--learning-rate", "1e-3"),
            folder=tmp_path,
        )
        losses[library] = read_losses(done.stdout)
    assert len(losses["trl"]) == 3
    assert losses["trl"][0] == 0.5
    assert losses["trl"][2] < 0.45  # it learns, so equality says something
    assert losses["thumbtune"] == pytest.approx(losses["trl"], abs=1e-4)
