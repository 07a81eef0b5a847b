"""Fixtures of the gateway's tests: a store in a folder of its own, a gateway over it, and clients that speak HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.browsing import CHROMIUM, Visit, note_complaint
from gateway.house import TIMEOUT, Keyed, Served, wait_until
from gateway.scripted import ScriptedEngine, build_gateway, serve_gateway

Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve_one(
    tmp_path_factory: pytest.TempPathFactory, find_store_url: Callable[[Path], str]
) -> Iterator[Serve]:
    """Serves a gateway over a new store, with settings; it runs until the module's tests are done."""
    with ExitStack() as stack:

        def start(engine: Any = None, folder: Path | None = None, **settings: Any) -> Served:
            folder = folder or tmp_path_factory.mktemp("store")
            engine = engine or ScriptedEngine()
            gateway = build_gateway(find_store_url(folder), folder, engine, **settings)
            address = stack.enter_context(serve_gateway(gateway))
            http = stack.enter_context(httpx.Client(base_url=address, timeout=TIMEOUT))
            return Served(address, gateway, engine, http)

        yield start


@pytest.fixture(scope="module")
def open_house(serve_one: Serve) -> Served:
    """On loopback, without any key: whoever comes is the person at this machine."""
    return serve_one(race_seconds=0.3)


@pytest.fixture(scope="module")
def keyed(serve_one: Serve) -> Keyed:
    """With a key of each role."""
    served = serve_one(race_seconds=0.3)
    house = Keyed(served.address, served.gateway, served.engine, served.http)
    house.admin, house.client, house.voter = (house.make_key(role) for role in ("admin", "client", "voter"))
    house.speaker = house.make_key("client", speaks_for_users=True)
    wait_until(lambda: house.http.get("/v1/models").status_code == 401)
    return house


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, house: Served) -> Iterator[Callable[..., Visit]]:
    """Open the page; at the end, it must have been quiet and have asked nobody else."""
    visits = []

    def open_page(path: str = "/page", address: str | None = None, **options: Any) -> Visit:
        context = browser.new_context(**{"locale": "en-US", **options})
        context.set_default_timeout(30_000)  # a busy machine is not a broken page
        visit = Visit(context.new_page(), address or house.address)
        visits.append((context, visit))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("console", lambda message: note_complaint(visit, message))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.goto(visit.address + path)
        if visit.page.locator("#key").count() == 0:
            visit.page.wait_for_selector("#message textarea")
        return visit

    yield open_page
    for context, _ in visits:
        context.close()
    for _, visit in visits:
        outside = [url for url in visit.requests if not url.startswith((visit.address, "data:"))]
        assert outside == []
        assert visit.complaints == []
