"""A turn of the loop, whole: votes in a store, a small model, a canary at the end. And killed at every step."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loop.conftest import OnStep, fill, make_settings, press, serve_base
from thumbtune.errors import StoreError
from thumbtune.loop import cycle as cycles
from thumbtune.loop.cycle import STEPS, count_new_votes, plan_cycle, run_cycle
from thumbtune.loop.gate import GateRules, replay
from thumbtune.store.canaries import find_running_canary, list_canaries
from thumbtune.store.cycles import hold_lock, list_cycles
from thumbtune.store.database import Store
from thumbtune.store.erasure import erase_user
from thumbtune.store.models import find_pointer, list_versions, point, trace_lineage
from thumbtune.store.schema import snapshots

_PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _import_once() -> None:
    """The children of this module fork from a process that has torch already."""
    _PROCESSES.set_forkserver_preload(["thumbtune.loop.cycle", "thumbtune.loop.training", "ibis", "peft"])


@pytest.fixture
def store_url(url: str) -> str:
    """What `--store` asks for: a turn takes seconds, so not both each time."""
    return url


def test_a_turn_goes_from_votes_to_a_canary(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    fill(store)
    base = serve_base(store, tiny_model_path)
    done = run_cycle(store, make_settings(tiny_model_path, tmp_path), on_step=say_nothing)
    assert done is not None
    assert (done.state, list(done.steps)) == ("done", list(STEPS)), done.outcome
    canary = find_running_canary(store)
    assert canary is not None
    assert (canary.champion, canary.share) == (base, 0.25)
    version = next(one for one in list_versions(store) if one.version == canary.candidate)
    assert version.parent == base
    assert version.snapshot == done.steps["snapshot"].result["digest"]
    assert [one.version for one in trace_lineage(store, version.version)] == [version.version, base]
    record = json.loads(Path(done.steps["gate"].result["record"]).read_text())
    assert replay(record).outcome == "pass" == version.metrics["gate"]["outcome"]


def test_a_second_turn_waits_for_the_canary_and_then_learns_from_its_champion(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    fill(store)
    serve_base(store, tiny_model_path)
    settings = make_settings(tiny_model_path, tmp_path)
    assert run_cycle(store, settings, on_step=say_nothing) is not None
    assert run_cycle(store, settings, on_step=say_nothing) is None
    first = list_canaries(store)[0].candidate
    point(store, first, actor="test")
    assert find_running_canary(store) is None  # a champion by hand ends what was held against the old one
    done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert "not enough new votes: 0 of 50" in str(done.outcome)
    fill(store, first=1000)
    still = replace(settings, training={**settings.training, "learning_rate": 0.0})
    done = run_cycle(store, still, on_step=say_nothing)
    assert done is not None
    assert done.state == "done", done.outcome
    assert done.steps["train"].result["old_rows"] > 0  # replay
    second = done.steps["train"].result["version"]
    newer, older = trace_lineage(store, second)[:2]
    assert older.version == first
    weights, before = (load_file(Path(one.location) / "adapter_model.safetensors") for one in (newer, older))
    assert all(torch.equal(weights[name], before[name]) for name in before)  # it went on from there


def test_what_broke_off_is_taken_up_without_doing_anything_twice(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    serve_base(store, tiny_model_path)
    settings = make_settings(tiny_model_path, tmp_path)
    trained, train = [], cycles.train_candidate

    def count(*args: Any, **more: Any) -> Any:
        trained.append(1)
        return train(*args, **more)

    def break_off(store: Any, cycle: Any, name: str, *rest: Any) -> None:
        if name == "canary":
            raise RuntimeError("the cable was pulled")
        record(store, cycle, name, *rest)

    record = cycles.record_step
    monkeypatch.setattr(cycles, "train_candidate", count)
    with monkeypatch.context() as patched:
        patched.setattr(cycles, "record_step", break_off)
        with pytest.raises(RuntimeError, match="cable"):
            run_cycle(store, settings, on_step=say_nothing)
    done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert (done.state, len(trained), len(list_canaries(store))) == ("done", 1, 1)


def test_a_refused_candidate_meets_nobody(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    fill(store)
    base = serve_base(store, tiny_model_path)
    asked = tmp_path / "must.jsonl"
    asked.write_text(
        json.dumps({"name": "capital", "prompt": "Capital of France?", "pattern": "paris"}) + "\n"
    )
    done = run_cycle(store, make_settings(tiny_model_path, tmp_path, must_pass=asked), on_step=say_nothing)
    assert done is not None
    assert "refused" in str(done.outcome)
    assert "capital" in str(done.outcome)
    assert find_running_canary(store) is None
    pointer = find_pointer(store)
    assert pointer is not None
    assert pointer.version == base


def test_a_gate_without_enough_held_out_votes_lets_nobody_pass(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    fill(store)
    serve_base(store, tiny_model_path)
    settings = make_settings(tiny_model_path, tmp_path, gate=GateRules(fewest_votes=1_000))
    done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert "not enough data" in str(done.outcome)
    assert find_running_canary(store) is None


@pytest.mark.parametrize(
    ("training", "budget", "said"),
    [
        ({"learning_rate": 1e30, "warmup_steps": 0}, {}, "TrainingError"),
        ({}, {"max_minutes": 1e-6}, "minutes"),
        ({}, {"max_memory_gib": 1e-3}, "GiB"),
    ],
)
def test_a_run_that_diverges_or_takes_too_much_ends_the_turn_and_not_the_service(
    store: Store,
    tmp_path: Path,
    tiny_model_path: Path,
    say_nothing: OnStep,
    training: dict[str, Any],
    budget: dict[str, float],
    said: str,
) -> None:
    fill(store)
    base = serve_base(store, tiny_model_path)
    settings = make_settings(tiny_model_path, tmp_path)
    settings = replace(settings, training={**settings.training, **training}, **budget)
    done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert (done.state, said in str(done.outcome)) == ("failed", True), done.outcome
    pointer = find_pointer(store)
    assert pointer is not None
    assert (pointer.version, find_running_canary(store)) == (base, None)
    again = run_cycle(store, make_settings(tiny_model_path, tmp_path), on_step=say_nothing)
    assert again is not None
    assert again.state == "done", again.outcome  # the next turn begins anew


def test_another_base_than_the_served_one_is_refused_before_training(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    fill(store)
    base = serve_base(store, tiny_model_path)
    other = tmp_path / "other"
    shutil.copytree(tiny_model_path, other)
    with_other_weights(other)
    done = run_cycle(store, make_settings(other, tmp_path), on_step=say_nothing)
    assert done is not None
    assert done.state == "failed"
    assert f"stands on {base}" in str(done.outcome)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model_path, moved)  # the same weights, elsewhere
    again = run_cycle(store, make_settings(moved, tmp_path), on_step=say_nothing)
    assert again is not None
    assert again.state == "done", again.outcome


def with_other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value * 1.01 for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def test_a_turn_that_fails_behind_its_training_uses_up_no_votes(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    serve_base(store, tiny_model_path)
    settings = make_settings(tiny_model_path, tmp_path)
    before = count_new_votes(store, settings)
    with monkeypatch.context() as broken:
        broken.setattr("thumbtune.loop.measure.measure", _break_down)
        done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert (done.state, "train" in done.steps, "measure" in done.steps) == ("failed", True, False)
    assert count_new_votes(store, settings) == before
    again = run_cycle(store, settings, on_step=say_nothing)
    assert again is not None
    assert (again.state, list(again.steps)) == ("done", list(STEPS)), again.outcome


def _break_down(*_: Any, **__: Any) -> None:
    raise OSError("the disk is gone")


def test_a_plan_tells_and_does_nothing(store: Store, tmp_path: Path, tiny_model_path: Path) -> None:
    settings = make_settings(tiny_model_path, tmp_path)
    assert "no champion" in plan_cycle(store, settings)["would"]
    serve_base(store, tiny_model_path)
    fill(store, 20)
    assert plan_cycle(store, settings)["would"] == "wait for 30 more votes"
    fill(store, first=100)
    assert plan_cycle(store, settings)["would"].startswith("run votes, snapshot, train")
    assert not list_cycles(store)
    assert not settings.folder.exists()


def test_two_turns_at_once_are_refused(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    with hold_lock(store), pytest.raises(StoreError, match="another process"):
        run_cycle(store, make_settings(tiny_model_path, tmp_path), on_step=say_nothing)
    with hold_lock(store):  # it was given back
        pass


def test_the_end_of_a_turn_is_told(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep
) -> None:
    serve_base(store, tiny_model_path)
    bell = [
        sys.executable,
        "-c",
        f"import sys; open({str(tmp_path / 'rung')!r}, 'w').write(sys.stdin.read())",
    ]
    settings = make_settings(tiny_model_path, tmp_path, notify=bell)
    waits = run_cycle(store, settings, on_step=say_nothing)
    assert waits is not None
    assert "not enough new votes" in str(waits.outcome)
    assert not (tmp_path / "rung").exists(), "that nothing is to be done yet is no news"
    assert not Path(waits.folder).exists()
    fill(store)
    done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert json.loads((tmp_path / "rung").read_text()) == {
        "cycle": done.id,
        "state": "done",
        "outcome": done.outcome,
    }


def test_nobody_who_was_forgotten_is_in_a_later_batch(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    for i in range(12):
        press(store, "somebody", f"xylophone {i}", i % 2 == 0, prompt=f"Zither {i}?")
    serve_base(store, tiny_model_path)
    settings = make_settings(tiny_model_path, tmp_path)
    seen = _watch_tokens(monkeypatch)
    run_cycle(store, settings, on_step=say_nothing)
    assert any("xylophone" in text or "Zither" in text for text in seen)  # the test can see
    erased = erase_user(store, "somebody", actor="test")
    assert erased.versions == [list_canaries(store)[0].candidate]
    point(store, erased.versions[0], actor="test")
    fill(store, first=1000)
    seen.clear()
    done = run_cycle(store, settings, on_step=say_nothing)
    assert done is not None
    assert done.state == "done", done.outcome
    assert seen
    assert not any("xylophone" in text or "Zither" in text for text in seen)


def test_a_candidate_whose_teacher_was_forgotten_meanwhile_meets_nobody(
    store: Store, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    serve_base(store, tiny_model_path)
    record = cycles.record_step

    def forget_during(opened: Any, cycle: Any, name: str, *rest: Any) -> None:
        if name == "gate":
            for person in range(20):
                erase_user(store, f"person {person}", actor="test")
        record(opened, cycle, name, *rest)

    monkeypatch.setattr(cycles, "record_step", forget_during)
    done = run_cycle(store, make_settings(tiny_model_path, tmp_path), on_step=say_nothing)
    assert done is not None
    assert "was erased meanwhile" in str(done.outcome)
    assert find_running_canary(store) is None


def _watch_tokens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that reaches a model's embedding from now on: reference pass, batches, and what the gate asks."""
    from torch import nn

    from conftest import build_tiny_tokenizer

    tokenizer, seen = build_tiny_tokenizer(), list[str]()
    forward = nn.Embedding.forward

    def watch(self: Any, ids: Any) -> Any:
        seen.extend(tokenizer.batch_decode(ids.reshape(-1, ids.shape[-1])))
        return forward(self, ids)

    monkeypatch.setattr(nn.Embedding, "forward", watch)
    return seen


