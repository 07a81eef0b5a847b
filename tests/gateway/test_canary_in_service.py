"""A canary in a running gateway: who meets it, what its votes do, and that nobody notices a change of champion."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.conftest import Serve
from gateway.house import Served, wait_until
from gateway.scripted import ScriptedEngine, build_gateway, serve, serve_gateway
from gateway.stub_upstream import Stub
from thumbtune.errors import ConfigError
from thumbtune.gateway import in_service
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.upstream import Upstream
from thumbtune.loop.canary import CanaryRules
from thumbtune.loop.look import stage_canary
from thumbtune.store.canaries import Canary, find_canary, find_running_canary
from thumbtune.store.database import Store
from thumbtune.store.models import ModelVersion, find_pointer, point, point_back, register_version

HALF = CanaryRules(stages=(0.5,))
CANDIDATE = "adapter-9"


class MoodyEngine(ScriptedEngine):
    """Its candidate can be told to fail, or to be unloadable."""

    def __init__(self) -> None:
        super().__init__(("base-1",))
        self.fails = False

    async def load_adapter(self, version: ModelVersion) -> None:
        if version.location == "gone":
            raise ConfigError("there is no such folder")
        await super().load_adapter(version)

    async def complete(self, body: Mapping[str, Any], version: str) -> dict[str, Any]:
        if self.fails and version == CANDIDATE:
            raise Problem(502, "the model broke off", code="upstream")
        return await super().complete(body, version)


@pytest.fixture
def house(serve_one: Serve) -> Served:
    """A gateway with a key that speaks for users, and one base in service."""
    return serve_one(MoodyEngine(), race_seconds=0.3)


def begin(house: Served, rules: CanaryRules = HALF, location: str = "some/folder") -> Any:
    """As a cycle in another process does."""
    other = Store(house.gateway.settings.store)
    register_version(other, ModelVersion(CANDIDATE, "adapter", location, parent="base-1"))
    canary = stage_canary(other, CANDIDATE, rules, actor="cycle")
    other.close()
    return canary


def ask_as(house: Served, key: str, user: str) -> dict[str, str]:
    return house.ask("hello", key, headers={"Thumbtune-User": user})


def press_as(house: Served, key: str, user: str, told: Mapping[str, str], label: bool) -> None:
    press = {"completion_id": told["completion_id"], "vote_token": told["vote_token"], "label": label}
    assert house.vote(key, {"Thumbtune-User": user}, **press).status_code == 200


def wait_for_end(house: Served, canary: Canary, seconds: float = 5.0) -> Any:
    def find() -> Canary | None:
        found = find_canary(house.gateway.store, canary.id)
        return None if found.state == "running" else found

    return wait_until(find, seconds)


def test_a_user_stays_with_a_version_and_about_half_meet_the_canary(house: Served) -> None:
    key = house.make_key("client", speaks_for_users=True)
    started = time.monotonic()
    canary = begin(house)
    wait_until(lambda: CANDIDATE in house.gateway.engine.versions and house.gateway.in_service.canary)
    assert time.monotonic() - started < 1.5
    met = {user: ask_as(house, key, user)["model_version"] for user in map(str, range(40))}
    assert met == {user: ask_as(house, key, user)["model_version"] for user in met}
    assert 8 <= Counter(met.values())[CANDIDATE] <= 32
    arms = Counter(row.arm for row in house.read_completions().values())
    assert arms["canary"] == 2 * Counter(met.values())[CANDIDATE]
    assert house.chat("hello", key, model=CANDIDATE).json()["model"] == CANDIDATE  # by name, as before
    assert find_canary(house.gateway.store, canary.id).state == "running"


@pytest.mark.parametrize(("canary_is_better", "state"), [(False, "rolled_back"), (True, "promoted")])
def test_votes_decide_while_the_service_runs(house: Served, canary_is_better: bool, state: str) -> None:
    key = house.make_key("client", speaks_for_users=True)
    canary = begin(house)
    wait_until(lambda: house.gateway.in_service.canary)
    for user in map(str, range(120)):
        told = ask_as(house, key, user)
        press_as(house, key, user, told, (told["model_version"] == CANDIDATE) == canary_is_better)
    ended = wait_for_end(house, canary)
    assert ended.state == state
    champion = CANDIDATE if canary_is_better else "base-1"
    wait_until(lambda: {ask_as(house, key, user)["model_version"] for user in "abcdefgh"} == {champion}, 2)


def test_answers_that_fail_before_their_first_word_speak_against_a_canary(house: Served) -> None:
    key = house.make_key("client", speaks_for_users=True)
    canary = begin(house)
    wait_until(lambda: house.gateway.in_service.canary)
    house.engine.fails = True
    statuses = Counter(
        house.chat("hello", key, headers={"Thumbtune-User": f"u{i}"}).status_code for i in range(60)
    )
    assert statuses[502] >= 10
    ended = wait_for_end(house, canary, seconds=15)  # without votes it is looked at less often
    assert ended.state == "rolled_back"
    assert "broke off" in ended.record["verdict"]["reasons"][0]


def test_a_candidate_that_cannot_be_loaded_is_rolled_back(house: Served) -> None:
    canary = begin(house, location="gone")
    ended = wait_for_end(house, canary)
    assert ended.state == "rolled_back"
    assert "could not be loaded" in ended.record["verdict"]["reasons"][0]
    assert house.chat("hello").json()["model"] == "base-1"


def test_two_who_follow_at_once_load_a_candidate_once(url: str, tmp_path: Path) -> None:
    """Seen in a simulation: the second found it half loaded, and rolled it back."""
    import asyncio

    class SlowEngine(MoodyEngine):
        loads = 0

        async def load_adapter(self, version: ModelVersion) -> None:
            self.loads += 1
            if self.loads > 1:
                raise ConfigError("it is being loaded already")
            await asyncio.sleep(0.2)
            await super().load_adapter(version)

    async def run() -> tuple[int, str]:
        engine = SlowEngine()
        gateway = build_gateway(url, tmp_path, engine)
        await gateway.start()
        register_version(gateway.store, ModelVersion(CANDIDATE, "adapter", "some/folder"))
        canary = stage_canary(gateway.store, CANDIDATE, HALF, actor="test")
        await asyncio.gather(*(gateway.in_service.follow() for _ in range(3)))
        state = find_canary(gateway.store, canary.id).state
        await gateway.close()
        return engine.loads, state

    assert asyncio.run(run()) == (1, "running")


def test_a_promotion_and_the_way_back_take_under_a_second_and_no_request_fails(
    url: str, tmp_path: Path
) -> None:
    gateway = build_gateway(url, tmp_path, MoodyEngine())
    with serve_gateway(gateway) as address:
        other = Store(url)
        register_version(other, ModelVersion(CANDIDATE, "adapter", "some/folder", parent="base-1"))
        answers: list[tuple[float, int, str]] = []
        stop = threading.Event()

        def ask_steadily() -> None:
            with httpx.Client(timeout=20) as client:
                due = time.monotonic()
                while not stop.is_set():
                    body = {"messages": [{"role": "user", "content": "hello"}]}
                    response = client.post(f"{address}/v1/chat/completions", json=body)
                    answers.append((time.monotonic(), response.status_code, response.json().get("model", "")))
                    due += 0.1
                    time.sleep(max(0.0, due - time.monotonic()))

        threads = [threading.Thread(target=ask_steadily) for _ in range(5)]  # 50 a second together
        for thread in threads:
            thread.start()
        time.sleep(1)
        turned: list[tuple[float, str]] = []
        back = (lambda: point_back(other, actor="test"), "base-1")
        for change, wanted in ((lambda: point(other, CANDIDATE, actor="test"), CANDIDATE), back):
            turned.append((time.monotonic(), wanted))
            change()
            assert time.monotonic() - turned[-1][0] < 1.0
            time.sleep(1.5)
        stop.set()
        for thread in threads:
            thread.join()
        other.close()
    assert {status for _, status, _ in answers} == {200}
    assert len(answers) >= 150
    for at, wanted in turned:
        later = [model for when, _, model in answers if at + 1.0 < when < at + 1.5]
        assert set(later) == {wanted}


def test_a_version_out_of_service_is_let_go_after_a_while(
    house: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = begin(house)
    wait_until(lambda: house.gateway.in_service.canary)
    monkeypatch.setattr(in_service, "IDLE_SECONDS", 1.0)
    from thumbtune.store.canaries import end_canary

    end_canary(house.gateway.store, canary, "withdrawn", None, actor="test")
    wait_until(lambda: house.gateway.in_service.canary is None)
    assert CANDIDATE in house.gateway.engine.versions  # somebody may be on the way
    wait_until(lambda: CANDIDATE not in house.gateway.engine.versions, 5)
    assert house.chat("hello").json()["model"] == "base-1"


def test_a_canary_behind_vllm_is_loaded_under_the_name_of_its_content(url: str, tmp_path: Path) -> None:
    stub = Stub()
    with serve(stub.app) as upstream:
        engine = Upstream(f"{upstream}/v1", api_key=None, timeout_seconds=20, model=stub.models[0])
        gateway = build_gateway(url, tmp_path, engine)
        with serve_gateway(gateway) as address:
            other = Store(url)
            name = "adapter-3-0123456789ab"
            register_version(other, ModelVersion(name, "adapter", "/shared/adapter-3", parent=stub.models[0]))
            stage_canary(other, name, HALF, actor="cycle")
            wait_until(lambda: stub.adapters == {name: "/shared/adapter-3"})
            wait_until(lambda: gateway.in_service.canary)
            point(other, name, actor="test")
            body = {"messages": [{"role": "user", "content": "hello"}]}
            wait_until(
                lambda: httpx.post(f"{address}/v1/chat/completions", json=body).json()["model"] == name, 2
            )
            pointer = find_pointer(other)
            assert pointer is not None
            assert pointer.previous == stub.models[0]
            assert find_running_canary(other) is None
            other.close()
