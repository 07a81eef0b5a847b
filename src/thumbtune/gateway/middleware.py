"""What every request passes: a look at its host and size on the way in, headers and a log line on the way out.

Plain ASGI, since a stream must flow through it and a vote must not wait in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thumbtune.gateway.problems import Problem, log_fault
from thumbtune.gateway.telemetry import Telemetry

log = logging.getLogger("thumbtune.access")

VOTE_PATH = "/v1/feedback"

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""

API_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Frontier:
    """One middleware for all of it; `policies` are Content-Security-Policies by the beginning of the path."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        telemetry: Telemetry,
        hosts: Sequence[str] | None,
        origins: Sequence[str],
        is_open: Callable[[], bool],
        max_bytes: int,
        max_bytes_of: Mapping[str, int],
        policies: Mapping[str, str],
    ) -> None:
        self.app = app
        self.telemetry = telemetry
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.origins = frozenset(origins)
        self.is_open = is_open
        self.max_bytes = max_bytes
        self.max_bytes_of = max_bytes_of
        self._headers = {
            path: _encode({**API_HEADERS, "Content-Security-Policy": policy})
            for path, policy in policies.items()
        }
        self._headers[""] = _encode(API_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        path: str = scope["path"]
        headers = self._choose_headers(path)
        status, begun = 500, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                self.telemetry.observe_request(_route_of(scope), status, time.perf_counter() - started)
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        try:
            self._check_host(scope)
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                self._check_origin(scope)
                receive = await self._read_body(scope, receive)
            await self.app(scope, receive, send_with_headers)
        except Problem as problem:
            await _send_problem(problem, send_with_headers)
        except Exception as error:
            log_fault(error)
            if begun:  # the client sees that the answer broke off; the server's own log sees no message
                raise RuntimeError("an answer broke off: the line above says where") from None
            await _send_problem(Problem(500, "a fault of the gateway", code="internal"), send_with_headers)
        finally:
            if log.isEnabledFor(logging.INFO):
                self._log(scope, status, started)

    def _log(self, scope: Scope, status: int, started: float) -> None:
        milliseconds = round((time.perf_counter() - started) * 1e3, 2)
        route = {"method": scope["method"], "route": _route_of(scope)}
        log.info("request", extra=route | {"status": status, "ms": milliseconds})

    def _choose_headers(self, path: str) -> list[tuple[bytes, bytes]]:
        return next(headers for prefix, headers in self._headers.items() if path.startswith(prefix))

    def _check_host(self, scope: Scope) -> None:
        """A web page that renames its own host to this address must not speak for the person who reads it."""
        if self.hosts is None:
            return
        host = _find_header(scope, b"host")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.lower() not in self.hosts:
            raise Problem(
                400,
                "this host name is not served here: --allowed-hosts names those that are",
                code="unknown_host",
            )

    def _check_origin(self, scope: Scope) -> None:
        """While no key is needed, a page of another site could act by a form of its own: browsers say whose it is."""
        origin = _find_header(scope, b"origin")
        if not origin or not self.is_open():
            return
        if origin.partition("://")[2].lower() == _find_header(scope, b"host").lower():
            return
        if scope["path"] == VOTE_PATH and origin in self.origins:
            return
        raise Problem(
            403,
            "a page of another site may not do this: --allowed-origins names those that may vote",
            code="foreign_origin",
        )

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """The whole body, if it is small enough and comes in time; raises a `Problem` if not."""
        limit = self.max_bytes_of.get(scope["path"], self.max_bytes)
        declared = _find_header(scope, b"content-length")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(499, "the client hung up", code="client_gone")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(limit)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Problem(
                408,
                f"the body did not arrive within {BODY_SECONDS:g} s",
                code="slow_body",
                headers={"Connection": "close"},
            ) from None
        whole: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is not None:
                message, whole = whole, None
                return message
            return await receive()

        return replay


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _too_large(limit: int) -> Problem:
    return Problem(
        413, f"the body is larger than {limit} bytes", code="body_too_large", headers={"Connection": "close"}
    )


def _find_header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _route_of(scope: Scope) -> str:
    """The route's template, so that ids do not become metrics of their own."""
    route = scope.get("route")
    path: str | None = getattr(route, "path", None)
    return path or "unmatched"


async def _send_problem(problem: Problem, send: Send) -> None:
    body = json.dumps(problem.as_body()).encode()
    headers = _encode(problem.headers)
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
