"""The votes: a table of those that stand, filters, and for one of them its conversation and every press."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from thumbtune.gateway.identity import Identity
from thumbtune.gateway.page.plain_text import as_html, read_content, shorten, write_cells, write_table
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html, told
from thumbtune.gateway.page.words import KINDS, REASONS, Words
from thumbtune.gateway.service import Gateway
from thumbtune.store.database import now_us
from thumbtune.store.reading import VoteFilter, count_by_version, list_history, list_votes

PAGE_ROWS = 25
ANY = ""
COLUMNS = ("number", "thumb", "reason", "comment", "question", "answer", "kind", "version", "time")
PRESS_COLUMNS = ("time", "thumb", "kind", "reason", "comment", "correction")
LABELS = {ANY: None, "up": True, "down": False}
DAYS = (1, 7, 30, 365)
THUMBS = {True: "👍", False: "👎", None: "↩"}

Changes = dict[Any, Any]
Row = Mapping[str, Any]


@dataclass
class Leaf:
    """The page of the table that a session looks at."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    befores: list[int | None] = field(default_factory=lambda: [None])
    """Where each page up to this one began: the ids that its votes come before."""
    has_more: bool = False


class VotesTab:
    """Lays the table out and answers its events."""

    def __init__(self, gateway: Gateway, words: Words) -> None:
        self.gateway = gateway
        self.words = words

    def lay_out(self) -> None:
        words = self.words
        any_of = [(words["any"], ANY)]
        kinds = [(words[kind], kind) for kind in KINDS]
        reasons = [(words[name], name) for name in dict.fromkeys((*REASONS[True], *REASONS[False]))]
        days = [(words[f"days_{n}"], str(n)) for n in DAYS]
        with gr.Tab(words["votes"], id="votes") as self.tab:
            self.leaf = gr.State(Leaf())
            with gr.Row(elem_classes="filters"):
                self.label = self._choose("thumb", [*any_of, ("👍", "up"), ("👎", "down")])
                self.kind = self._choose("kind", [*any_of, *kinds])
                self.reason = self._choose("reason", [*any_of, *reasons])
                self.version = self._choose("version", any_of)
                self.since = self._choose("since", [*any_of, *days])
                self.text = gr.Textbox(
                    label=words["comment_text"], max_length=200, max_lines=1, min_width=220
                )
            self.table = show_html("", elem_id="votes")
            self.chosen = gr.Textbox(
                visible="hidden", elem_id="chosen-vote"
            )  # `page.js` writes a row's id here
            with gr.Row(elem_classes="pager"):
                self.newer = gr.Button(words["newer"], size="sm", scale=0, min_width=120, interactive=False)
                self.older = gr.Button(words["older"], size="sm", scale=0, min_width=120, interactive=False)
                self.count = show_html("", elem_id="count")
            self.details = show_html("", elem_id="details")

    def _choose(self, name: str, choices: Sequence[tuple[str, str]]) -> gr.Dropdown:
        return gr.Dropdown(list(choices), value=ANY, label=self.words[name], min_width=130, filterable=False)

    def connect(self) -> None:
        choices = [self.label, self.kind, self.reason, self.version, self.since]
        filters = [*choices, self.text]
        shown = [self.leaf, self.table, self.newer, self.older, self.count, self.details]
        self.tab.select(self.open, filters, [self.version, *shown], **PRIVATE)
        gr.on(
            [*(choice.input for choice in choices), self.text.submit], self.filter, filters, shown, **PRIVATE
        )
        self.older.click(self.turn_to_older, [self.leaf, *filters], shown, **PRIVATE)
        self.newer.click(self.turn_to_newer, [self.leaf, *filters], shown, **PRIVATE)
        self.chosen.submit(self.show_vote, [self.leaf, self.chosen], [self.details], **PRIVATE)

    # Pages

    async def open(self, request: gr.Request, *filters: Any) -> Changes:
        """The first page, and the model versions that can be asked for."""
        changes = await self._read(Leaf(), filters, request)
        counts = await asyncio.to_thread(count_by_version, self.gateway.store)
        versions = [row["model_version"] for row in counts]
        choices = [(self.words["any"], ANY), *((name, name) for name in versions)]
        return {self.version: gr.Dropdown(choices=choices), **changes}

    async def filter(self, request: gr.Request, *filters: Any) -> Changes:
        return await self._read(Leaf(), filters, request)

    async def turn_to_older(self, leaf: Leaf, request: gr.Request, *filters: Any) -> Changes:
        befores = [*leaf.befores, leaf.rows[-1]["id"]] if leaf.has_more else leaf.befores
        return await self._read(Leaf(befores=befores), filters, request)

    async def turn_to_newer(self, leaf: Leaf, request: gr.Request, *filters: Any) -> Changes:
        return await self._read(Leaf(befores=leaf.befores[:-1] or [None]), filters, request)

    async def _read(self, leaf: Leaf, filters: Sequence[Any], request: gr.Request) -> Changes:
        note = ""
        with told(self.words):
            identity = find_identity(self.gateway, request)
            wanted = _as_filter(filters, identity)
            found = await asyncio.to_thread(
                list_votes, self.gateway.store, wanted, limit=PAGE_ROWS + 1, before_id=leaf.befores[-1]
            )
            leaf.rows, leaf.has_more = found[:PAGE_ROWS], len(found) > PAGE_ROWS
            note = self.words["own_votes" if wanted.user_key else "all_votes"]
        count = self.words.say("shown", n=len(leaf.rows), page=len(leaf.befores))
        return {
            self.leaf: leaf,
            self.table: self._write_table(leaf.rows),
            self.newer: gr.Button(interactive=len(leaf.befores) > 1),
            self.older: gr.Button(interactive=leaf.has_more),
            self.count: f"{count if leaf.rows else self.words['no_votes']} · {note}",
            self.details: self.words["select_a_vote"] if leaf.rows else "",
        }

    def _write_table(self, rows: Sequence[Row]) -> str:
        """The votes as HTML on one line; a row's number is a link, so that a keyboard reaches it."""
        if not rows:
            return ""
        body = []
        for row in rows:
            cells = {
                "thumb": THUMBS[row["label"]],
                "reason": self.words.find(row["reason"] or ""),
                "comment": shorten(row["comment"] or "", 80),
                "question": shorten(self._find_question(row), 80),
                "answer": shorten(self._find_answer(row), 80),
                "kind": self.words.find(row["kind"]),
                "version": row["model_version"],
                "time": _write_time(row["created_us"]),
            }
            link = f'<td><a href="#vote-{row["id"]}">{row["id"]}</a></td>'
            body.append(link + write_cells(cells))
        return write_table([self.words[name] for name in COLUMNS], body)

    def _find_question(self, row: Row) -> str:
        if row["messages"] is None:
            return self.words["erased"]
        asked = (message for message in reversed(row["messages"]) if message["role"] == "user")
        return read_content(next(asked, None))

    def _find_answer(self, row: Row) -> str:
        return self.words["erased"] if row["completion"] is None else read_content(row["completion"])

    # One vote

    async def show_vote(self, leaf: Leaf, chosen: str, request: gr.Request) -> str:
        """The conversation that the vote is about, and every press on it that the session may see."""
        row = next((row for row in leaf.rows if str(row["id"]) == chosen), None)
        if row is None:
            return ""
        with told(self.words):
            identity = find_identity(self.gateway, request)
            history = await asyncio.to_thread(list_history, self.gateway.store, row["completion_id"])
            if identity.role == "client":
                history = [press for press in history if press["user_key"] == identity.user_key]
            return self._write_vote(row, history)
        return ""

    def _write_vote(self, row: Row, history: Sequence[Row]) -> str:
        words = self.words
        said = [(message["role"], read_content(message)) for message in row["messages"] or ()]
        said.append(("assistant", self._find_answer(row)))
        turns = [self._write_turn(role, text) for role, text in said]
        if row["correction"]:
            turns.append(self._write_turn("correction", row["correction"]))
        table = write_table(
            [words[name] for name in PRESS_COLUMNS], [self._write_press(press) for press in history]
        )
        return (
            f'<div class="vote"><h2>{as_html(words["conversation"])}</h2>{"".join(turns)}'
            f"<h2>{as_html(words['presses'])}</h2>{table}</div>"
        )

    def _write_turn(self, role: str, text: str) -> str:
        name = self.words.find("correction" if role == "correction" else f"role_{role}")
        kind = role if role in ("user", "assistant", "correction") else "system"
        return (
            f'<div class="turn {kind}"><h3>{as_html(name)}</h3><div class="said">{as_html(text)}</div></div>'
        )

    def _write_press(self, press: Row) -> str:
        thumb = THUMBS[press["label"]]
        if press["label"] is None:
            thumb += f" {self.words['taken_back']}"
        return write_cells(
            {
                "time": _write_time(press["created_us"]),
                "thumb": thumb,
                "kind": self.words.find(press["kind"]),
                "reason": self.words.find(press["reason"] or ""),
                "comment": press["comment"] or "",
                "correction": press["correction"] or "",
            }
        )


def _as_filter(filters: Sequence[Any], identity: Identity) -> VoteFilter:
    """The chosen filters; a client's look at its own votes only."""
    label, kind, reason, version, since, text = filters
    text = (text or "").replace("\x00", "").strip()
    return VoteFilter(
        label=LABELS[label or ANY],
        kinds=(kind,) if kind else None,
        reason=reason or None,
        model_version=version or None,
        since_us=now_us() - int(since) * 86_400_000_000 if since else None,
        text=text or None,
        user_key=identity.user_key if identity.role == "client" else None,
    )


def _write_time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
