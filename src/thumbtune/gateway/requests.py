"""What routes share: the gateway, who is calling, the errors that every route may answer, and the lean way in."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar, get_type_hints

from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from thumbtune.gateway.identity import Identity
from thumbtune.gateway.problems import Problem, describe_validation
from thumbtune.gateway.schemas import ErrorBody
from thumbtune.gateway.service import Gateway

_ERRORS: dict[int, str] = {
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
}
_EVERYWHERE = (400, 401, 403, 500, 503)


def list_errors(*more: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route for its documentation: those of every route, and more."""
    return {
        status: {"model": ErrorBody, "description": _ERRORS[status]}
        for status in sorted({*_EVERYWHERE, *more})
    }


OF_A_BODY = (408, 413)


Body = TypeVar("Body", bound=BaseModel)


class LeanRoute(APIRoute):
    """A route that is taken some thousand times a second: its function gets `(body, http)` and gives the response.

    FastAPI documents it and finds it; its dependencies and its serialisation are left out, which cost more than a vote
    does (docs/decisions/011).
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        model = get_type_hints(endpoint)["body"]

        async def handle(http: Request) -> Response:
            response: Response = await endpoint(await read_body(http, model), http)
            return response

        return handle


async def read_body(http: Request, model: type[Body]) -> Body:
    """A JSON body by its schema. Raises a 400 `Problem`."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site's page cannot say this
        raise Problem(400, "the body comes as Content-Type: application/json", code="invalid_request")
    try:
        content = json.loads(
            await http.body(), object_pairs_hook=_read_object, parse_constant=_refuse_constant
        )
        return model.model_validate(content)
    except ValidationError as error:
        raise describe_validation(error.errors()) from None
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON in UTF-8", code="invalid_request") from None


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):  # two labels in one vote are no vote
        raise Problem(400, "the body names one field twice", code="invalid_request")
    return content


def _refuse_constant(_: str) -> Any:
    raise Problem(400, "NaN and infinity are no JSON numbers", code="invalid_request")


USER_PARAMETER = {
    "name": "Thumbtune-User",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "description": "The end user, from a key that speaks for users.",
}


async def identify_caller(http: Request, gateway: Gateway) -> Identity:
    """Who sent this request, by their API key. Raises a 401 or 403 `Problem`."""
    return await gateway.doorkeeper.identify(
        http.headers.get("authorization"), http.headers.get("thumbtune-user")
    )


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
