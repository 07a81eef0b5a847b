"""How busy the gateway is now, refreshed while someone looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from thumbtune.gateway.page.plain_text import as_html
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html, told
from thumbtune.gateway.page.words import Words
from thumbtune.gateway.service import Gateway

EVERY_SECONDS = 2.0


class LiveTab:
    """Lays the numbers out; its timer runs while its tab is open."""

    def __init__(self, gateway: Gateway, words: Words) -> None:
        self.gateway = gateway
        self.words = words

    def lay_out(self) -> None:
        with gr.Tab(self.words["live"], id="live", elem_id="live-tab") as self.tab:
            self.tiles = show_html("", elem_id="live")
            show_html(f'<p class="hint">{as_html(self.words["live_hint"])}</p>')
            self.timer = gr.Timer(EVERY_SECONDS, active=False)

    def connect(self) -> None:
        self.tab.select(self.begin, None, [self.tiles, self.timer], **PRIVATE)
        self.timer.tick(self.look, None, [self.tiles], trigger_mode="once", **PRIVATE)

    async def begin(self, request: gr.Request) -> dict[Any, Any]:
        return {self.tiles: await self.look(request), self.timer: gr.Timer(active=True)}

    async def look(self, request: gr.Request) -> str:
        with told(self.words):
            find_identity(self.gateway, request).require("voter")
            return write_tiles(self.gateway.describe_state(), self.words)
        return ""


def write_tiles(state: Mapping[str, Any], words: Words) -> str:
    """The numbers as a list of terms, on one line of HTML."""
    minutes, seconds = divmod(int(state["uptime_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    tiles = {
        words["serving"]: state["champion"] or "–",
        words["ready"]: words["yes" if state["ready"] else "no"],
        words["uptime"]: words.say("uptime_value", hours=hours, minutes=minutes, seconds=seconds),
        words["writes_waiting"]: state["writes_waiting"],
        words["answers_since"]: state["completions"],
        words["up_since"]: state["votes_up"],
        words["down_since"]: state["votes_down"],
        **{words.find(name): _write_number(value) for name, value in state["engine"].items()},
    }
    terms = "".join(
        f"<div><dt>{as_html(name)}</dt><dd>{as_html(str(value))}</dd></div>" for name, value in tiles.items()
    )
    return f'<dl class="tiles">{terms}</dl>'


def _write_number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"
