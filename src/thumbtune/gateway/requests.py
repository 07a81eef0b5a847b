"""What routes share: the gateway, who is calling, and the errors that every route may answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request

from thumbtune.gateway.identity import Identity
from thumbtune.gateway.schemas import ErrorBody
from thumbtune.gateway.service import Gateway

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request makes no sense; the message says where.",
        401: "No key, or one that is not good.",
        403: "The key may not do this.",
        404: "There is no such thing.",
        408: "The body came too slowly.",
        409: "It cannot be done as things stand.",
        413: "The body is too large.",
        429: "Too much in too short a time; Retry-After says when to come again.",
        500: "A fault of the gateway.",
        502: "A fault of the model's server.",
        503: "Busy, or the store is out; Retry-After says when to come again.",
        504: "The model's server did not answer in time.",
    }.items()
}


async def get_gateway(request: Request) -> Gateway:
    """The gateway of this app."""
    gateway: Gateway = request.app.state.gateway
    return gateway


TheGateway = Annotated[Gateway, Depends(get_gateway)]


async def identify(
    gateway: TheGateway,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    thumbtune_user: Annotated[
        str | None, Header(description="The end user, from a key that speaks for users.")
    ] = None,
) -> Identity:
    """Who is calling, by their API key."""
    return await gateway.doorkeeper.identify(authorization, thumbtune_user)


Caller = Annotated[Identity, Depends(identify)]


async def identify_admin(caller: Caller) -> Identity:
    """The same, for admins only."""
    caller.require()
    return caller


Admin = Annotated[Identity, Depends(identify_admin)]
