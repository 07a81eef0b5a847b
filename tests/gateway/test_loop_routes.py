"""Canary and cycles over HTTP: what an admin's program reads, and the hand that ends a canary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.conftest import Serve
from gateway.house import Served, wait_until
from gateway.trial import CALM, crowd, try_version, turn
from thumbtune.gateway.canary_state import MOST_POINTS, read_canary, record_by_hand, thin
from thumbtune.loop.canary import CanaryRules, Curves, read_rules, replay
from thumbtune.loop.look import gather
from thumbtune.store.canaries import end_canary, find_canary, find_running_canary
from thumbtune.store.models import find_pointer, point


@pytest.fixture
def house(serve_one: Serve) -> Served:
    return serve_one()


def get(house: Served, path: str) -> Any:
    answer = house.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def end(house: Served, **body: Any) -> Any:
    return house.http.post("/v1/canary/end", json=body)


def test_where_none_runs_the_canary_is_null_and_there_is_nothing_to_end(house: Served) -> None:
    assert get(house, "/v1/canary") == {"canary": None}
    assert get(house, "/v1/canaries") == {"object": "list", "data": []}
    assert get(house, "/v1/cycles") == {"object": "list", "data": []}
    refused = end(house, state="promoted")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_canary")


def test_a_running_canary_is_told_with_its_numbers(house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store)
    crowd(store, canary, "++-++.", "+-" * 9 + "..")
    found = get(house, "/v1/canary")
    assert found["canary"]["id"] == canary.id
    assert (found["canary"]["candidate"], found["canary"]["champion"]) == ("adapter-2", "base-1")
    assert (found["canary"]["state"], found["canary"]["share"]) == ("running", 0.25)
    assert found["verdict"]["action"] == "wait"
    assert "👍 on 80% (n = 5)" in found["verdict"]["reasons"][0]
    assert found["verdict"]["numbers"]["canary"] == [4, 5]
    assert found["answers"] == {"canary": [6, 0], "champion": [20, 0]}
    assert found["users"] == {"canary": 6, "all": 26, "share": 6 / 26, "expected_share": 0.25}
    # three of the champion's for one of the canary's: five blocks
    assert found["curves"]["n_canary"] == [1, 2, 3, 4, 5]
    assert len(found["curves"]["log_better"]) == len(found["curves"]["log_harm"]) == 5
    assert [one["difference"] for one in found["forecast"]] == [-0.2, -0.1, -0.05, 0.05, 0.1]
    assert all(one["days"] > 0 for one in found["forecast"])
    assert house.gateway.describe_state()["champion"] == "base-1"


def test_a_canary_is_put_in_service_by_hand(house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store)
    crowd(store, canary, "+-+", "+-+" * 3)
    done = end(house, state="promoted")
    assert done.status_code == 200, done.text
    assert (done.json()["state"], done.json()["record"]["by"]) == ("promoted", "loopback")
    assert "seen_then" not in done.json()["record"]
    assert house.ask()["model_version"] == "adapter-2", "this gateway follows at once"
    pointer = find_pointer(store)
    assert pointer is not None
    assert (pointer.version, pointer.previous) == ("adapter-2", "base-1")
    lines = [(line["act"], line["actor"]) for line in get(house, "/v1/audit")["data"]]
    assert lines[:2] == [("canary promoted", "loopback"), ("point", "loopback")]
    (listed,) = get(house, "/v1/canaries")["data"]
    assert listed["record"]["verdict"]["reasons"][0].startswith("ended by hand while the votes said wait: ")
    assert get(house, "/v1/canary") == {"canary": None}
    assert end(house, state="promoted").status_code == 409


@pytest.mark.parametrize("state", ["rolled_back", "withdrawn"])
def test_a_canary_that_is_taken_back_leaves_the_champion(house: Served, state: str) -> None:
    canary = try_version(house.gateway.store)
    assert end(house, state=state, canary=canary.id).json()["state"] == state
    assert house.ask()["model_version"] == "base-1"
    assert get(house, "/v1/audit")["data"][0]["act"] == f"canary {state}"


@pytest.mark.parametrize("body", [{}, {"state": "inconclusive"}, {"state": "running"}, {"state": 1, "x": 2}])
def test_only_the_three_ends_are_known(house: Served, body: dict[str, Any]) -> None:
    assert house.http.post("/v1/canary/end", json=body).status_code == 400


def test_the_one_that_was_meant_is_ended_and_no_other(house: Served) -> None:
    canary = try_version(house.gateway.store)
    assert end(house, state="promoted", canary="canary-of-yesterday").status_code == 409
    running = find_running_canary(house.gateway.store)
    assert running is not None
    assert running.id == canary.id


def test_a_candidate_that_is_not_loaded_here_is_not_put_in_service(house: Served) -> None:
    house.engine._versions.append("adapter-3")
    from thumbtune.store.models import ModelVersion, register_version

    register_version(house.gateway.store, ModelVersion("adapter-3", "base", "scripted"))
    try_version(house.gateway.store, "adapter-3")
    house.engine._versions.remove("adapter-3")
    refused = end(house, state="promoted")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_not_loaded")
    assert end(house, state="withdrawn").status_code == 200


def test_what_ended_is_told_from_its_record_and_not_from_later_votes(house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store)
    crowd(store, canary, "+-", "+-+" * 3)
    end_canary(store, canary, "rolled_back", record_by_hand(store, canary, "rolled_back", "ada"), actor="ada")
    crowd(store, canary, "", "-" * 30)
    now = read_canary(store, find_canary(store, canary.id))
    assert now is not None
    assert now.seen.votes.lower().count("h") == 9
    record = find_canary(store, canary.id).record
    assert record is not None
    assert record["by"] == "ada"
    assert "seen" not in record, "votes did not decide it, so nothing can be replayed"


def test_what_was_ended_without_a_word_has_no_numbers(house: Served) -> None:
    canary = try_version(house.gateway.store)
    point(house.gateway.store, "adapter-2", actor="another process")
    ended = find_canary(house.gateway.store, canary.id)
    assert ended.state == "withdrawn"
    assert read_canary(house.gateway.store, ended) is None


def test_votes_that_speak_end_it_and_its_record_can_be_judged_again(house: Served) -> None:
    store = house.gateway.store
    canary = try_version(store, rules=replace(CALM, stages=(0.5,)))
    crowd(store, canary, "-" * 40, "+" * 40)
    ended = wait_until(lambda: (one := find_canary(store, canary.id)).state != "running" and one)
    assert ended.state == "rolled_back"
    assert replay(ended.record).action == "roll back"
    (listed,) = get(house, "/v1/canaries")["data"]
    assert listed["record"]["verdict"]["action"] == "roll back"
    assert "seen" not in listed["record"]
    now = read_canary(store, ended)
    assert now is not None
    assert now.verdict.action == "roll back"
    assert gather(store, ended, read_rules(ended.rules)).votes == now.seen.votes


def test_a_thinned_curve_keeps_its_ends_and_its_peaks() -> None:
    n = 4_321
    better, harm = np.zeros(n), np.zeros(n)
    better[1_234], harm[2_345] = 9.0, 8.0
    found = thin(Curves(better, harm, np.arange(1, n + 1)))
    assert len(found.n_canary) <= MOST_POINTS
    assert (found.n_canary[0], found.n_canary[-1]) == (1, n)
    assert (found.better.max(), found.harm.max()) == (9.0, 8.0)
    short = Curves(better[:500], harm[:500], np.arange(1, 501))
    assert thin(short) is short


def test_many_votes_are_few_points(house: Served) -> None:
    store = house.gateway.store
    rules = CanaryRules(stages=(0.5,), alpha=1e-9)
    canary = try_version(store, rules=rules)
    crowd(store, canary, "+-" * 350, "+-" * 350)
    curves = get(house, "/v1/canary")["curves"]
    assert len(curves["n_canary"]) <= MOST_POINTS
    assert curves["n_canary"][-1] == 700


def test_turns_are_listed_newest_first_with_their_steps(house: Served) -> None:
    store = house.gateway.store
    turn(store, "votes", outcome="not enough new votes: 3 of 100")
    turn(store, "votes", "snapshot", "train", "measure", "gate")
    running, first = get(house, "/v1/cycles")["data"]
    assert (running["state"], first["state"]) == ("running", "done")
    assert first["outcome"] == "not enough new votes: 3 of 100"
    assert list(running["steps"]) == ["votes", "snapshot", "train", "measure", "gate"]
    assert running["steps"]["gate"]["result"]["checks"][0]["name"] == "held-out votes"
    assert len(get(house, "/v1/cycles?limit=1")["data"]) == 1
