"""The canary: what its votes show so far, drawn as they come, and the hand that ends it."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
from gradio.components.plot import PlotData

from thumbtune.gateway.canary_state import CanaryNow, read_canary
from thumbtune.gateway.page.canary_view import (
    draw_evidence,
    write_canary,
    write_evidence_hint,
    write_evidence_table,
    write_outlook,
    write_past,
)
from thumbtune.gateway.page.plain_text import as_html
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html, told, warn
from thumbtune.gateway.page.words import Words
from thumbtune.gateway.service import Gateway
from thumbtune.store.canaries import Canary, State, list_canaries

EVERY_SECONDS = 3.0
MOST_CANARIES = 30

Changes = dict[Any, Any]
Wish = tuple[State, str]
"""How a canary shall end, and which one was looked at."""


class CanaryTab:
    """Lays the canary out and answers its events; its timer runs while its tab is open."""

    def __init__(self, gateway: Gateway, words: Words) -> None:
        self.gateway = gateway
        self.words = words

    def lay_out(self) -> None:
        words = self.words
        with gr.Tab(words["canary"], id="canary") as self.tab:
            self.shown = gr.State(None)
            self.wish = gr.State(None)
            self.summary = show_html("", elem_id="canary")
            with gr.Column(visible=False, elem_id="end-canary") as self.change:
                with gr.Row(elem_id="end-line"):
                    self.promote = self._add_button("promote_now")
                    self.back = self._add_button("roll_back_now")
                with gr.Column(visible=False, elem_id="end-question") as self.confirm:
                    self.question = show_html("")
                    with gr.Row():
                        self.yes = self._add_button("confirm_end", variant="primary")
                        self.no = self._add_button("cancel", elem_id="keep-canary")
            self.outcome = show_html("", elem_id="canary-outcome")
            with gr.Column(visible=False, elem_id="evidence-part") as self.part:
                self.hint = show_html("", elem_id="evidence-hint")
                self.plot = gr.Plot(
                    label=words["evidence"], show_label=False, elem_id="evidence", visible=False, buttons=[]
                )
                with gr.Accordion(words["evidence_table"], open=False, elem_id="evidence-table"):
                    self.table = show_html("")
            self.outlook = show_html("", elem_id="outlook")
            self.past = show_html("", elem_id="past-canaries")
            show_html(f'<p class="hint">{as_html(words.say("refresh_hint", n=f"{EVERY_SECONDS:.0f}"))}</p>')
            self.timer = gr.Timer(EVERY_SECONDS, active=False)

    def _add_button(self, name: str, *, variant: Any = "secondary", elem_id: str | None = None) -> gr.Button:
        elem_id = elem_id or name.replace("_", "-")
        return gr.Button(
            self.words[name], variant=variant, size="md", scale=0, min_width=170, elem_id=elem_id
        )

    def connect(self) -> None:
        seen = [self.shown, self.summary, self.change, self.part, self.hint, self.plot, self.table]
        seen += [self.outlook, self.past]
        asked = [self.wish, self.confirm, self.question, self.outcome]
        self.tab.select(self.begin, None, [*seen, self.timer], **PRIVATE)
        self.timer.tick(self.look, None, seen, trigger_mode="once", **PRIVATE)
        self.promote.click(self.ask_to_promote, [self.shown], asked, **PRIVATE)
        self.back.click(self.ask_to_roll_back, [self.shown], asked, **PRIVATE)
        self.yes.click(self.do_it, [self.wish], [*asked, *seen], **PRIVATE)
        self.no.click(self.leave_it, None, asked, **PRIVATE)

    async def begin(self, request: gr.Request) -> Changes:
        return {**await self.look(request), self.timer: gr.Timer(active=True)}

    async def look(self, request: gr.Request) -> Changes:
        """The running canary as it stands, or the last one that ran."""
        with told(self.words):
            identity = find_identity(self.gateway, request)
            identity.require("voter")
            canaries, now = await asyncio.to_thread(self._read)
            changes = await asyncio.to_thread(self._show, canaries, now)
            can_end = identity.role == "admin" and bool(canaries) and canaries[0].state == "running"
            return {**changes, self.change: gr.Column(visible=can_end)}
        return {self.summary: gr.skip()}

    def _read(self) -> tuple[list[Canary], CanaryNow | None]:
        canaries = list_canaries(self.gateway.store, MOST_CANARIES)
        return canaries, read_canary(self.gateway.store, canaries[0]) if canaries else None

    def _show(self, canaries: list[Canary], now: CanaryNow | None) -> Changes:
        words = self.words
        if not canaries:
            return {
                self.shown: None,
                self.summary: f"<p>{as_html(words['no_canary'])}</p>",
                self.part: gr.Column(visible=False),
                self.outlook: "",
                self.past: "",
            }
        canary = canaries[0]
        running = canary.state == "running"
        summary = write_canary(canary, now, words)
        if not running:
            summary = f"<div><p>{as_html(words['no_canary_runs'])}</p>{summary}</div>"
        changes: Changes = {
            self.shown: canary,
            self.summary: summary,
            self.part: gr.Column(visible=now is not None),
            self.outlook: "" if now is None else write_outlook(now, words),
            self.past: write_past(canaries, words),
        }
        if now is not None:
            figure = draw_evidence(now, words)
            drawn = None if figure is None else PlotData(type="plotly", plot=figure)
            changes |= {
                self.hint: f"<div><h2>{as_html(words['evidence'])}</h2>{write_evidence_hint(now, words)}</div>",
                self.plot: gr.Plot(value=drawn, visible=drawn is not None),
                self.table: write_evidence_table(now, words),
            }
        return changes

    # The hand that ends it, in two steps

    def ask_to_promote(self, shown: Canary | None) -> Changes:
        return self._ask("promoted", "confirm_promote_now", shown)

    def ask_to_roll_back(self, shown: Canary | None) -> Changes:
        return self._ask("rolled_back", "confirm_roll_back_now", shown)

    def _ask(self, state: State, question: str, shown: Canary | None) -> Changes:
        if shown is None or shown.state != "running":
            warn(self.words["trouble_no_canary"])
            return self.leave_it()
        asked = self.words.say(question, version=shown.candidate)
        return {
            self.wish: (state, shown.id),
            self.confirm: gr.Column(visible=True),
            self.question: f"<p>{as_html(asked)}</p>",
            self.outcome: "",
        }

    def leave_it(self) -> Changes:
        return {self.wish: None, self.confirm: gr.Column(visible=False), self.outcome: ""}

    async def do_it(self, wish: Wish | None, request: gr.Request) -> Changes:
        """What was asked and confirmed; the gateway checks the role, and that it is this canary that runs."""
        changes = self.leave_it()
        if wish is None:
            return changes
        state, canary_id = wish
        with told(self.words):
            identity = find_identity(self.gateway, request)
            ended = await self.gateway.end_canary(state, identity, canary_id)
            sentence = self.words.say(f"ended_{state}", version=ended.candidate)
            changes[self.outcome] = f"<p>{as_html(sentence)}</p>"
        return changes | await self.look(request)