def run_until_killed(url: str, model: Path, folder: Path, kill_at: str = "never") -> None:
    """In a child: one turn, with kill -9 before or after a step's result is written."""
    store = Store(url)
    original = cycles.record_step

    def record_and_die(store: Any, cycle: Any, name: str, *rest: Any) -> None:
        if kill_at == f"before {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        original(store, cycle, name, *rest)
        if kill_at == f"after {name}":
            os.kill(os.getpid(), signal.SIGKILL)

    cycles.record_step = record_and_die
    run_cycle(store, make_settings(model, folder), on_step=lambda name: nullcontext(lambda *_: None))


@pytest.mark.parametrize("kill_at", [f"{when} {name}" for name in STEPS for when in ("before", "after")])
def test_a_turn_that_is_killed_is_completed_by_the_next_call(
    store: Store, url: str, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep, kill_at: str
) -> None:
    fill(store)
    base = serve_base(store, tiny_model_path)
    child = _PROCESSES.Process(target=run_until_killed, args=(url, tiny_model_path, tmp_path, kill_at))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    pointer = find_pointer(store)
    assert pointer is not None
    assert pointer.version == base  # in service all the while
    done = run_cycle(store, make_settings(tiny_model_path, tmp_path), on_step=say_nothing)
    if done is None:  # it was killed behind its last step: its canary runs, and nothing is left to do
        assert kill_at == "after canary"
    check_done_once(store)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_turn_that_is_killed_at_any_moment_is_completed_by_the_next_call(
    store: Store, url: str, tmp_path: Path, tiny_model_path: Path, say_nothing: OnStep, seed: int
) -> None:
    fill(store)
    base = serve_base(store, tiny_model_path)
    moment = random.Random(seed).uniform(0.1, 4.0)  # a turn takes about four seconds
    child = _PROCESSES.Process(target=run_until_killed, args=(url, tiny_model_path, tmp_path))
    child.start()
    child.join(moment)
    child.kill()
    child.join()
    pointer = find_pointer(store)
    assert pointer is not None
    assert pointer.version == base
    run_cycle(store, make_settings(tiny_model_path, tmp_path), on_step=say_nothing)
    check_done_once(store)


def check_done_once(store: Store) -> None:
    """One turn, each of its steps once, one candidate, one canary."""
    with store.read() as connection:
        assert len(connection.execute(snapshots.select()).all()) == 1
    (turn,) = list_cycles(store)
    assert list(turn.steps) == list(STEPS), turn.outcome
    assert len([one for one in list_versions(store) if one.kind == "adapter"]) == 1
    assert [one.state for one in list_canaries(store)] == ["running"]
    assert turn.state == "done"
