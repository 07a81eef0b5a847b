"""Engines and a server that answer from a script: the gateway's tests are about the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from thumbtune.gateway.app import create_app
from thumbtune.gateway.service import Gateway
from thumbtune.gateway.settings import GatewaySettings
from thumbtune.store.database import Store
from thumbtune.store.models import ModelVersion
from thumbtune.store.secrets import open_secrets


class ScriptedEngine:
    """Answers "You said: …" word by word; "wait" in the message makes it slow, "fail" breaks it off."""

    def __init__(self, versions: tuple[str, ...] = ("base-1", "adapter-2")) -> None:
        self._versions = list(versions)
        self.bodies: list[Mapping[str, Any]] = []
        self.n_closed_early = 0

    async def start(self) -> list[ModelVersion]:
        return [ModelVersion(name, "base", "scripted") for name in self._versions]

    @property
    def versions(self) -> list[str]:
        return list(self._versions)

    async def complete(self, body: Mapping[str, Any], version: str) -> dict[str, Any]:
        self.bodies.append(body)
        n = body.get("n") or 1
        words = self._answer(body)
        if "wait" in words:
            await asyncio.sleep(5)
        message = {"role": "assistant", "content": " ".join(words)}
        return {
            "id": "theirs",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": version,
            "choices": [{"index": i, "message": dict(message), "finish_reason": "stop"} for i in range(n)],
            "usage": self._usage(body, words, n),
        }

    async def stream(self, body: Mapping[str, Any], version: str) -> AsyncIterator[dict[str, Any]]:
        self.bodies.append(body)
        n = body.get("n") or 1
        words = self._answer(body)
        chunk = {"object": "chat.completion.chunk", "model": version}
        finished = False
        try:
            for place, word in enumerate(words):
                if "wait" in words:
                    await asyncio.sleep(0.05)
                if word == "fail":
                    from thumbtune.gateway.problems import Problem

                    raise Problem(502, "the model broke off", code="upstream")
                text = word if place == 0 else f" {word}"
                for index in range(n):
                    yield {
                        **chunk,
                        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}],
                    }
            for index in range(n):
                yield {**chunk, "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}
            yield {**chunk, "choices": [], "usage": self._usage(body, words, n)}
            finished = True
        finally:
            self.n_closed_early += not finished

    def _answer(self, body: Mapping[str, Any]) -> list[str]:
        content = body["messages"][-1].get("content") or ""
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        return ["You", "said:", *text.split(" ")]

    def _usage(self, body: Mapping[str, Any], words: list[str], n: int) -> dict[str, int]:
        n_prompt = sum(len(str(message.get("content"))) for message in body["messages"])
        n_words = n * len(words)
        return {"prompt_tokens": n_prompt, "completion_tokens": n_words, "total_tokens": n_prompt + n_words}

    async def load_adapter(self, version: ModelVersion) -> None:
        self._versions.append(version.version)

    async def unload_adapter(self, version: str) -> None:
        self._versions.remove(version)

    def describe_load(self) -> dict[str, float]:
        return {"rows": 0.0}

    async def close(self, drain_seconds: float) -> None:
        pass


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(app: Any, *, port: int | None = None) -> Iterator[str]:
    """A real server on a free port, or on `port`, in a thread; gives its address."""
    port = port or find_free_port()
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def build_gateway(url: str, folder: Path, engine: Any = None, **settings: Any) -> Gateway:
    """A gateway over a store at `url` with its secrets in `folder`."""
    settings = {"page": False, "user_votes": "100000/minute", "user_requests": "100000/minute", **settings}
    chosen = GatewaySettings(store=url, secrets=folder / "secrets.json", **settings)
    return Gateway(chosen, Store(url), engine or ScriptedEngine(), open_secrets(chosen.secrets_file))


@contextlib.contextmanager
def serve_gateway(gateway: Gateway) -> Iterator[str]:
    """A gateway on a free port."""
    with serve(create_app(gateway)) as address:
        yield address
