"""The loop: its turns with what each step gave, and for a version the line of models and votes that it comes from."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr

from thumbtune.errors import ConfigError
from thumbtune.gateway.page.loop_view import write_cycle, write_cycles, write_origin
from thumbtune.gateway.page.plain_text import as_html
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html, told
from thumbtune.gateway.page.words import Words
from thumbtune.gateway.service import Gateway
from thumbtune.store.cycles import Cycle, list_cycles
from thumbtune.store.models import list_versions, trace_lineage
from thumbtune.store.reading import count_by_version
from thumbtune.store.snapshots import find_snapshot

EVERY_SECONDS = 5.0
MOST_CYCLES = 50

Changes = dict[Any, Any]


class LoopTab:
    """Lays the turns out and answers its events; its timer runs while its tab is open."""

    def __init__(self, gateway: Gateway, words: Words) -> None:
        self.gateway = gateway
        self.words = words

    def lay_out(self) -> None:
        words = self.words
        with gr.Tab(words["loop"], id="loop") as self.tab:
            self.known = gr.State(())
            show_html(f"<h2>{as_html(words['cycles'])}</h2>")
            self.cycles = show_html("", elem_id="cycles")
            with gr.Row(elem_classes="choices"):
                self.number = gr.Dropdown([], label=words["cycle"], filterable=False, elem_id="cycle-choice")
            self.cycle = show_html("", elem_id="cycle")
            show_html(f"<h2>{as_html(words['origin'])}</h2>")
            with gr.Row(elem_classes="choices"):
                self.version = gr.Dropdown(
                    [], label=words["version"], filterable=False, elem_id="origin-choice"
                )
            self.origin = show_html("", elem_id="origin")
            show_html(f'<p class="hint">{as_html(words.say("refresh_hint", n=f"{EVERY_SECONDS:.0f}"))}</p>')
            self.timer = gr.Timer(EVERY_SECONDS, active=False)

    def connect(self) -> None:
        turns = [self.known, self.cycles, self.number, self.cycle]
        chosen = [self.number, self.known]
        origins = [self.version, self.origin]
        self.tab.select(self.begin, [*chosen, self.version], [*turns, *origins, self.timer], **PRIVATE)
        self.timer.tick(self.look, chosen, turns, trigger_mode="once", **PRIVATE)
        self.number.input(self.look, chosen, turns, **PRIVATE)
        self.version.input(self.trace, [self.version], [self.origin], **PRIVATE)

    async def begin(
        self, number: int | None, known: tuple[int, ...], version: str | None, request: gr.Request
    ) -> Changes:
        """The turns, and the champion's origin where no other version was chosen."""
        changes = await self.look(number, (), request)
        with told(self.words):
            find_identity(self.gateway, request).require("voter")
            names = [one.version for one in await asyncio.to_thread(list_versions, self.gateway.store)]
            champion = self.gateway.champion
            if version not in names:
                version = champion.version if champion is not None else None
            changes[self.version] = gr.Dropdown(choices=names[::-1], value=version)
            changes[self.origin] = await self.trace(version, request)
        return {**changes, self.timer: gr.Timer(active=True)}

    async def look(self, number: int | None, known: tuple[int, ...], request: gr.Request) -> Changes:
        """The turns as they stand. Whoever looked at the newest one looks at the next one once it begins."""
        with told(self.words):
            find_identity(self.gateway, request).require("voter")
            cycles = await asyncio.to_thread(list_cycles, self.gateway.store, MOST_CYCLES)
            ids = tuple(cycle.id for cycle in cycles)
            changes: Changes = {self.known: ids, self.cycles: write_cycles(cycles, self.words)}
            if not cycles:
                return {**changes, self.number: gr.Dropdown(visible=False), self.cycle: ""}
            if ids != known:
                if number not in ids or (known and number == known[0]):
                    number = ids[0]
                choices = [(self._name_cycle(cycle), cycle.id) for cycle in cycles]
                changes[self.number] = gr.Dropdown(choices=choices, value=number, visible=True)
            shown = next((cycle for cycle in cycles if cycle.id == number), cycles[0])
            return {**changes, self.cycle: write_cycle(shown, self.words)}
        return {self.known: known}

    def _name_cycle(self, cycle: Cycle) -> str:
        return self.words.say("turn_so_far", number=cycle.id)

    async def trace(self, version: str | None, request: gr.Request) -> str:
        """The version, its parents, and the votes behind each."""
        if not version:
            return ""
        with told(self.words):
            find_identity(self.gateway, request).require("voter")
            return await asyncio.to_thread(self._trace, version)
        return ""

    def _trace(self, version: str) -> str:
        store = self.gateway.store
        try:
            line = trace_lineage(store, version)
        except ConfigError:
            return f"<p>{as_html(self.words['no_versions'])}</p>"
        counts = {row["model_version"]: row for row in count_by_version(store)}
        digests = {one.snapshot for one in line if one.snapshot is not None}
        entries = {digest: find_snapshot(store, digest) for digest in digests}
        return write_origin(line, counts, {name: one for name, one in entries.items() if one}, self.words)
