"""An OpenAI-compatible server that answers from a script, with vLLM's two adapter routes.

`python tests/gateway/stub_upstream.py PORT` serves it for benchmarks. The last message says what happens: "status 429"
answers with that status, "slow" waits, "tools" calls two tools, "burst" pours out a long answer, "hang up", "half a
line", "no end", "garbage" and "wrong shape" break the stream in their way; everything else is said back word by word.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "İzmir"}'}},
    {"id": "call_b", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}},
]
BURST_WORDS = 20_000


class HungUp(Exception):  # noqa: N818 - what happened, not what went wrong here
    """The stub ends a connection in the middle, by raising."""


class Stub:
    """The stub's memory: what it was asked, and which adapters it has."""

    def __init__(self) -> None:
        self.models = ["big-model"]
        self.adapters: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.n_closed_early = 0

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.list_models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
            ]
        )

    async def list_models(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [{"id": n} for n in (*self.models, *self.adapters)]})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        if body["lora_name"] in self.adapters:
            message = f"The lora adapter '{body['lora_name']}' has already been loaded."
            return JSONResponse({"error": {"message": message, "code": 400}}, 400)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return JSONResponse({"error": {"message": f"The lora adapter '{name}' cannot be found."}}, 404)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        text = str(body["messages"][-1]["content"])
        if body["model"] not in (*self.models, *self.adapters):
            return JSONResponse({"error": {"message": "The model does not exist."}}, 404)
        if text.startswith("status "):
            status = int(text.split()[1])
            return JSONResponse({"error": {"message": f"no: {status}"}}, status, {"Retry-After": "7"})
        if text == "plain status":
            return PlainTextResponse("<html>Bad Request</html>", 400)
        if text == "slow":
            await asyncio.sleep(3)
        if body.get("stream"):
            return StreamingResponse(self.stream(body, text), media_type="text/event-stream")
        if text == "garbage":
            return PlainTextResponse("<html>OK</html>")
        if text == "wrong shape":
            return JSONResponse({"choices": [{"message": {"content": 5}}]})
        if text == "no choices":
            return JSONResponse({"choices": []})
        if text == "half a pair":
            raw = b'{"choices": [{"index": 0, "message": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}'
            return Response(raw, media_type="application/json")
        return JSONResponse(_answer(body, text))

    async def stream(self, body: dict[str, Any], text: str) -> AsyncIterator[bytes]:
        finished = False
        try:
            async for piece in self._pieces(body, text):
                yield piece
            finished = True
        except HungUp:
            finished = True
            raise
        finally:
            self.n_closed_early += not finished

    async def _pieces(self, body: dict[str, Any], text: str) -> AsyncIterator[bytes]:
        n = body.get("n") or 1
        for index in range(n):
            yield _chunk(index, {"role": "assistant", "content": ""})
        if text == "silent":
            await asyncio.sleep(3)
        if text == "tools":
            for delta in _tool_deltas():
                yield _chunk(0, delta)
            yield _chunk(0, {}, "tool_calls")
        else:
            words = ["word"] * BURST_WORDS if text == "burst" else text.split(" ")
            for place, word in enumerate(words):
                if text.startswith("drip"):
                    await asyncio.sleep(0.05)
                for index in range(n):
                    yield _chunk(index, {"content": word if place == 0 else f" {word}"})
            if text == "hang up":
                await asyncio.sleep(0.1)  # so that what was said arrives before the end does
                raise HungUp
            if text == "half a line":
                yield b'data: {"choices": [{"ind'
                return
            if text == "no end":
                return
            if text == "garbage":
                yield b"data: <html>\n\n"
            if text == "wrong shape":
                yield b'data: {"choices": [{"index": 0, "delta": {"content": 5}}]}\n\n'
            if text == "an error":
                yield b'data: {"error": {"message": "the engine died"}}\n\n'
            yield b": a comment, to keep the connection alive\n\n"
            for index in range(n):
                yield _chunk(index, {}, "stop")
        if body.get("stream_options", {}).get("include_usage"):
            yield _event({"object": "chat.completion.chunk", "choices": [], "usage": _usage(text, n)})
        yield b"data: [DONE]\n\n"


def _answer(body: dict[str, Any], text: str) -> dict[str, Any]:
    n = body.get("n") or 1
    message: dict[str, Any] = {"role": "assistant", "content": text}
    reason = "stop"
    if text == "tools":
        message, reason = {"role": "assistant", "content": None, "tool_calls": CALLS}, "tool_calls"
    return {
        "id": "theirs",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": index, "message": message, "finish_reason": reason} for index in range(n)],
        "usage": _usage(text, n),
    }


def _tool_deltas() -> list[dict[str, Any]]:
    """The calls as vLLM streams them, and with the nulls that other servers put in."""
    deltas: list[dict[str, Any]] = []
    for index, call in enumerate(CALLS):
        function: Any = call["function"]
        start = {"name": function["name"], "arguments": ""}
        deltas.append(
            {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": start}]}
        )
        for place in range(0, len(function["arguments"]), 4):
            piece = {"name": None, "arguments": function["arguments"][place : place + 4]}
            deltas.append({"tool_calls": [{"index": index, "id": None, "function": piece}]})
    return deltas


def _usage(text: str, n: int) -> dict[str, int]:
    words = len(text.split(" "))
    return {"prompt_tokens": words, "completion_tokens": words * n, "total_tokens": words * (n + 1)}


def _chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return _event({"id": "theirs", "object": "chat.completion.chunk", "choices": [choice], "usage": None})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(Stub().app, port=int(sys.argv[1]), log_level="warning")
