"""The gateway before an OpenAI-compatible server: what it passes on, what it makes of trouble, and many at once."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from gateway.conftest import Serve
from gateway.house import Served, wait_until
from gateway.scripted import find_free_port, serve
from gateway.stub_upstream import BURST_WORDS, CALLS, Stub
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.upstream import Upstream
from thumbtune.loop.versions import describe_adapter


@dataclass
class Pair:
    """A gateway and the stub behind it."""

    house: Served
    stub: Stub
    url: str


@pytest.fixture(scope="module")
def pair(serve_one: Serve) -> Iterator[Pair]:
    stub = Stub()
    with ExitStack() as stack:
        url = stack.enter_context(serve(stub.app)) + "/v1"
        engine = Upstream(url, api_key="upstream-secret", timeout_seconds=2.0)
        yield Pair(serve_one(engine, user_tokens="100000000/minute"), stub, url)


def stream(house: Served, text: str, **more: Any) -> list[dict[str, Any]]:
    """A stream's events, and the last line checked."""
    response = house.chat(text, stream=True, **more)
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def said(events: list[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        for choice in event.get("choices", ())
        if choice["index"] == index
    )


# What is passed on


def test_an_answer_is_passed_on_under_our_names(pair: Pair) -> None:
    answer = pair.house.chat("selam dünya", temperature=0.5, user="me", custom={"a": 1}).json()
    assert answer["choices"][0]["message"]["content"] == "selam dünya"
    assert answer["id"] == answer["thumbtune"]["completion_id"] != "theirs"
    assert answer["model"] == "big-model"
    assert answer["usage"]["total_tokens"] == 4
    body = pair.stub.bodies[-1]
    assert (body["model"], body["temperature"], body["custom"], body["stream"]) == (
        "big-model",
        0.5,
        {"a": 1},
        False,
    )
    assert "user" not in body, "who asks is nobody else's business"
    row = pair.house.read_completions()[answer["id"]]
    assert (row.n_prompt_tokens, row.n_completion_tokens, row.model_version) == (2, 2, "big-model")


def test_the_upstreams_own_key_is_sent_and_not_the_clients(pair: Pair) -> None:
    assert pair.stub.authorizations == ["Bearer upstream-secret"]


def test_a_stream_is_passed_on_and_its_usage_is_counted_though_nobody_asked(pair: Pair) -> None:
    events = stream(pair.house, "bir iki üç")
    assert said(events) == "bir iki üç"
    assert all(event["choices"] for event in events)
    assert {event["id"] for event in events} == {events[-1]["thumbtune"]["completion_id"]}
    row = pair.house.read_completions()[events[0]["id"]]
    assert (row.n_prompt_tokens, row.n_completion_tokens) == (3, 3)
    asked = stream(pair.house, "a b", stream_options={"include_usage": True})
    assert asked[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls_are_stored_whole(pair: Pair, streamed: bool) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    if streamed:
        name = stream(pair.house, "tools", tools=tools)[0]["id"]
    else:
        name = pair.house.chat("tools", tools=tools).json()["id"]
    row = pair.house.read_completions()[name]
    assert row.completion == {"role": "assistant", "content": "", "tool_calls": CALLS}
    assert row.finish_reason == "tool_calls"
    assert row.tools == tools


def test_the_openai_client_puts_streamed_tool_calls_together(pair: Pair) -> None:
    client = openai.OpenAI(base_url=pair.house.v1, api_key="none", max_retries=0)
    asked = client.chat.completions.stream(model="champion", messages=[{"role": "user", "content": "tools"}])
    with client, asked as events:
        message = events.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == [
        call["function"]["arguments"]  # type: ignore[index]
        for call in CALLS
    ]


def test_several_choices_are_stored_each(pair: Pair) -> None:
    events = stream(pair.house, "a b", n=3)
    assert [said(events, index) for index in range(3)] == ["a b"] * 3
    ends = [choice["thumbtune"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert len({end["completion_id"] for end in ends}) == 3
    stored = pair.house.read_completions()
    assert {stored[end["completion_id"]].completion["content"] for end in ends} == {"a b"}


# Trouble

TROUBLE = [
    ("status 400", 400, "upstream_refused"),
    ("status 404", 404, "upstream_refused"),
    ("status 413", 413, "upstream_refused"),
    ("status 422", 400, "upstream_refused"),
    ("status 401", 502, "upstream"),
    ("status 403", 502, "upstream"),
    ("status 302", 502, "upstream"),
    ("status 500", 502, "upstream"),
    ("status 429", 503, "busy"),
    ("status 503", 503, "busy"),
    ("plain status", 400, "upstream_refused"),
    ("slow", 504, "upstream_timeout"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("text", "status", "code"), TROUBLE)
def test_a_refusal_has_the_status_that_the_client_can_act_on(
    pair: Pair, text: str, status: int, code: str, streamed: bool
) -> None:
    n_asked = len(pair.stub.bodies)
    response = pair.house.chat(text, stream=streamed)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert len(pair.stub.bodies) == n_asked + 1, "a request that arrived is not sent again"
    if status == 503:
        assert response.headers["Retry-After"] == "7"
    if code == "upstream_refused" and text != "plain status":
        assert f"no: {text.split()[1]}" in response.json()["error"]["message"]


@pytest.mark.parametrize("text", ["garbage", "wrong shape", "no choices"])
def test_an_answer_that_is_none_is_a_502(pair: Pair, text: str) -> None:
    response = pair.house.chat(text)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream")


@pytest.mark.parametrize("text", ["hang up", "half a line", "no end", "garbage", "wrong shape", "an error"])
def test_a_stream_that_breaks_off_ends_with_an_error_and_is_kept(
    pair: Pair, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="uvicorn.error")  # the stub raises on purpose
    events = stream(pair.house, text)
    assert said(events) == text
    assert events[-1]["error"]["code"] == "upstream"
    assert events[-1]["error"]["type"] == "server_error"
    assert not any("thumbtune" in event for event in events)
    row = wait_until(lambda: pair.house.read_completions().get(events[0]["id"]))
    assert (row.finish_reason, row.completion["content"]) == ("error", text)


def test_an_upstream_that_falls_silent_in_a_stream_is_given_up(pair: Pair) -> None:
    started = time.monotonic()
    events = stream(pair.house, "silent")
    assert events[-1]["error"]["code"] == "upstream_timeout"
    assert time.monotonic() - started < 2.5


def test_half_a_surrogate_pair_becomes_a_mark_that_can_be_stored(pair: Pair) -> None:
    answer = pair.house.chat("half a pair").json()
    assert answer["choices"][0]["message"]["content"] == "a?"
    assert pair.house.read_completions()[answer["id"]].completion["content"] == "a?"


def test_a_client_that_hangs_up_stops_the_upstream(pair: Pair) -> None:
    before = pair.stub.n_closed_early
    body = {"messages": [{"role": "user", "content": "drip " + "w " * 200}], "stream": True}
    with pair.house.http.stream("POST", "/v1/chat/completions", json=body) as response:
        name = response.headers["Thumbtune-Completion-Id"]
        next(response.iter_lines())
    wait_until(lambda: pair.stub.n_closed_early == before + 1)
    row = wait_until(lambda: pair.house.read_completions().get(name))
    assert row.finish_reason == "cancelled"
    wait_until(lambda: pair.house.gateway.engine.describe_load() == {"in_flight": 0})


def test_an_upstream_that_is_away_is_a_503_and_a_model_again_when_it_is_back(serve_one: Serve) -> None:
    port = find_free_port()
    stub = Stub()
    url = f"http://127.0.0.1:{port}/v1"
    engine = Upstream(url, api_key=None, timeout_seconds=1.0)
    with pytest.raises(Problem, match="cannot be reached"):
        asyncio.run(_start_and_close(Upstream(url, api_key=None, timeout_seconds=1.0)))
    with serve(stub.app, port=port):
        house = serve_one(engine)
        assert house.chat("x").status_code == 200
    for streamed in (False, True):
        response = house.chat("x", stream=streamed)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "busy")
        assert int(response.headers["Retry-After"]) >= 1
    with serve(stub.app, port=port):
        assert house.chat("x").status_code == 200


async def _start_and_close(engine: Upstream) -> None:
    try:
        await engine.start()
    finally:
        await engine.close(0)


def test_a_connection_that_was_not_made_is_tried_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    n_tries = 0
    connect = aiohttp.TCPConnector.connect

    async def fail_twice(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal n_tries
        n_tries += 1
        if n_tries <= 2:
            key = arguments[0].connection_key
            raise aiohttp.ClientConnectorError(key, OSError(111, "refused"))
        return await connect(self, *arguments, **named)

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", fail_twice)
    n_asked = len(pair.stub.bodies)
    assert pair.house.chat("again").status_code == 200
    assert n_tries == 3
    assert len(pair.stub.bodies) == n_asked + 1


def test_connections_that_idled_lose_no_request_though_the_upstream_closes_them_after_five_seconds(
    pair: Pair,
) -> None:
    async def ask_in_two_bursts() -> list[Any]:
        engine = Upstream(pair.url, api_key=None, timeout_seconds=10.0)
        await engine.start()
        body = {"messages": [{"role": "user", "content": "x"}]}
        answers = []
        try:
            for rest in (4.85, 0.0):
                asked = (engine.complete(body, "big-model") for _ in range(100))
                answers += await asyncio.gather(*asked, return_exceptions=True)
                await asyncio.sleep(rest)
                time.sleep(0.15)  # a busy loop has not seen yet that its connections ended
        finally:
            await engine.close(0)
        return answers

    assert [answer for answer in asyncio.run(ask_in_two_bursts()) if isinstance(answer, BaseException)] == []


# Adapters


def make_adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}" + folder.name.encode())
    return folder


def test_an_adapter_goes_to_vllm_under_the_name_of_its_content_and_into_service_and_back(
    pair: Pair, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "Türkçe v2")
    name = describe_adapter(folder, "big-model").version
    loaded = pair.house.http.post("/v1/adapters", json={"folder": str(folder)})
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["version"] == name
    assert pair.stub.adapters == {name: str(folder)}
    assert pair.house.ask("x")["model_version"] == "big-model", "it serves nobody yet but by name"
    assert pair.house.ask("x", model=name)["model_version"] == name
    assert pair.house.http.post("/v1/champion", json={"version": name}).status_code == 200
    assert pair.house.ask("x")["model_version"] == name
    assert pair.stub.bodies[-1]["model"] == name
    assert pair.house.http.post("/v1/champion/back").status_code == 200
    assert pair.house.ask("x")["model_version"] == "big-model"
    again = pair.house.http.post("/v1/adapters", json={"folder": str(folder)})
    assert again.status_code == 200, "the same content twice is one version"
    versions = {row["version"]: row for row in pair.house.http.get("/v1/versions").json()["data"]}
    assert (versions[name]["kind"], versions[name]["parent"], versions[name]["loaded"]) == (
        "adapter",
        "big-model",
        True,
    )


def test_an_adapter_that_is_taken_out_or_gone_is_no_version_any_more(pair: Pair, tmp_path: Path) -> None:
    async def load_and_unload() -> None:
        engine = Upstream(pair.url, api_key=None, timeout_seconds=1.0)
        await engine.start()
        try:
            version = describe_adapter(make_adapter(tmp_path / "short"), "big-model")
            for forgotten in (False, True):
                await engine.load_adapter(version)
                assert version.version in engine.versions
                if forgotten:  # vLLM was started anew
                    del pair.stub.adapters[version.version]
                await engine.unload_adapter(version.version)
                assert version.version not in engine.versions
                assert version.version not in pair.stub.adapters
        finally:
            await engine.close(0)

    asyncio.run(load_and_unload())


def test_the_model_that_is_asked_for_must_be_there(pair: Pair) -> None:
    engine = Upstream(pair.url, api_key=None, timeout_seconds=1.0, model="other")
    with pytest.raises(Problem, match="does not serve 'other'"):
        asyncio.run(_start_and_close(engine))


# Many at once


def test_two_hundred_streams_at_once_all_arrive_whole(pair: Pair) -> None:
    async def ask(client: httpx.AsyncClient, number: int) -> str:
        body = {"messages": [{"role": "user", "content": f"drip {number} a b c d"}], "stream": True}
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line[6:7] == "{"]
        assert said(events) == f"drip {number} a b c d", events
        return str(events[-1]["thumbtune"]["completion_id"])

    async def ask_all() -> list[str]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=pair.house.address, timeout=30, limits=limits) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(200)))

    names = asyncio.run(ask_all())
    assert len(set(names)) == 200
    stored = pair.house.read_completions()
    assert {stored[name].finish_reason for name in names} == {"stop"}


def test_a_reader_that_does_not_read_stalls_nobody(pair: Pair) -> None:
    place = urlsplit(pair.house.address)
    body = json.dumps({"messages": [{"role": "user", "content": "burst"}], "stream": True}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(10)
        connection.connect((place.hostname, place.port))
        connection.sendall(request)
        answer = connection.recv(1_024)
        name = answer.split(b"thumbtune-completion-id: ")[1].split(b"\r\n")[0].decode()
        time.sleep(0.5)  # what the sockets hold is full by now
        for _ in range(10):
            started = time.monotonic()
            assert pair.house.chat("quick").status_code == 200
            assert time.monotonic() - started < 1.0
        assert name not in pair.house.read_completions(), "it is still being held back"
    row = wait_until(lambda: pair.house.read_completions().get(name))
    assert row.finish_reason == "cancelled"
    assert len(row.completion["content"]) < 5 * BURST_WORDS
