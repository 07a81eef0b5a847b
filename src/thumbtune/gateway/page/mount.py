"""The page on the gateway's application: one Gradio app a language, its shield, and the way to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from thumbtune.gateway.page.shield import COOKIE, Shield
from thumbtune.gateway.page.words import LANGUAGES, choose_language

if TYPE_CHECKING:
    from thumbtune.gateway.service import Gateway

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # read when Gradio is imported; else it calls home
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(
        10**12
    ),  # else each event is followed by a summary of 10,000 others
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
}
"""What Gradio is told by environment."""

FILES = {"page.js": "text/javascript", "page.css": "text/css", "thumb.svg": "image/svg+xml"}


def mount_page(
    app: FastAPI,
    gateway: Gateway,
    *,
    path: str = "/page",
    identify: Callable[[Request], str | None],
    sign_in_path: str = "/sign-in",
) -> FastAPI:
    """Mount the page at `path`: `path/en`, `path/tr`, and `path` itself, which chooses between them.

    `identify` gives a session's user name, or None for whoever has to sign in first.
    """
    os.environ.update(QUIET)
    import gradio as gr

    from thumbtune.gateway.page.build import build_page, build_theme

    def mount(language: str) -> None:
        gr.mount_gradio_app(
            app,
            build_page(gateway, language),
            f"{path}/{language}",
            auth_dependency=identify,
            theme=build_theme(),
            ssr_mode=False,
            show_error=False,  # the page says what went wrong; a traceback is for the log
            footer_links=[],
            run_history=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            max_file_size=1,
        )
        mounted = app.router.routes[-1].app  # type: ignore[attr-defined]
        mounted.state.gateway = gateway  # `identify` sees this application, not the one around it
        mounted.add_middleware(
            Shield, language=language, path=path, identify=identify, sign_in_path=sign_in_path
        )

    _add_own_files(app, path)
    for language in LANGUAGES:
        _run_in_a_loop(partial(mount, language))
    return app


def _run_in_a_loop(work: Callable[[], None]) -> None:
    """Gradio leaves open event loops behind where none is running."""

    async def run() -> None:
        work()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(run())
    else:
        work()


def _add_own_files(app: FastAPI, path: str) -> None:
    @app.get(path, include_in_schema=False)
    @app.get(f"{path}/", include_in_schema=False)
    async def choose(request: Request) -> Response:
        language = choose_language(request.cookies.get(COOKIE), request.headers.get("Accept-Language", ""))
        return RedirectResponse(
            f"{request.scope.get('root_path', '')}{path}/{language}/",
            headers={"Vary": "Accept-Language, Cookie"},
        )

    def add_file(name: str, media_type: str) -> None:
        content = files("thumbtune.gateway.page").joinpath(name).read_bytes()

        @app.get(f"{path}/{name}", include_in_schema=False, name=name)
        async def send_file() -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for name, media_type in FILES.items():
        add_file(name, media_type)
