"""The gateway as a web application: routes, the page, health, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from thumbtune.errors import StoreError
from thumbtune.gateway import routes_admin, routes_openai, routes_votes, sign_in
from thumbtune.gateway.middleware import VOTE_PATH, Frontier
from thumbtune.gateway.problems import Problem, describe_validation
from thumbtune.gateway.requests import Caller, TheGateway, list_errors
from thumbtune.gateway.schemas import ErrorBody
from thumbtune.gateway.service import Gateway
from thumbtune.gateway.settings import LOOPBACK_NAMES
from thumbtune.version import __version__

log = logging.getLogger("thumbtune.gateway")


class _App(FastAPI):
    """Its OpenAPI document says what it does: a schema's complaint is a 400 here, and a key goes into a header."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        document["components"]["schemas"].pop("HTTPValidationError", None)
        document["components"]["schemas"].pop("ValidationError", None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        return document


def create_app(gateway: Gateway) -> FastAPI:
    """The application; its lifespan starts and closes the gateway."""

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        if not gateway.is_ready:
            await gateway.start()
        try:
            yield
        finally:
            await gateway.close()

    app: FastAPI = _App(
        title="thumbtune",
        version=__version__,
        lifespan=live,
        docs_url=None,
        redoc_url=None,
        telemetry={"logs": False},  # its log records hold exceptions' messages, and those might hold texts
    )
    app.state.gateway = gateway
    for router in (routes_openai.router, routes_votes.router, routes_admin.router, sign_in.router):
        app.include_router(router)
    _add_health(app)
    _add_refusals(app)
    settings = gateway.settings
    policies = {sign_in.DOOR: sign_in.POLICY}
    if settings.page:
        from thumbtune.gateway.page import PAGE_CSP, mount_page

        policies[sign_in.PAGE] = PAGE_CSP
        app = mount_page(app, gateway, path=sign_in.PAGE, identify=sign_in.find_user)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
        )
    hosts = settings.allowed_hosts or ((*LOOPBACK_NAMES, settings.host) if settings.on_loopback else None)
    app.add_middleware(
        Frontier,
        telemetry=gateway.telemetry,
        hosts=hosts,
        origins=settings.allowed_origins,
        is_open=lambda: gateway.doorkeeper.is_open,
        max_bytes=settings.max_body_bytes,
        max_bytes_of={VOTE_PATH: settings.max_vote_bytes, "/sign-in": 2_000},
        policies=policies,
    )
    return app


class Status(BaseModel):
    status: str = Field(description="ok, or what is amiss.")


def _add_health(app: FastAPI) -> None:
    refused = {400: {"model": ErrorBody, "description": "This host name is not served here."}}
    open_to_all: dict[str, Any] = {"tags": ["operations"], "openapi_extra": {"security": []}}

    @app.get("/healthz", responses=refused, **open_to_all)  # type: ignore[arg-type]
    async def is_alive() -> Status:
        """The process runs."""
        return Status(status="ok")

    not_ready = {503: {"model": Status, "description": "Not yet, or no longer."}}

    @app.get("/readyz", response_model=Status, responses=refused | not_ready, **open_to_all)  # type: ignore[arg-type]
    async def is_ready(gateway: TheGateway) -> Response:
        """Chats and votes can be taken: the model is loaded and the store answers."""
        try:
            await asyncio.wait_for(asyncio.to_thread(gateway.store.check), 5.0)
        except (StoreError, TimeoutError):
            return JSONResponse({"status": "the store does not answer"}, 503)
        return (
            JSONResponse({"status": "ok"}) if gateway.is_ready else JSONResponse({"status": "not ready"}, 503)
        )

    text: dict[int | str, Any] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", tags=["operations"], response_model=None, responses=list_errors() | text)
    async def show_metrics(gateway: TheGateway, caller: Caller) -> Response:
        """Prometheus metrics; needs an admin's key where keys are needed."""
        caller.require()
        if gateway.committer is not None:
            gateway.telemetry.waiting.set(gateway.committer.n_waiting)
        return PlainTextResponse(
            gateway.telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _add_refusals(app: FastAPI) -> None:
    async def refuse(_: Request, problem: Any) -> Response:
        return JSONResponse(problem.as_body(), problem.status, headers=problem.headers)

    async def refuse_body(request: Request, error: Any) -> Response:
        return await refuse(request, describe_validation(error.errors()))

    async def refuse_route(request: Request, error: Any) -> Response:
        return await refuse(
            request, Problem(error.status_code, str(error.detail), code="http", headers=error.headers or {})
        )

    async def tell_store_trouble(request: Request, error: Any) -> Response:
        log.error("the store failed", extra={"problem": str(error)})
        return await refuse(
            request,
            Problem(
                503,
                "the store cannot be written or read now: nothing of this request was stored, send it again",
                code="store_unavailable",
                headers={"Retry-After": "2"},
            ),
        )

    app.add_exception_handler(Problem, refuse)
    app.add_exception_handler(RequestValidationError, refuse_body)
    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(StoreError, tell_store_trouble)
