"""An open page in a real browser, as its tests use it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from thumbtune.gateway.page.plain_text import unshield_text

CHROMIUM = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium binary: scripts/install-chromium installs one"
)


@dataclass
class Visit:
    """An open page, with all that it asked for and complained about."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Ask, and wait for the whole answer."""
        answers = self.page.locator("#chat .message.bot")
        before = answers.count()
        self.page.fill("#message textarea", text)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "n => document.querySelectorAll('#chat .message.bot').length > n", arg=before
        )
        self.page.wait_for_selector("#stop", state="hidden")

    def press(self, name: str) -> None:
        """A button of the newest answer."""
        self.page.locator(f"#chat .message-buttons-left button[aria-label='{name}']").last.click()

    def open_tab(self, name: str) -> None:
        """Open a tab as a person does: once more where Gradio was still drawing the page and did not hear it."""
        from playwright.sync_api import TimeoutError as NotHeard

        chosen = self.page.get_by_role("tab", name=name, selected=True)
        for _ in range(5):
            self.page.get_by_role("tab", name=name).click()
            with suppress(NotHeard):
                chosen.wait_for(timeout=3_000)
                return
        raise AssertionError(f"the tab {name} does not open")

    def wait_for(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for()

    @property
    def answers(self) -> list[str]:
        return [unshield_text(text) for text in self.page.locator("#chat .message.bot").all_inner_texts()]


LEFT_WHILE_LOADING = (
    "AbortError: signal is aborted without reason",
    "Unexpected error Connection errored out.",
)
"""What Gradio says of its own requests where a link is followed before the page has loaded, as on a busy machine."""


def note_complaint(visit: Visit, message: Any) -> None:
    if message.text.startswith(LEFT_WHILE_LOADING):
        return
    if message.type in ("error", "warning"):
        visit.complaints.append(f"{message.text} {message.location['url']}".strip())
