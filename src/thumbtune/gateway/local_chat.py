"""The local model behind the gateway: OpenAI's requests and answers around `LocalEngine`.

What the local model cannot do is refused with its name, not ignored: an answer without its `response_format` would
look like one that has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from thumbtune.engine.loading import load_model_and_tokenizer
from thumbtune.errors import ConfigError, DataError, ThumbtuneError
from thumbtune.gateway.local_engine import (
    EngineFull,
    GenerationRequest,
    LocalEngine,
    PromptTooLong,
    UnknownVersion,
)
from thumbtune.gateway.problems import Problem, busy
from thumbtune.loop.versions import describe_adapter, describe_base
from thumbtune.store.models import ModelVersion

HONOURED = {"messages", "stream", "stream_options", "tools", "n", "max_tokens", "max_completion_tokens"} | {
    "temperature",
    "top_p",
    "stop",
    "seed",
}
IDLE: Mapping[str, Sequence[Any]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "response_format": ({"type": "text"}, None),
    "tool_choice": ("auto", "none", None),
    "parallel_tool_calls": (True, False, None),
    "modalities": (["text"], None),
    "service_tier": ("auto", "default", None),
}
"""Fields that ask for nothing at these values."""

HARMLESS = frozenset(("metadata", "store", "safety_identifier", "prompt_cache_key", "user"))
"""Fields that are about the caller's books, not about the answer."""


class LocalModel:
    """A transformers model with PEFT adapters as an `Engine`."""

    def __init__(self, location: str, adapters: Sequence[Path], **engine_settings: Any) -> None:
        self._location = location
        self._adapters = adapters
        self._settings = engine_settings
        self._engine: LocalEngine | None = None

    async def start(self) -> list[ModelVersion]:
        if self._engine is None:
            model, tokenizer = await asyncio.to_thread(load_model_and_tokenizer, self._location)
            if getattr(tokenizer, "chat_template", None) is None:
                raise ConfigError(
                    f"{self._location} has no chat template: serve a model that was made for chats"
                )
            self._base = await asyncio.to_thread(describe_base, model, self._location)
            self._engine = LocalEngine(model, tokenizer, base_version=self._base.version, **self._settings)
        found = [
            await asyncio.to_thread(describe_adapter, folder, self._base.version) for folder in self._adapters
        ]
        for version in found:
            await self.load_adapter(version)
        return [*found, self._base]

    @property
    def versions(self) -> list[str]:
        return self._ready.versions

    @property
    def _ready(self) -> LocalEngine:
        if self._engine is None:
            raise busy("the model is being loaded", 5.0)
        return self._engine

    async def complete(self, body: Mapping[str, Any], version: str) -> dict[str, Any]:
        n = body.get("n") or 1
        texts: list[list[str]] = [[] for _ in range(n)]
        reasons: list[str | None] = [None] * n
        n_prompt = n_completion = 0
        async with aclosing(self._generate(body, version)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                texts[piece.index].append(piece.text)
                if piece.finish_reason is not None:
                    reasons[piece.index] = piece.finish_reason
                    n_prompt, n_completion = piece.n_prompt_tokens, n_completion + piece.n_completion_tokens
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": "".join(texts[i])},
                "finish_reason": reasons[i],
            }
            for i in range(n)
        ]
        return {
            "id": "",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": version,
            "choices": [choice | {"logprobs": None} for choice in choices],
            "usage": _count(n_prompt, n_completion),
        }

    async def stream(self, body: Mapping[str, Any], version: str) -> AsyncIterator[dict[str, Any]]:
        n_prompt = n_completion = 0
        begun: set[int] = set()
        async with aclosing(self._generate(body, version)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                delta: dict[str, str] = {} if piece.index in begun else {"role": "assistant", "content": ""}
                begun.add(piece.index)
                if piece.text or delta:
                    yield _chunk(version, [_choice(piece.index, delta | {"content": piece.text}, None)])
                if piece.finish_reason is not None:
                    n_prompt, n_completion = piece.n_prompt_tokens, n_completion + piece.n_completion_tokens
                    yield _chunk(version, [_choice(piece.index, {}, piece.finish_reason)])
        yield _chunk(version, []) | {"usage": _count(n_prompt, n_completion)}

    async def _generate(self, body: Mapping[str, Any], version: str) -> AsyncIterator[Any]:
        with _as_problems():
            request = read_request(body)
            async with aclosing(self._ready.generate(request, version)) as pieces:
                async for piece in pieces:
                    yield piece

    async def load_adapter(self, version: ModelVersion) -> None:
        if version.version not in self._ready.versions:
            with _as_problems():
                await self._ready.load_adapter(version.version, Path(version.location))

    async def unload_adapter(self, version: str) -> None:
        with _as_problems():
            await self._ready.unload_adapter(version)

    def describe_load(self) -> dict[str, float]:
        return {} if self._engine is None else self._engine.load()

    async def close(self, drain_seconds: float) -> None:
        if self._engine is not None:
            try:
                await asyncio.wait_for(self._engine.close(drain=True), drain_seconds)
            except TimeoutError:
                await self._engine.close(drain=False)


def read_request(body: Mapping[str, Any]) -> GenerationRequest:
    """An OpenAI body as a request to the local model. Raises a 400 `Problem` for what it cannot do."""
    for name, value in body.items():
        if name in HONOURED or name in HARMLESS or (name in IDLE and value in IDLE[name]):
            continue
        raise Problem(
            400, f"the local model cannot do '{name}': leave it out", code="unsupported_field", param=name
        )
    stop = body.get("stop") or ()
    temperature, top_p = body.get("temperature"), body.get("top_p")
    return GenerationRequest(
        messages=[_flatten(message) for message in body["messages"]],
        tools=body.get("tools"),
        n=body.get("n") or 1,
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=body.get("seed"),
    )


def _flatten(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose text parts are one text; other parts are refused."""
    flat = dict(message)
    if flat["role"] == "developer":  # OpenAI's newer word for it; templates know the old one
        flat["role"] = "system"
    if isinstance(flat.get("content"), list):
        parts = flat["content"]
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
            raise Problem(
                400, "the local model reads text parts only", code="unsupported_content", param="messages"
            )
        flat["content"] = "".join(part["text"] for part in parts)
    return flat


@contextmanager
def _as_problems() -> Iterator[None]:
    try:
        yield
    except EngineFull as error:
        raise busy(str(error)) from error
    except PromptTooLong as error:
        raise Problem(400, str(error), code="context_length_exceeded", param="messages") from error
    except UnknownVersion as error:
        raise Problem(404, str(error), code="model_not_found", param="model") from error
    except DataError as error:  # the chat template refuses the messages
        raise Problem(
            400, "the model's chat template cannot take these messages", code="bad_messages"
        ) from error
    except ThumbtuneError as error:
        raise Problem(500, "the local model failed", code="engine_failed") from error


def _chunk(version: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": version,
        "choices": choices,
    }


def _choice(index: int, delta: Mapping[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}


def _count(n_prompt: int, n_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
    }
