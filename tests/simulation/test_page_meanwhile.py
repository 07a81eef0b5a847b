"""The page while a simulated cycle runs: what the loop does is seen without a reload."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.browsing import CHROMIUM, Visit, needs_browser, note_complaint
from gateway.house import wait_until
from gateway.scripted import find_free_port

pytestmark = needs_browser


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(240)
def test_turns_appear_on_the_page_as_they_run(tiny_model_path: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    port = find_free_port()
    asked = ["--model", str(tiny_model_path), "--out", str(tmp_path / "run"), "--page", str(port)]
    little = [
        "--cycles",
        "12",
        "--prompts",
        "12",
        "--held-out",
        "4",
        "--samples",
        "2",
        "--max-new-tokens",
        "8",
    ]
    quick = ["--chats", "320", "--canary-chats", "96", "--taste", "no_flattery", "--no-plant"]
    training = ["--training", "max_steps=2", "--training", "max_length=256"]
    command = [sys.executable, "-m", "thumbtune", "simulate", *asked, *little, *quick, *training]
    with (tmp_path / "output").open("w") as output, sync_playwright() as playwright:
        running = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until(lambda: is_up(port), 90)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            visit = Visit(browser.new_page(), f"http://127.0.0.1:{port}")
            visit.page.on("console", lambda message: note_complaint(visit, message))
            visit.page.on("request", lambda request: visit.requests.append(request.url))
            visit.page.goto(f"{visit.address}/page")
            visit.open_tab("Loop")
            rows = visit.page.locator("#cycles tbody tr")
            rows.first.wait_for(timeout=60_000)
            before = rows.count()
            visit.page.wait_for_function(
                "n => document.querySelectorAll('#cycles tbody tr').length > n", arg=before, timeout=60_000
            )
            assert running.poll() is None, "the simulation was over before it was looked at"
            assert visit.complaints == []
            assert all(url.startswith((visit.address, "data:", "blob:")) for url in visit.requests)
            browser.close()
        finally:
            running.terminate()
            running.wait(60)
