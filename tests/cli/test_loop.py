"""The loop's commands: what they print, and how they end."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loop.conftest import fill, make_settings, press, serve_base
from thumbtune.cli.app import app
from thumbtune.errors import ConfigError
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.cycle import run_cycle
from thumbtune.loop.look import look_at_canary, stage_canary
from thumbtune.store.cycles import list_cycles
from thumbtune.store.database import Store
from thumbtune.store.models import ModelVersion, point, register_version


def call(*words: str, ends_with: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == ends_with, result.output
    return result.stdout


def begin_trial(url: str) -> Any:
    store = Store(url)
    for name in ("base-1", "adapter-2"):
        register_version(
            store, ModelVersion(name, "base", "here", parent=None if "base" in name else "base-1")
        )
    point(store, "base-1", actor="test")
    canary = stage_canary(store, "adapter-2", CanaryRules(stages=(0.5,)), actor="test")
    return store, canary


def test_a_dry_run_tells_what_a_turn_would_do(url: str, tiny_model_path: Path, tmp_path: Path) -> None:
    store = Store(url)
    serve_base(store, tiny_model_path)
    fill(store, 20)
    store.close()
    asked = ["cycle", "--model", str(tiny_model_path), "--store", url, "--folder", str(tmp_path / "cycles")]
    assert "wait for 80 more votes" in call(*asked, "--dry-run")
    told = json.loads(call(*asked, "--json", ends_with=3))
    assert told["outcome"] == "not enough new votes: 20 of 100"


def test_a_setting_that_is_not_known_is_refused(url: str, tmp_path: Path) -> None:
    Store(url).close()
    (tmp_path / "loop.toml").write_text('model = "m"\n[gate]\nkl = 1\n')
    with pytest.raises(ConfigError, match="no gate rule 'kl'"):
        call("cycle", "--config", str(tmp_path / "loop.toml"), "--store", url, "--dry-run")
    (tmp_path / "loop.toml").write_text('model = "m"\n[training]\nlearning_rates = 1\n')
    for more in (["--dry-run"], []):
        with pytest.raises(ConfigError, match="unknown setting 'learning_rates'"):
            call("cycle", "--config", str(tmp_path / "loop.toml"), "--store", url, *more)
    store = Store(url)
    assert not list_cycles(store)
    store.close()


def test_a_canary_is_shown_stopped_and_replayed(url: str) -> None:
    Store(url).close()
    assert "no canary runs" in call("canary", "status", "--store", url)
    store, canary = begin_trial(url)
    press(store, "somebody", "hello", True, version="adapter-2", arm="canary")
    told = json.loads(call("canary", "status", "--store", url, "--json"))
    assert told["verdict"]["action"] == "wait"
    assert told["verdict"]["numbers"]["canary"] == [1, 1]
    assert "withdrawn" in call("canary", "stop", "--store", url)
    with pytest.raises(ConfigError, match="nothing to decide again"):
        call("canary", "replay", canary.id, "--store", url)
    again = stage_canary(store, "adapter-2", CanaryRules(stages=(0.5,)), actor="test")
    for arm, version, up in (("canary", "adapter-2", False), ("champion", "base-1", True)):
        for i in range(40):
            press(store, f"{arm}{i}", "hello", up, version=version, arm=arm)
    look_at_canary(store, actor="test")
    assert call("canary", "replay", again.id, "--store", url).startswith("roll back: it is worse")
    assert "rolled_back" in call("canary", "list", "--store", url, "--json")
    store.close()


def test_a_version_is_shown_promoted_taken_back_and_exported_merged(
    url: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from thumbtune.engine.loading import load_model

    store = Store(url)
    fill(store)
    base = serve_base(store, tiny_model_path)
    done = run_cycle(
        store, make_settings(tiny_model_path, tmp_path), on_step=lambda name: nullcontext(lambda *_: None)
    )
    assert done is not None
    version = done.steps["train"].result["version"]
    shown = json.loads(call("models", "show", version, "--store", url, "--json"))
    assert [one["version"] for one in shown] == [version, base]
    assert shown[0]["metrics"]["gate"]["outcome"] == "pass"
    assert f"champion is {version}" in call("models", "promote", version, "--store", url)
    assert f"champion is {base}" in call("models", "rollback", "--store", url)
    call("models", "export", version, "--out", str(tmp_path / "merged"), "--store", url)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(merged, "peft_config")
    folder = next(one["location"] for one in shown if one["version"] == version)
    ids = torch.tensor([[104, 101, 108, 108, 111]])
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, load_model(folder)(ids).logits, atol=1e-4)
    with pytest.raises(ConfigError, match="holds something"):
        call("models", "export", version, "--out", str(tmp_path / "merged"), "--store", url)
    store.close()


def test_forgetting_names_what_learned_and_what_to_do(url: str) -> None:
    store = Store(url)
    press(store, "somebody", "hello", True)
    assert "erased: 1 completions' texts, 1 votes" in call("forget", "somebody", "--store", url)
    call("forget", "nobody", "--store", url, ends_with=1)
    assert json.loads(call("forget", "nobody", "--store", url, "--json", ends_with=1))["n_votes"] == 0
    store.close()
