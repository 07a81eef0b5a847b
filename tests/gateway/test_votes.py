"""Votes over HTTP: each press counts once, and its history stays."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from gateway.conftest import Serve
from gateway.house import Keyed, Served, wait_until
from thumbtune.gateway.problems import Problem
from thumbtune.store.schema import votes


def test_a_press_its_change_and_its_retraction_are_kept_as_history(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    said = [
        open_house.vote(completion_id=name, label=True).json(),
        open_house.vote(completion_id=name, label=False, reason="wrong").json(),
        open_house.vote(completion_id=name, retract=True).json(),
        open_house.vote(completion_id=name, label=True, comment="güzel").json(),
    ]
    assert [(one["status"], one["label"]) for one in said] == [
        ("recorded", True),
        ("changed", False),
        ("retracted", None),
        ("recorded", True),
    ]
    history = open_house.http.get(f"/v1/votes/{name}/history").json()["data"]
    assert [row["label"] for row in history] == [True, False, None, True]
    assert [row["reason"] for row in history] == [None, "wrong", None, None]
    current = open_house.http.get("/v1/votes").json()["data"][0]
    assert (current["completion_id"], current["label"], current["comment"]) == (name, True, "güzel")


def test_a_retracted_vote_is_not_listed_and_a_second_retraction_changes_nothing(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    open_house.vote(completion_id=name, label=True)
    assert open_house.vote(completion_id=name, retract=True).json()["status"] == "retracted"
    assert open_house.vote(completion_id=name, retract=True).json()["status"] == "unchanged"
    listed = [row["completion_id"] for row in open_house.http.get("/v1/votes").json()["data"]]
    assert name not in listed
    assert len(open_house.read_presses(name)) == 2


@pytest.mark.parametrize(("score", "label"), [(1, True), (0.01, True), (-3.5, False)])
def test_a_score_is_a_label_by_its_sign_and_is_kept(open_house: Served, score: float, label: bool) -> None:
    name = open_house.ask()["completion_id"]
    assert open_house.vote(completion_id=name, score=score).json()["label"] is label
    (press,) = open_house.read_presses(name)
    assert (press.label, press.score) == (label, score)


@pytest.mark.parametrize(
    "press",
    [
        {},
        {"label": True, "score": 1},
        {"label": True, "retract": True},
        {"score": 0},
        {"kind": "copy", "label": True},
        {"kind": "edit"},
        {"kind": "shout", "label": True},
        {"label": "perhaps"},
        {"label": True, "user": "somebody"},
        {"label": True, "reason": ""},
    ],
)
def test_a_press_that_says_nothing_or_two_things_is_refused(
    open_house: Served, press: dict[str, Any]
) -> None:
    name = open_house.ask()["completion_id"]
    response = open_house.vote(completion_id=name, **press)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"
    assert open_house.read_presses(name) == []


def test_the_same_press_again_is_one_vote(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    statuses = [
        open_house.vote(completion_id=name, label=True, reason="fine").json()["status"] for _ in range(3)
    ]
    assert statuses == ["recorded", "unchanged", "unchanged"]
    assert len(open_house.read_presses(name)) == 1


def test_an_idempotency_key_makes_a_repetition_harmless_even_after_a_change(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    first = {"completion_id": name, "label": True, "idempotency_key": f"k-{name}"}
    assert open_house.vote(**first).json()["status"] == "recorded"
    assert open_house.vote(completion_id=name, label=False).json()["status"] == "changed"
    # a proxy sends the first request again, late: it must not undo the change
    assert open_house.vote(**first).json()["status"] == "repeated"
    assert [row.label for row in open_house.read_presses(name)] == [True, False]


def test_an_idempotency_key_with_another_body_is_a_conflict(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    key = f"c-{name}"
    assert open_house.vote(completion_id=name, label=True, idempotency_key=key).status_code == 200
    response = open_house.vote(completion_id=name, label=False, idempotency_key=key)
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "idempotency_conflict"
    other = open_house.ask()["completion_id"]
    assert open_house.vote(completion_id=other, label=True, idempotency_key=key).status_code == 409
    assert len(open_house.read_presses(name)) == 1


def test_the_header_is_the_same_key_and_two_different_ones_are_refused(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    header = {"Idempotency-Key": f"h-{name}"}
    assert open_house.vote(headers=header, completion_id=name, label=True).json()["status"] == "recorded"
    in_body = {"completion_id": name, "label": True, "idempotency_key": f"h-{name}"}
    assert open_house.vote(**in_body).json()["status"] == "repeated"
    assert open_house.vote(headers=header, **in_body).json()["status"] == "repeated"
    assert open_house.vote(headers={"Idempotency-Key": "another"}, **in_body).status_code == 400
    too_long = {"Idempotency-Key": "x" * 129}
    assert open_house.vote(headers=too_long, completion_id=name, label=True).status_code == 400


def test_two_users_may_use_the_same_idempotency_key(keyed: Keyed) -> None:
    for user in ("a", "b"):
        headers = {"Thumbtune-User": user}
        mine = keyed.ask("mine", keyed.speaker, headers=headers)
        press = {"completion_id": mine["completion_id"], "label": True, "idempotency_key": "1"}
        assert keyed.vote(keyed.speaker, headers=headers, **press).json()["status"] == "recorded"


def test_implicit_presses_are_kept_apart_with_labels_of_their_own(open_house: Served) -> None:
    name = open_house.ask()["completion_id"]
    assert open_house.vote(completion_id=name, label=True).json()["status"] == "recorded"
    implied = [
        open_house.vote(completion_id=name, kind="edit", correction="better").json(),
        open_house.vote(completion_id=name, kind="retry").json(),
        open_house.vote(completion_id=name, kind="copy").json(),
    ]
    assert [(one["kind"], one["label"], one["status"]) for one in implied] == [
        ("edit", False, "recorded"),
        ("retry", False, "recorded"),
        ("copy", True, "recorded"),
    ]
    rows = {row.kind: row for row in open_house.read_presses(name)}
    assert rows["explicit"].label is True, "the thumb stands beside what was implied"
    assert (rows["edit"].strength, rows["edit"].correction) == (1.0, "better")
    assert rows["retry"].strength == rows["copy"].strength == 0.5
    assert open_house.vote(completion_id=name, kind="edit", retract=True).json()["status"] == "retracted"
    explicit = open_house.http.get("/v1/votes", params={"kind": "explicit"}).json()["data"]
    assert name in [row["completion_id"] for row in explicit]


def test_a_vote_on_what_was_never_served_is_a_404(serve_one: Serve) -> None:
    house = serve_one()
    started = time.monotonic()
    response = house.vote(completion_id="chatcmpl-nothing", label=True)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "completion_not_found"
    assert time.monotonic() - started < 4, "it waits for a racing completion, but briefly"


def test_a_client_votes_on_its_own_answers_only_and_a_voter_on_any(keyed: Keyed) -> None:
    name = keyed.ask("mine", keyed.client)["completion_id"]
    other = keyed.make_key("client")
    assert keyed.vote(other, completion_id=name, label=False).status_code == 404
    assert keyed.vote(keyed.voter, completion_id=name, label=False).json()["status"] == "recorded"
    assert keyed.vote(keyed.client, completion_id=name, label=True).json()["status"] == "recorded"
    assert sorted(row.label for row in keyed.read_presses(name)) == [False, True]
    assert len({row.user_key for row in keyed.read_presses(name)}) == 2


def test_a_client_sees_its_own_votes_and_a_voter_sees_all(keyed: Keyed) -> None:
    name = keyed.ask("seen", keyed.client)["completion_id"]
    keyed.vote(keyed.client, completion_id=name, label=True)

    def list_for(key: str) -> list[str]:
        response = keyed.http.get("/v1/votes", headers={"Authorization": f"Bearer {key}"})
        return [row["completion_id"] for row in response.json()["data"]]

    assert name in list_for(keyed.client)
    assert name in list_for(keyed.voter)
    assert name not in list_for(keyed.make_key("client"))


def test_pages_of_votes_join_without_gap_or_repetition(open_house: Served) -> None:
    names = [open_house.ask()["completion_id"] for _ in range(5)]
    for name in names:
        open_house.vote(completion_id=name, label=True)
    found: list[str] = []
    before: dict[str, int] = {}
    for _ in range(3):
        page = open_house.http.get("/v1/votes", params={"limit": 2, **before}).json()
        found += [row["completion_id"] for row in page["data"]]
        before = {"before_id": page["data"][-1]["id"]}
    assert found[:5] == names[::-1]


def test_a_hundred_presses_at_once_are_a_hundred_rows(open_house: Served) -> None:
    names = [open_house.ask()["completion_id"] for _ in range(20)]
    statuses: list[str] = []

    def press(user: int) -> None:
        for name in names:
            response = httpx.post(
                f"{open_house.v1}/feedback",
                json={"completion_id": name, "kind": "edit", "correction": f"text {user}"},
            )
            statuses.append(response.json()["status"])

    threads = [threading.Thread(target=press, args=(user,)) for user in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 100
    assert sum(len(open_house.read_presses(name)) for name in names) == 100
    assert statuses.count("recorded") == 20, "the first on each; the others change it"


# Import

BATCH = {
    "source": "old-product",
    "completions": [
        {
            "source_id": f"c{number}",
            "user": f"user {number % 2}",
            "messages": [{"role": "user", "content": f"question {number}"}],
            "completion": f"answer {number}",
            "created": 1_700_000_000 + number,
        }
        for number in range(4)
    ],
    "votes": [
        {
            "source_id": f"v{number}",
            "completion_source_id": f"c{number}",
            "user": f"user {number % 2}",
            "label": number % 2 == 0,
            "created": 1_700_000_100.5 + number,
        }
        for number in range(5)
    ],
}
"""Four completions and five votes; the last vote is on a completion that nobody has."""


def test_an_import_counts_each_row_and_the_same_batch_again_changes_nothing(serve_one: Serve) -> None:
    house = serve_one()
    first = house.http.post("/v1/import", json=BATCH)
    assert first.status_code == 200, first.text
    assert first.json() == {
        "n_completions_new": 4,
        "n_completions_known": 0,
        "votes": {"recorded": 4, "unknown_completion": 1},
    }
    again = house.http.post("/v1/import", json=BATCH).json()
    assert (again["n_completions_new"], again["n_completions_known"]) == (0, 4)
    assert again["votes"] == {"repeated": 4, "unknown_completion": 1}
    with house.gateway.store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(votes)) == 4
    rows = house.read_completions().values()
    assert {row.arm for row in rows} == {"imported"}
    assert len({row.user_key for row in rows}) == 2
    assert not any("user" in row.user_key for row in rows), "names are kept as an HMAC only"
    assert {row.created_us for row in rows} == {(1_700_000_000 + number) * 1_000_000 for number in range(4)}
    audit = house.http.get("/v1/audit").json()["data"]
    assert [line["details"] for line in audit if line["act"] == "import"] == [
        {"source": "old-product", "n_completions": 4, "votes": {"recorded": 4, "unknown_completion": 1}}
    ]


@pytest.mark.parametrize(
    "change",
    [{"source": "gateway"}, {"source": "Not A Name"}, {"source": ""}, {"completions": [{"source_id": "x"}]}],
)
def test_an_import_that_makes_no_sense_is_refused_whole(open_house: Served, change: dict[str, Any]) -> None:
    before = len(open_house.read_completions())
    assert open_house.http.post("/v1/import", json={**BATCH, **change}).status_code == 400
    assert len(open_house.read_completions()) == before


# The champion


def test_promotion_and_the_way_back_change_what_the_next_chat_gets(serve_one: Serve) -> None:
    house = serve_one()
    assert house.ask()["model_version"] == "base-1"
    assert house.http.post("/v1/champion", json={"version": "adapter-2"}).json()["previous"] == "base-1"
    assert house.ask()["model_version"] == "adapter-2"
    assert house.http.post("/v1/champion/back").json()["version"] == "base-1"
    assert house.ask()["model_version"] == "base-1"
    missing = house.http.post("/v1/champion", json={"version": "not-here"})
    assert missing.status_code == 409
    assert missing.json()["error"]["code"] == "version_not_loaded"


def test_a_champion_that_another_process_chose_is_followed(serve_one: Serve) -> None:
    from thumbtune.store.models import point

    house = serve_one()
    point(house.gateway.store, "adapter-2", actor="test")
    wait_until(lambda: house.ask()["model_version"] == "adapter-2", seconds=3)


def test_a_closing_gateway_refuses_chats(serve_one: Serve) -> None:
    house = serve_one()
    house.gateway.is_ready = False
    response = house.chat("x")
    assert response.status_code == 503
    assert house.http.get("/readyz").status_code == 503
    house.gateway.is_ready = True
    assert house.http.get("/readyz").status_code == 200


def test_a_refusal_of_the_engine_keeps_its_own_status(serve_one: Serve) -> None:
    house = serve_one()

    def refuse(_: Any) -> list[str]:
        raise Problem(400, "the prompt is too long", code="context_length_exceeded", param="messages")

    house.engine._answer = refuse
    for stream in (False, True):
        response = house.chat("x", stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
    time.sleep(0.1)
    assert house.read_completions() == {}
