"""Votes: pressed one by one, imported in batches, looked at."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from thumbtune.gateway.problems import Problem
from thumbtune.gateway.requests import (
    OF_A_BODY,
    USER_PARAMETER,
    Admin,
    Caller,
    LeanRoute,
    TheGateway,
    identify_caller,
    list_errors,
)
from thumbtune.gateway.schemas import Feedback, ImportReceipt, ImportRequest, VoteReceipt
from thumbtune.gateway.service import Gateway
from thumbtune.records import VoteKind
from thumbtune.store.reading import VoteFilter, list_history, list_votes

router = APIRouter(prefix="/v1", tags=["votes"])


IDEMPOTENCY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    "description": "The same as `idempotency_key` in the body.",
}


async def vote(body: Feedback, http: Request) -> Response:
    """Press 👍 or 👎, change or take back a press. It is on disk when this answers 200.

    Who presses is known from the vote token in the body, or else from the API key. The newest press of a user on a
    completion counts; the same request twice is one vote.
    """
    gateway: Gateway = http.app.state.gateway
    if "authorization" in http.headers or body.vote_token is None:
        identity = await identify_caller(http, gateway)
    if body.vote_token is not None:
        identity = gateway.doorkeeper.identify_voter(body.vote_token, body.completion_id)
    key = http.headers.get("idempotency-key")
    if key is not None:
        if body.idempotency_key not in (None, key):
            raise Problem(400, "Idempotency-Key and idempotency_key differ: send one", code="invalid_request")
        if not 1 <= len(key) <= 128:
            raise Problem(400, "Idempotency-Key has 1 to 128 characters", code="invalid_request")
        body.idempotency_key = key
    receipt = await gateway.vote(body, identity)
    return Response(receipt.model_dump_json(), media_type="application/json")


router.add_api_route(
    "/feedback",
    vote,
    methods=["POST"],
    response_model=VoteReceipt,
    responses=list_errors(*OF_A_BODY, 404, 409, 429),
    route_class_override=LeanRoute,
    openapi_extra={
        "parameters": [USER_PARAMETER, IDEMPOTENCY_PARAMETER],
        "security": [{"key": []}, {}],  # or the vote token in the body
    },
)


@router.post("/import", responses=list_errors(*OF_A_BODY))
async def import_rows(body: ImportRequest, gateway: TheGateway, admin: Admin) -> ImportReceipt:
    """Completions and votes from another product. The same batch twice changes nothing."""
    return await asyncio.to_thread(gateway.import_rows, body, admin)


@router.get("/votes", responses=list_errors())
async def look_at_votes(
    gateway: TheGateway,
    caller: Caller,
    label: bool | None = None,
    kind: VoteKind | None = None,
    model_version: Annotated[str | None, Query(max_length=160)] = None,
    reason: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before_id: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> dict[str, Any]:
    """Current votes beside their completions, newest first; a client sees its own. `before_id` turns the page."""
    wanted = VoteFilter(
        label=label,
        kinds=None if kind is None else (kind,),
        model_version=_check(model_version),
        reason=_check(reason),
        user_key=caller.user_key if caller.role == "client" else None,
    )
    rows = await asyncio.to_thread(list_votes, gateway.store, wanted, limit=limit, before_id=before_id)
    return {"object": "list", "data": rows, "has_more": len(rows) == limit}


@router.get("/votes/{completion_id}/history", responses=list_errors(404))
async def look_at_history(completion_id: str, gateway: TheGateway, caller: Caller) -> dict[str, Any]:
    """Every press on a completion, oldest first."""
    caller.require("voter")
    return {
        "object": "list",
        "data": await asyncio.to_thread(list_history, gateway.store, _check(completion_id) or ""),
    }


def _check(text: str | None) -> str | None:
    """A text from the address line; refused where no database could hold it."""
    if text is not None and "\x00" in text:
        raise Problem(400, "a text holds the character U+0000", code="invalid_request")
    return text
