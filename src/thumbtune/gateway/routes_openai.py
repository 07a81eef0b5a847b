"""`/v1/chat/completions` and `/v1/models`, as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from thumbtune.errors import StoreError
from thumbtune.gateway.middleware import log_fault
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.requests import ERRORS, USER_PARAMETER, Caller, LeanRoute, TheGateway, identify_caller
from thumbtune.gateway.schemas import ChatCompletion, ChatRequest, Model, ModelList
from thumbtune.gateway.service import Gateway, Serving
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
    return StreamingResponse(
        _as_events(gateway, serving, first, chunks),
        media_type="text/event-stream",
        headers={**serving.headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


router.add_api_route(
    "/chat/completions",
    chat,
    methods=["POST"],
    response_model=ChatCompletion,
    responses=ERRORS,
    route_class_override=LeanRoute,
    openapi_extra={"parameters": [USER_PARAMETER]},
)


@router.get("/models", responses=ERRORS)
async def list_models(gateway: TheGateway, caller: Caller) -> ModelList:
    """`champion`, and every version that can be asked for by name."""
    changed = 0 if gateway.champion is None else gateway.champion.changed_us // 1_000_000
    names = [CHAMPION, *gateway.engine.versions]
    return ModelList(data=[Model(id=name, created=changed, owned_by="thumbtune") for name in names])


async def _as_events(
    gateway: Gateway, serving: Serving, first: dict[str, Any] | None, chunks: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[bytes]:
    async with aclosing(chunks):  # type: ignore[type-var]
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
