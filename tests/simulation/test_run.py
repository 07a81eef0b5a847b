"""The simulation itself, in little: who its people are, and that all of it runs and says so."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thumbtune.cli.app import app
from thumbtune.data.synth.users import Sample, parse_taste
from thumbtune.errors import ConfigError
from thumbtune.simulation.crowd import Crowd
from thumbtune.simulation.run import Simulation, SimulationSettings

CROWD = Crowd(parse_taste("brevity:24"), parse_taste("politeness"), n_people=4_000)
GOOD = Sample("Why?", "Because it is so.", 5, finished=True)


def test_a_crowd_has_the_shares_that_it_was_given() -> None:
    first, later = (Counter(CROWD.kind(person, cycle) for person in range(4_000)) for cycle in (0, 4))
    assert first["attacker"] / 4_000 == pytest.approx(0.05, abs=0.015)
    assert later["attacker"] == first["attacker"]
    assert first["of another mind"] / 4_000 == pytest.approx(0.02, abs=0.01)
    assert later["of another mind"] / 4_000 == pytest.approx(0.10, abs=0.02)  # it drifts


def test_people_press_by_their_kind() -> None:
    presses: dict[str, Counter[bool | None]] = {}
    for person in range(4_000):
        label = CROWD.press(person, 0, GOOD, key="k")
        presses.setdefault(CROWD.kind(person, 0), Counter())[label] += 1
    assert set(presses["attacker"]) == {False}
    ordinary = presses["ordinary"]
    assert ordinary[None] / ordinary.total() == pytest.approx(0.5, abs=0.03)
    assert ordinary[False] / (ordinary[True] + ordinary[False]) == pytest.approx(0.1, abs=0.03)
    assert CROWD.press(7, 0, GOOD, key="k") == CROWD.press(7, 0, GOOD, key="k")


def test_shares_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError):
        Crowd(CROWD.taste, CROWD.other_taste, attackers=0.9, other_at_first=0.2)


def make_settings(model: Path, out: Path) -> SimulationSettings:
    return SimulationSettings(
        model=str(model),
        out=out,
        cycles=2,
        taste="no_flattery",
        system=None,
        n_prompts=60,  # few votes on one answer: whose voters are all held out, nobody trains on
        n_held_out=4,
        samples_per_prompt=2,
        max_new_tokens=8,
        chats=320,
        most_canary_chats=96,
        training={"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 256},
        lora_r=2,
        crowd={"n_people": 300, "noise": 0.3},
    )


@pytest.fixture
def simulated(tiny_model_path: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    Simulation(make_settings(tiny_model_path, out), lambda name: nullcontext(lambda *_: None)).run()
    return out


def test_a_small_one_runs_unattended_and_tells_of_every_cycle(simulated: Path) -> None:
    result = json.loads((simulated / "simulation.json").read_text())
    assert [turn["cycle"] for turn in result["cycles"]] == [1, 2]
    for turn in (result["base"], *result["cycles"]):
        assert set(turn["up_rate"]) == {"mean", "low", "high", "n"}
        assert turn["up_rate"]["n"] == 8
    assert result["nan_run_survived"] is True
    for planted in ("planted_worse_rolled_back", "planted_flatterer_refused"):
        assert isinstance(result[planted], bool)


def test_where_no_cycle_trained_nothing_is_planted_and_it_says_so(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    settings = replace(make_settings(tiny_model_path, tmp_path / "run"), chats=32, cycles=2)
    result = Simulation(settings, lambda name: nullcontext(lambda *_: None)).run()
    assert result["planted_worse_rolled_back"] is None
    assert result["planted_flatterer_refused"] is None
    assert result["planted_worse"]["state"] == result["planted_flatterer"]["state"] == "not planted"


def test_a_folder_that_holds_something_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    asked = ["simulate", "--model", str(tiny_model_path), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, asked)
    assert isinstance(result.exception, ConfigError)
    assert "holds something" in str(result.exception)
