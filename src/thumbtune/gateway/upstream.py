"""Chats passed to an OpenAI-compatible server: vLLM, llama.cpp's server, a cloud.

A connection that could not be made is tried again, twice; a request that was sent is not, since it may be running.
Adapters go to vLLM under their content-addressed version: the same name would serve stale keys and values there.

By aiohttp: the same request by httpx took 2.2 ms of a core, this one 0.6 (docs/decisions/011).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from pydantic import BaseModel, Field

from thumbtune.gateway.problems import Problem, busy
from thumbtune.store.models import ModelVersion

CONNECT_SECONDS = 5.0
CONNECT_TRIES = 3
MAX_CONNECTIONS = 2_000
IDLE_SECONDS = 3.0
"""How long an idle connection is kept: uvicorn (so vLLM) and llama.cpp's server close theirs after 5 s, and a request
on its way to one that closes is lost."""
MAX_LINE_BYTES = 2**20
"""Longest line of a stream."""


class Upstream:
    """One OpenAI-compatible server at `url` (its `/v1`); `timeout_seconds` is its longest silence."""

    def __init__(
        self, url: str, *, api_key: str | None, timeout_seconds: float, model: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=CONNECT_SECONDS, sock_read=timeout_seconds
        )
        self._versions: list[str] = []
        self._in_flight = 0
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> list[ModelVersion]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=IDLE_SECONDS),
                read_bufsize=MAX_LINE_BYTES,
                trust_env=False,
            )
        response = await self._ask("GET", "models", None)
        names = [str(entry["id"]) for entry in response.get("data", [])]
        if self._model is not None:
            if names and self._model not in names:
                raise Problem(
                    502, f"{self.url} does not serve '{self._model}': {', '.join(names)}", code="upstream"
                )
            names = [self._model, *(name for name in names if name != self._model)]
        if not names:
            raise Problem(502, f"{self.url} serves no model", code="upstream")
        self._versions = names
        return [ModelVersion(name, "upstream", self.url) for name in names]

    @property
    def versions(self) -> list[str]:
        return list(self._versions)

    async def complete(self, body: Mapping[str, Any], version: str) -> dict[str, Any]:
        answer = await self._ask("POST", "chat/completions", {**body, "model": version, "stream": False})
        try:
            if not _Answer.model_validate(answer).choices:
                raise ValueError("no choices")
        except ValueError:
            raise Problem(502, "the model's server sent what is no answer", code="upstream") from None
        return answer

    async def stream(self, body: Mapping[str, Any], version: str) -> AsyncIterator[dict[str, Any]]:
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        request = {**body, "model": version, "stream": True, "stream_options": options}
        async with self._open("POST", "chat/completions", request) as response:
            while line := await response.content.readline():
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                chunk = _read_json(data)
                if not isinstance(chunk, dict) or chunk.get("error"):
                    raise Problem(502, "the model's server broke off its answer", code="upstream")
                _Answer.model_validate(chunk)
                yield {"choices": [], **chunk}
                await asyncio.sleep(
                    0
                )  # what lies ready would else be passed on in one go, with all others waiting
            raise Problem(502, "the model's server broke off its answer", code="upstream")

    async def load_adapter(self, version: ModelVersion) -> None:
        adapter = {"lora_name": version.version, "lora_path": version.location}
        try:
            await self._ask("POST", "load_lora_adapter", adapter)
        except Problem as problem:
            # the name is its content: one that is there already, since before a restart of ours, is this one
            if problem.status != 400 or "already" not in problem.message:
                raise
        if version.version not in self._versions:
            self._versions.append(version.version)

    async def unload_adapter(self, version: str) -> None:
        try:
            await self._ask("POST", "unload_lora_adapter", {"lora_name": version})
        except Problem as problem:
            if problem.status != 404:  # gone already
                raise
        self._versions.remove(version)

    def describe_load(self) -> dict[str, float]:
        return {"in_flight": self._in_flight}

    async def close(self, drain_seconds: float) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, method: str, path: str, body: Any) -> dict[str, Any]:
        async with self._open(method, path, body) as response:
            content = await response.read()
        try:
            answer = _read_json(content)
        except ValueError:
            if path == "chat/completions":
                raise Problem(502, "the model's server did not answer in JSON", code="upstream") from None
            return {}  # vLLM answers an adapter's loading with a sentence
        return answer if isinstance(answer, dict) else {"data": answer}

    @asynccontextmanager
    async def _open(self, method: str, path: str, body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good response, or a `Problem`."""
        assert self._session is not None, "start comes first"
        self._in_flight += 1
        try:
            response = await self._connect(method, path, body)
            try:
                if response.status != 200:
                    raise await _explain(response)
                yield response
            finally:
                response.close() if response.status != 200 else response.release()
        except aiohttp.SocketTimeoutError as error:
            raise Problem(
                504, "the model's server did not answer in time", code="upstream_timeout"
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Problem(
                502, f"the model's server broke off ({type(error).__name__})", code="upstream"
            ) from error
        except ValueError as error:
            raise Problem(502, "the model's server sent what is no answer", code="upstream") from error
        finally:
            self._in_flight -= 1

    async def _connect(self, method: str, path: str, body: Any) -> aiohttp.ClientResponse:
        assert self._session is not None
        for tries_left in reversed(range(CONNECT_TRIES)):
            try:
                return await self._session.request(
                    method, f"{self.url}/{path}", json=body, allow_redirects=False
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                if not tries_left:
                    raise busy("the model's server cannot be reached: try again", 5.0) from error
                await asyncio.sleep(0.1)
        raise AssertionError("unreachable")


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(BaseModel):
    index: int = 0
    function: _Function | None = None


class _Piece(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    index: int
    delta: _Piece | None = None
    message: _Piece | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(BaseModel):
    """As much of OpenAI's shape as we read: a server that sends something else is at fault, not we."""

    choices: list[_Choice] = Field(default_factory=list)
    usage: _Usage | None = None


def _read_json(data: bytes) -> Any:
    """JSON that can be stored and sent on. Raises `ValueError`."""
    content = json.loads(data, parse_constant=_refuse_constant)
    if b"\\u" in data:  # half of a surrogate pair can be written so, and is no character
        content = json.loads(json.dumps(content, ensure_ascii=False).encode(errors="replace"))
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


async def _explain(response: aiohttp.ClientResponse) -> Problem:
    """A refusal as ours: what the client can mend stays theirs, the rest is a fault of the house."""
    status = response.status
    if status in (429, 503):
        wait = response.headers.get("Retry-After", "1")
        return busy("the model is busy: try again", float(wait) if wait.isdigit() else 1.0)
    if status in (400, 404, 413, 422):
        return Problem(
            400 if status == 422 else status, await _read_message(response), code="upstream_refused"
        )
    return Problem(502, f"the model's server answered {status}", code="upstream")


async def _read_message(response: aiohttp.ClientResponse) -> str:
    try:
        content = json.loads(await response.content.read(100_000))
        error = content.get("error", content)
        return (
            f"the model's server refused: {error.get('message', '') if isinstance(error, dict) else error}"[
                :1_000
            ]
        )
    except (ValueError, AttributeError):
        return f"the model's server refused with {response.status}"
