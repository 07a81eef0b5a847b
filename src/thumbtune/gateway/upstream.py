"""Chats passed to an OpenAI-compatible server: vLLM, llama.cpp's server, a cloud.

A connection that could not be made is tried again, twice; a request that was sent is not, since it may be running.
Adapters go to vLLM under their content-addressed version: the same name would serve stale keys and values there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from thumbtune.gateway.problems import Problem, busy
from thumbtune.store.models import ModelVersion

CONNECT_SECONDS = 5.0


class Upstream:
    """One OpenAI-compatible server at `url` (its `/v1`)."""

    def __init__(
        self, url: str, *, api_key: str | None, timeout_seconds: float, model: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._model = model
        self._versions: list[str] = []
        self._in_flight = 0
        self._client = httpx.AsyncClient(
            base_url=self.url + "/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
            transport=httpx.AsyncHTTPTransport(
                retries=2, limits=httpx.Limits(max_connections=2_000, max_keepalive_connections=200)
            ),
            follow_redirects=False,
        )

    async def start(self) -> list[ModelVersion]:
        response = await self._send("GET", "models", None)
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
        self._in_flight += 1
        try:
            return await self._send("POST", "chat/completions", {**body, "model": version, "stream": False})
        finally:
            self._in_flight -= 1

    async def stream(self, body: Mapping[str, Any], version: str) -> AsyncIterator[dict[str, Any]]:
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        request = {**body, "model": version, "stream": True, "stream_options": options}
        self._in_flight += 1
        try:
            async with self._client.stream("POST", "chat/completions", json=request) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _explain(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise Problem(502, "the upstream broke off its answer", code="upstream")
                    yield chunk
        except httpx.HTTPError as error:
            raise _explain_failure(error, self.url) from error
        except ValueError as error:
            raise Problem(502, "the upstream's stream is not JSON", code="upstream") from error
        finally:
            self._in_flight -= 1

    async def load_adapter(self, version: ModelVersion) -> None:
        await self._send(
            "POST", "load_lora_adapter", {"lora_name": version.version, "lora_path": version.location}
        )
        if version.version not in self._versions:
            self._versions.append(version.version)

    async def unload_adapter(self, version: str) -> None:
        await self._send("POST", "unload_lora_adapter", {"lora_name": version})
        self._versions.remove(version)

    def describe_load(self) -> dict[str, float]:
        return {"in_flight": self._in_flight}

    async def close(self, drain_seconds: float) -> None:
        await self._client.aclose()

    async def _send(self, method: str, path: str, body: Any) -> dict[str, Any]:
        try:
            response = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise _explain_failure(error, self.url) from error
        if response.status_code != 200:
            raise _explain(response)
        try:
            content = response.json()
        except ValueError:  # vLLM answers an adapter's loading with a sentence
            return {"message": response.text[:200]}
        return content if isinstance(content, dict) else {"data": content}


def _explain(response: httpx.Response) -> Problem:
    """An upstream's refusal as ours: what the client can mend stays theirs, the rest is a fault of the house."""
    status = response.status_code
    if status in (429, 503):
        wait = response.headers.get("Retry-After", "1")
        return busy("the model is busy: try again", float(wait) if wait.isdigit() else 1.0)
    if status in (400, 404, 413, 422):
        return Problem(400 if status == 422 else status, _read_message(response), code="upstream_refused")
    return Problem(502, f"the upstream answered {status}", code="upstream")


def _read_message(response: httpx.Response) -> str:
    try:
        content = response.json()
        error = content.get("error", content)
        return f"the upstream refused: {error.get('message', '') if isinstance(error, dict) else error}"[
            :1_000
        ]
    except (ValueError, AttributeError):
        return f"the upstream refused with {response.status_code}"


def _explain_failure(error: httpx.HTTPError, url: str) -> Problem:
    if isinstance(error, httpx.PoolTimeout):
        return busy("too many requests are under way: try again")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return busy("the model's server cannot be reached: try again", 5.0)
    if isinstance(error, httpx.TimeoutException):
        return Problem(504, "the model's server did not answer in time", code="upstream_timeout")
    return Problem(502, f"the model's server broke off ({type(error).__name__})", code="upstream")
