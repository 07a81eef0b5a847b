"""OpenAI's own client and LangChain's, unchanged, against a served gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI

from gateway.conftest import Serve
from gateway.house import Keyed, Served, wait_until
from gateway.scripted import ScriptedEngine
from thumbtune.gateway.problems import busy


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(keyed: Keyed) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=keyed.v1, api_key=keyed.client, max_retries=0) as made:
        yield made


def test_a_plain_answer_has_its_vote_token_beside_it(client: openai.OpenAI, keyed: Keyed) -> None:
    answer = client.chat.completions.create(model="champion", messages=say("merhaba İstanbul"))
    assert answer.choices[0].message.content == "You said: merhaba İstanbul"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "base-1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.thumbtune["completion_id"] == answer.id  # type: ignore[attr-defined]
    row = keyed.read_completions()[answer.id]
    assert row.completion == {"role": "assistant", "content": "You said: merhaba İstanbul"}
    assert row.messages == say("merhaba İstanbul")
    assert (row.finish_reason, row.model_version, row.arm) == ("stop", "base-1", "champion")
    assert (row.n_prompt_tokens, row.n_completion_tokens) == (16, 4)


def test_a_vote_goes_through_the_client_that_asked(client: openai.OpenAI, keyed: Keyed) -> None:
    answer = client.chat.completions.create(model="champion", messages=say("vote"))
    mine = answer.thumbtune  # type: ignore[attr-defined]
    press = {"completion_id": mine["completion_id"], "vote_token": mine["vote_token"], "label": True}
    receipt = client.post("/feedback", body=press, cast_to=dict[str, Any])
    assert receipt["status"] == "recorded"
    assert [row.label for row in keyed.read_presses(answer.id)] == [True]


def test_a_stream_gives_the_same_text_and_ends_with_the_token(client: openai.OpenAI, keyed: Keyed) -> None:
    chunks = list(client.chat.completions.create(model="champion", messages=say("a b c"), stream=True))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == "You said: a b c"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in chunks), "nobody asked for the usage"
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    assert last.thumbtune["completion_id"] == last.id  # type: ignore[attr-defined]
    # the token was handed out after the commit: it is good at once
    vote = keyed.vote(label=False, **_naming(last.thumbtune))  # type: ignore[attr-defined]
    assert vote.status_code == 200
    assert keyed.read_completions()[last.id].completion["content"] == "You said: a b c"


def test_a_stream_tells_the_usage_to_who_asks_for_it(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="champion", messages=say("a b"), stream=True, stream_options={"include_usage": True}
    )
    *_, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 4


def test_the_async_client_asks_and_streams(keyed: Keyed) -> None:
    async def talk() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=keyed.v1, api_key=keyed.client, max_retries=0) as client:
            answer = await client.chat.completions.create(model="champion", messages=say("x"))
            stream = await client.chat.completions.create(model="champion", messages=say("y"), stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return answer.choices[0].message.content, "".join(pieces)

    assert asyncio.run(talk()) == ("You said: x", "You said: y")


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_two_choices_is_a_completion_with_a_token_of_its_own(
    client: openai.OpenAI, keyed: Keyed, stream: bool
) -> None:
    made: Any = client.chat.completions.create(model="champion", messages=say("two"), n=2, stream=stream)
    if stream:
        named = {
            choice.index: choice.thumbtune
            for chunk in made
            for choice in chunk.choices
            if choice.finish_reason is not None
        }
    else:
        named = {choice.index: choice.thumbtune for choice in made.choices}
    assert named.keys() == {0, 1}
    ids = {place: mine["completion_id"] for place, mine in named.items()}
    assert ids[0] != ids[1]
    stored = keyed.read_completions()
    assert [stored[ids[place]].completion["content"] for place in (0, 1)] == ["You said: two"] * 2
    assert keyed.vote(label=True, **_naming(named[0])).json()["status"] == "recorded"
    assert keyed.vote(label=False, **_naming(named[1])).json()["status"] == "recorded"
    crossed = {"completion_id": ids[1], "vote_token": named[0]["vote_token"]}
    assert keyed.vote(label=True, **crossed).status_code == 403


def test_sampling_reaches_the_model_and_the_store_and_who_asks_does_not(
    client: openai.OpenAI, keyed: Keyed
) -> None:
    answer = client.chat.completions.create(
        model="adapter-2",
        messages=say("settings"),
        stop=["\n"],
        seed=7,
        temperature=0.2,
        top_p=0.9,
        max_tokens=5,
        user="somebody else",
        logit_bias={"11": 1},
    )
    body = keyed.engine.bodies[-1]
    asked = {"stop": ["\n"], "seed": 7, "temperature": 0.2, "top_p": 0.9, "max_tokens": 5}
    assert asked.items() <= body.items()
    assert body["logit_bias"] == {"11": 1}
    assert not {"user", "model", "thumbtune"} & body.keys()
    row = keyed.read_completions()[answer.id]
    assert row.sampling == asked
    assert (row.model_version, row.arm) == ("adapter-2", "named")


def test_null_means_not_said(keyed: Keyed) -> None:
    nulls = dict.fromkeys(("n", "stream", "temperature", "stop", "seed", "tools", "model", "stream_options"))
    assert keyed.chat("null", keyed.client, **nulls).status_code == 200
    assert keyed.engine.bodies[-1].keys() == {"messages"}


def test_tool_messages_pass_as_they_were_sent(client: openai.OpenAI, keyed: Keyed) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [
        *say("what is it?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = client.chat.completions.create(model="champion", messages=messages, tools=tools)
    row = keyed.read_completions()[answer.id]
    assert row.messages == messages
    assert row.tools == tools
    assert keyed.engine.bodies[-1]["messages"] == messages


def test_models_lists_the_champion_and_each_version(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["champion", "base-1", "adapter-2"]


def test_the_turns_of_a_conversation_share_a_key_and_others_do_not(
    client: openai.OpenAI, keyed: Keyed
) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be short."}, *say("first question")]
    ids = []
    for turn in range(3):
        answer = client.chat.completions.create(model="champion", messages=messages)
        ids.append(answer.id)
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            *say(f"and then, {turn}?"),
        ]
    other = client.chat.completions.create(model="champion", messages=say("another beginning"))
    stored = keyed.read_completions()
    assert len({stored[name].conversation_key for name in ids}) == 1
    assert stored[other.id].conversation_key != stored[ids[0]].conversation_key
    same_words = keyed.ask("first question", keyed.speaker, headers={"Thumbtune-User": "ayşe".encode()})
    assert (
        keyed.read_completions()[same_words["completion_id"]].conversation_key
        != stored[ids[0]].conversation_key
    )


# Errors


def test_a_wrong_key_is_an_authentication_error(keyed: Keyed) -> None:
    stranger = openai.OpenAI(base_url=keyed.v1, api_key="tt-wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        stranger.chat.completions.create(model="champion", messages=say("x"))
    assert caught.value.code == "invalid_api_key"


def test_a_key_of_the_wrong_role_is_a_permission_error(keyed: Keyed) -> None:
    voter = openai.OpenAI(base_url=keyed.v1, api_key=keyed.voter, max_retries=0)
    with voter, pytest.raises(openai.PermissionDeniedError):
        voter.chat.completions.create(model="champion", messages=say("x"))


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=say("x"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("wrong", [{"n": 99}, {"temperature": -1}, {"messages": []}, {"top_p": "much"}])
def test_a_senseless_request_is_a_bad_request_error_that_says_where(
    client: openai.OpenAI, wrong: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "champion", "messages": say("x"), **wrong})
    assert caught.value.param == next(iter(wrong))


def test_too_many_requests_are_a_rate_limit_error(serve_one: Serve) -> None:
    house = serve_one(user_requests="2/day")
    with openai.OpenAI(base_url=house.v1, api_key="none", max_retries=0) as client:
        for _ in range(2):
            client.chat.completions.create(model="champion", messages=say("x"))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="champion", messages=say("x"))
    assert int(caught.value.response.headers["Retry-After"]) >= 1


class BusyEngine(ScriptedEngine):
    """Refuses the first chat."""

    n_refused = 0

    def _answer(self, body: Any) -> list[str]:
        if not self.n_refused:
            self.n_refused += 1
            raise busy("full")
        return super()._answer(body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_model_is_a_503_before_any_piece_and_is_no_completion(serve_one: Serve, stream: bool) -> None:
    house = serve_one(BusyEngine())
    with openai.OpenAI(base_url=house.v1, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="champion", messages=say("x"), stream=stream)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "1"
        assert house.read_completions() == {}
        # what it said about coming again is true: the client's own retry gets an answer
        house.engine.n_refused = 0
        patient = client.with_options(max_retries=2)
        assert patient.chat.completions.create(model="champion", messages=say("x")).choices


def test_a_model_that_breaks_off_is_an_error_in_the_stream(client: openai.OpenAI, keyed: Keyed) -> None:
    stream = client.chat.completions.create(model="champion", messages=say("a fail b"), stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "broke off" in str(caught.value)
    assert "".join(texts) == "You said: a"
    name = stream.response.headers["Thumbtune-Completion-Id"]
    row = wait_until(lambda: keyed.read_completions().get(name))
    assert (row.finish_reason, row.completion["content"]) == ("error", "You said: a")


# LangChain


@pytest.fixture(scope="module")
def chain(keyed: Keyed) -> Any:
    return ChatOpenAI(
        base_url=keyed.v1,
        api_key=keyed.client,  # type: ignore[arg-type]
        model="champion",
        include_response_headers=True,
        max_retries=0,
    )


def test_langchain_answers_and_hands_out_the_token_in_its_headers(chain: Any, keyed: Keyed) -> None:
    answer = chain.invoke("hello chain")
    assert answer.content == "You said: hello chain"
    headers = answer.response_metadata["headers"]
    vote = keyed.vote(
        completion_id=headers["thumbtune-completion-id"],
        vote_token=headers["thumbtune-vote-token"],
        label=True,
    )
    assert vote.json()["status"] == "recorded"
    assert answer.response_metadata["id"] == headers["thumbtune-completion-id"]


def test_langchain_streams(chain: Any, keyed: Keyed) -> None:
    chunks = list(chain.stream("hello stream"))
    assert "".join(chunk.content for chunk in chunks) == "You said: hello stream"
    headers = next(found for chunk in chunks if (found := chunk.response_metadata.get("headers")))
    mine = {name: headers[f"thumbtune-{name.replace('_', '-')}"] for name in ("completion_id", "vote_token")}
    assert keyed.vote(label=True, **mine).json()["status"] == "recorded"


def test_langchain_works_async(chain: Any) -> None:
    async def talk() -> tuple[Any, str]:
        answer = await chain.ainvoke("one")
        return answer.content, "".join([chunk.content async for chunk in chain.astream("two")])

    assert asyncio.run(talk()) == ("You said: one", "You said: two")


def test_a_conversation_by_langchain_is_one_conversation_in_the_store(chain: Any, keyed: Keyed) -> None:
    history: list[Any] = []
    names = []
    for turn in range(4):
        history.append(HumanMessage(f"langchain turn {turn}"))
        answer: AIMessage = chain.invoke(history)
        names.append(answer.response_metadata["id"])
        history.append(answer)
    stored = keyed.read_completions()
    assert len({stored[name].conversation_key for name in names}) == 1
    assert [len(stored[name].messages) for name in names] == [1, 3, 5, 7]


def _naming(mine: dict[str, str]) -> dict[str, str]:
    return {name: mine[name] for name in ("completion_id", "vote_token")}


def test_the_open_house_takes_any_key_for_none(open_house: Served) -> None:
    with openai.OpenAI(base_url=open_house.v1, api_key="sk-whatever", max_retries=0) as client:
        assert client.chat.completions.create(model="champion", messages=say("x")).choices
    assert open_house.chat("x", "tt-an-old-key").status_code == 401, (
        "a key of ours that is not known is no key"
    )
