"""`/v1/chat/completions` and `/v1/models`, as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from thumbtune.errors import StoreError
from thumbtune.gateway.problems import Problem, log_fault
from thumbtune.gateway.requests import (
    OF_A_BODY,
    USER_PARAMETER,
    Caller,
    LeanRoute,
    TheGateway,
    identify_caller,
    list_errors,
)
from thumbtune.gateway.schemas import ChatCompletion, ChatRequest, Model, ModelList
from thumbtune.gateway.service import Gateway
from thumbtune.store.models import CHAMPION

router = APIRouter(prefix="/v1", tags=["OpenAI"])
log = logging.getLogger("thumbtune.gateway")


async def chat(body: ChatRequest, http: Request) -> Response:
    """An answer of the model in service (`champion`) or of a named version; with `stream`, as server-sent events."""
    gateway: Gateway = http.app.state.gateway
    serving = gateway.begin_chat(body, await identify_caller(http, gateway))
    if not body.stream:
        answer = await _while_connected(http, gateway.complete_chat(serving))
        return JSONResponse(answer, headers=serving.headers)
    chunks = gateway.stream_answer(serving)
    # the first piece first: a model that is busy or refuses gets its own status
    first = await _while_connected(http, _take_first(chunks))
    return _EventStream(first, chunks, serving.headers)


_EVENTS = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "properties": {"data": {"type": "string"}},
            "required": ["data"],
            "description": "With `stream`: `chat.completion.chunk` objects as JSON, then [DONE].",
        }
    }
}

router.add_api_route(
    "/chat/completions",
    chat,
    methods=["POST"],
    response_model=ChatCompletion,
    responses=list_errors(*OF_A_BODY, 404, 429, 502, 504) | {200: {"content": _EVENTS}},
    route_class_override=LeanRoute,
    openapi_extra={"parameters": [USER_PARAMETER]},
)


@router.get("/models", responses=list_errors())
async def list_models(gateway: TheGateway, caller: Caller) -> ModelList:
    """`champion`, and every version that can be asked for by name."""
    changed = 0 if gateway.champion is None else gateway.champion.changed_us // 1_000_000
    names = [CHAMPION, *gateway.engine.versions]
    return ModelList(data=[Model(id=name, created=changed, owned_by="thumbtune") for name in names])


class _EventStream(StreamingResponse):
    """Server-sent events that close their source however they end: also for a client that left without reading."""

    def __init__(
        self,
        first: dict[str, Any] | None,
        chunks: AsyncGenerator[dict[str, Any], None],
        headers: dict[str, str],
    ) -> None:
        self._chunks = chunks
        self._events = _as_events(first, chunks)
        headers = {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._chunks.aclose()  # where not one event was taken


async def _as_events(
    first: dict[str, Any] | None, chunks: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        try:
            if first is not None:
                yield _event(first)
            async for chunk in chunks:
                yield _event(chunk)
        except Problem as problem:
            yield _event(problem.as_body())
        except StoreError as error:
            log.error("an answer could not be stored", extra={"problem": str(error)})
            yield _event(
                Problem(503, "the answer could not be stored: it cannot be voted on", code="store").as_body()
            )
        except Exception as error:
            log_fault(error)
            yield _event(Problem(500, "a fault of the gateway", code="internal").as_body())
        yield b"data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _take_first(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(chunks, None)


async def _while_connected(http: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The work's result; cancelled as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_wait_for_hang_up(http))
    try:
        await asyncio.wait({task, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise Problem(499, "the client hung up", code="client_gone")
        return task.result()
    finally:
        hang_up.cancel()
        task.cancel()


async def _wait_for_hang_up(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
