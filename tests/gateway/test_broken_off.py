"""What breaks off: clients that leave, models that fail, a store that cannot be written. Nothing said is lost."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from gateway.conftest import Serve
from gateway.house import Served, wait_until
from gateway.scripted import build_gateway
from thumbtune.errors import StoreError
from thumbtune.gateway.schemas import ChatRequest
from thumbtune.gateway.service import Gateway
from thumbtune.store.database import Store
from thumbtune.store.schema import completions

LONG = "wait " + "word " * 400
"""A scripted answer of some twenty seconds."""


def test_a_vote_that_races_its_completion_waits_for_it(serve_one: Serve) -> None:
    open_house = serve_one(race_seconds=5.0)
    body = {"messages": [{"role": "user", "content": "wait " + "w " * 8}], "stream": True}
    with open_house.http.stream("POST", "/v1/chat/completions", json=body) as response:
        name = response.headers["Thumbtune-Completion-Id"]
        assert name not in open_house.read_completions(), "the answer has not ended yet"
        vote = httpx.post(
            f"{open_house.v1}/feedback",
            json={
                "completion_id": name,
                "vote_token": response.headers["Thumbtune-Vote-Token"],
                "label": True,
            },
        )
        assert vote.status_code == 200, vote.text
        assert vote.json()["status"] == "recorded"
        assert b"[DONE]" in b"".join(response.iter_bytes())
    assert [row.label for row in open_house.read_presses(name)] == [True]


def test_a_client_that_hangs_up_stops_the_model_and_what_was_said_is_kept(open_house: Served) -> None:
    before = open_house.engine.n_closed_early
    body = {"messages": [{"role": "user", "content": LONG}], "stream": True}
    with open_house.http.stream("POST", "/v1/chat/completions", json=body) as response:
        name = response.headers["Thumbtune-Completion-Id"]
        lines = response.iter_lines()
        while "word" not in next(lines):
            pass
    row = wait_until(lambda: open_house.read_completions().get(name))
    assert row.finish_reason == "cancelled"
    said = row.completion["content"]
    assert said.startswith("You said: wait word")
    assert len(said) < len(LONG)
    assert open_house.engine.n_closed_early == before + 1


def test_a_client_that_hangs_up_before_the_answer_is_kept_as_cancelled(open_house: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        open_house.http.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "wait unanswered"}]},
            timeout=httpx.Timeout(5, read=0.3),
        )
    wait_until(
        lambda: [
            row
            for row in open_house.read_completions().values()
            if row.messages[0]["content"] == "wait unanswered" and row.finish_reason == "cancelled"
        ],
        seconds=3,  # the scripted model would answer after five
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_at_whatever_moment_a_client_leaves_its_completion_is_kept(
    url: str, tmp_path: Path, streamed: bool
) -> None:
    async def answer(gateway: Gateway, serving: Any) -> None:
        if not streamed:
            await gateway.complete_chat(serving)
            return
        async with aclosing(gateway.stream_answer(serving)) as chunks:
            async for _ in chunks:
                await asyncio.sleep(0)

    async def leave_everywhere(gateway: Gateway) -> list[str]:
        await gateway.start()
        names = []
        for n_steps in range(1, 30):
            request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "a b c"}]})
            serving = gateway.begin_chat(request, gateway.doorkeeper.local_identity)
            task = asyncio.create_task(answer(gateway, serving))
            for _ in range(n_steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            names.append(serving.choices[0].completion_id)
        await gateway.close()
        return names

    names = asyncio.run(leave_everywhere(build_gateway(url, tmp_path)))
    store = Store(url)
    with store.read() as connection:
        kept = {row.id: row.finish_reason for row in connection.execute(select(completions))}
    store.close()
    assert set(kept) == set(names)
    assert set(kept.values()) <= {"cancelled", "stop"}


def test_a_cancelled_stream_costs_tokens_too(serve_one: Serve) -> None:
    house = serve_one(user_tokens="20/day")
    body = {"messages": [{"role": "user", "content": LONG}], "stream": True}
    with house.http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    wait_until(house.read_completions)
    assert house.chat("x").status_code == 429


def test_a_model_that_breaks_off_ends_the_stream_with_an_error(open_house: Served) -> None:
    events, name = stream_events(open_house, "a b fail c")
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["You", " said:", " a", " b"]
    assert events[-1]["error"]["code"] == "upstream"
    row = wait_until(lambda: open_house.read_completions().get(name))
    assert (row.finish_reason, row.completion["content"]) == ("error", "You said: a b")


def test_an_engine_with_a_fault_ends_the_stream_with_an_error_without_details(open_house: Served) -> None:
    def break_down(_: Any) -> list[str]:
        raise RuntimeError("words of a user")

    engine = open_house.engine
    engine._answer = break_down
    try:
        for stream in (False, True):
            response = open_house.chat("x", stream=stream)
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal"
            assert "words" not in response.text
    finally:
        del engine._answer


def test_a_model_that_names_a_choice_nobody_asked_for_is_a_502(serve_one: Serve) -> None:
    house = serve_one()
    scripted = house.engine.complete

    async def answer_more(body: Any, version: str) -> Any:
        return await scripted({**body, "n": 3}, version)

    house.engine.complete = answer_more
    assert house.chat("x").status_code == 502


def test_an_answer_that_cannot_be_stored_is_no_answer(serve_one: Serve, monkeypatch: Any) -> None:
    house = serve_one()
    monkeypatch.setattr(house.gateway.committer, "_commit", fail_to_write)
    response = house.chat("x")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "store_unavailable"
    assert int(response.headers["Retry-After"]) >= 1


def test_a_stream_that_cannot_be_stored_ends_with_an_error_and_without_a_token(
    serve_one: Serve, monkeypatch: Any
) -> None:
    house = serve_one()
    with monkeypatch.context() as broken:
        broken.setattr(house.gateway.committer, "_commit", fail_to_write)
        events, name = stream_events(house, "x")
    assert "".join(event["choices"][0]["delta"]["content"] for event in events[:-1]) == "You said: x"
    assert events[-1]["error"]["type"] == "server_error"
    assert not any("thumbtune" in event for event in events)
    assert house.vote(completion_id=name, label=True).status_code == 404
    # nothing has to be started anew
    assert house.vote(completion_id=house.ask()["completion_id"], label=True).status_code == 200


def test_a_vote_that_cannot_be_stored_is_not_acknowledged(serve_one: Serve, monkeypatch: Any) -> None:
    house = serve_one()
    name = house.ask()["completion_id"]
    with monkeypatch.context() as broken:
        broken.setattr(house.gateway.committer, "_commit", fail_to_write)
        response = house.vote(completion_id=name, label=True)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert house.read_presses(name) == []
    assert house.vote(completion_id=name, label=True).json()["status"] == "recorded"


def fail_to_write(*_: Any) -> None:
    raise StoreError("votes.db: database or disk is full")


def stream_events(house: Served, text: str) -> tuple[list[dict[str, Any]], str]:
    """A streamed answer's events and its completion's id; the stream ends with [DONE]."""
    response = house.chat(text, stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]], response.headers["Thumbtune-Completion-Id"]
