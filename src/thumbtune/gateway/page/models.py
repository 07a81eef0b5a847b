"""The models: each version with its votes and where it comes from, which is in service, and the way there and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from thumbtune.gateway.page.numbers import write_day, write_rate
from thumbtune.gateway.page.plain_text import as_html, write_cells, write_table
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html, told, warn
from thumbtune.gateway.page.words import Words
from thumbtune.gateway.service import Gateway
from thumbtune.store.models import ModelVersion, list_versions
from thumbtune.store.reading import count_by_version

COLUMNS = ("version", "up_rate", "up", "down", "completions", "kind", "parent", "snapshot", "time")

Changes = dict[Any, Any]


class ModelsTab:
    """Lays the versions out and answers its events."""

    def __init__(self, gateway: Gateway, words: Words) -> None:
        self.gateway = gateway
        self.words = words

    def lay_out(self) -> None:
        words = self.words
        with gr.Tab(words["models"], id="models") as self.tab:
            self.wish = gr.State(None)
            self.versions = show_html("", elem_id="versions")
            with gr.Column(visible=False, elem_id="change") as self.change:
                show_html(f"<h2>{as_html(words['change_model'])}</h2>")
                with gr.Row(elem_id="change-line"):
                    self.choice = gr.Dropdown([], label=words["choose_version"], filterable=False)
                    self.promote = gr.Button(
                        words["promote"], size="md", scale=0, min_width=150, elem_id="promote"
                    )
                    self.back = gr.Button(words["go_back"], size="md", scale=0, min_width=270, elem_id="back")
                with gr.Column(visible=False, elem_id="confirm") as self.confirm:
                    self.question = show_html("")
                    with gr.Row():
                        self.yes = gr.Button(
                            words["confirm"],
                            variant="primary",
                            size="md",
                            scale=0,
                            min_width=150,
                            elem_id="yes",
                        )
                        self.no = gr.Button(words["cancel"], size="md", scale=0, min_width=150, elem_id="no")
                self.outcome = show_html("", elem_id="outcome")
            self.refresh = gr.Button(words["refresh"], size="sm", elem_id="refresh")

    def connect(self) -> None:
        shown = [self.versions, self.choice, self.back]
        asked = [self.wish, self.confirm, self.question, self.outcome]
        gr.on([self.tab.select, self.refresh.click], self.look, None, shown, **PRIVATE)
        self.promote.click(self.ask_to_promote, [self.choice], asked, **PRIVATE)
        self.back.click(self.ask_to_go_back, None, asked, **PRIVATE)
        self.yes.click(self.do_it, [self.wish], [*asked, *shown], **PRIVATE)
        self.no.click(self.leave_it, None, asked, **PRIVATE)

    async def look(self, request: gr.Request) -> Changes:
        """The versions as they stand."""
        with told(self.words):
            find_identity(self.gateway, request).require("voter")
            store, champion = self.gateway.store, self.gateway.champion
            versions = await asyncio.to_thread(list_versions, store)
            counts = {row["model_version"]: row for row in await asyncio.to_thread(count_by_version, store)}
            serving = champion.version if champion else None
            loaded = self.gateway.engine.versions
            # in a thread: the first interval imports SciPy
            table = await asyncio.to_thread(write_versions, versions, counts, serving, loaded, self.words)
            return {
                self.versions: table,
                self.choice: gr.Dropdown(choices=[name for name in loaded if name != serving], value=None),
                self.back: gr.Button(interactive=bool(champion and champion.previous)),
            }
        return {self.versions: ""}

    # The champion, in two steps

    def ask_to_promote(self, version: str | None) -> Changes:
        champion = self.gateway.champion
        if not version:
            warn(self.words["choose_first"])
            return self.leave_it()
        if champion is not None and champion.version == version:
            warn(self.words["is_in_service"])
            return self.leave_it()
        return self._ask(("promote", version), self.words.say("confirm_promote", version=version))

    def ask_to_go_back(self) -> Changes:
        champion = self.gateway.champion
        if champion is None or champion.previous is None:
            warn(self.words["trouble_no_way_back"])
            return self.leave_it()
        question = self.words.say("confirm_back", version=champion.previous)
        return self._ask(("back", champion.previous), question)

    def _ask(self, wish: tuple[str, str], question: str) -> Changes:
        return {
            self.wish: wish,
            self.confirm: gr.Column(visible=True),
            self.question: f"<p>{as_html(question)}</p>",
            self.outcome: "",
        }

    def leave_it(self) -> Changes:
        return {self.wish: None, self.confirm: gr.Column(visible=False), self.outcome: ""}

    async def do_it(self, wish: tuple[str, str] | None, request: gr.Request) -> Changes:
        """What was asked and confirmed; the gateway checks the role."""
        changes = self.leave_it()
        if wish is None:
            return changes
        act, version = wish
        with told(self.words):
            identity = find_identity(self.gateway, request)
            before = self.gateway.champion
            if act == "promote":
                pointer = await self.gateway.point_champion(version, identity)
            elif before is not None and before.previous == version:
                pointer = await self.gateway.point_back(identity)
            else:  # someone else changed it meanwhile: what was confirmed is not what would happen
                warn(self.words["trouble_no_way_back"])
                return changes | await self.look(request)
            sentence = self.words.say("now_in_service", version=pointer.version)
            changes[self.outcome] = f"<p>{as_html(sentence)}</p>"
        return changes | await self.look(request)


def write_versions(
    versions: Sequence[ModelVersion],
    counts: Mapping[str, Mapping[str, Any]],
    champion: str | None,
    loaded: Sequence[str],
    words: Words,
) -> str:
    """The table of versions and their lineage, as HTML on one line."""
    if not versions:
        return f"<p>{as_html(words['no_versions'])}</p>"
    rows = []
    for version in reversed(versions):
        count = counts.get(version.version, {})
        n_up, n_down = count.get("n_up", 0), count.get("n_down", 0)
        marks = _write_marks(version.version, champion, loaded, words)
        cells = {
            "rate": write_rate(n_up, n_down, words),
            "up": str(n_up),
            "down": str(n_down),
            "completions": str(count.get("n_completions", 0)),
            "kind": words.find(version.kind),
            "parent": version.parent or "–",
            "snapshot": (version.snapshot or "–")[:12],
            "time": write_day(version.created_us),
        }
        rows.append(f'<th scope="row">{as_html(version.version)}{marks}</th>{write_cells(cells)}')
    table = write_table([words[name] for name in COLUMNS], rows)
    lineage = _write_lineage(versions, champion, loaded, words)
    return f"<div>{table}<h2>{as_html(words['lineage'])}</h2>{lineage}</div>"


def _write_marks(version: str, champion: str | None, loaded: Sequence[str], words: Words) -> str:
    if version == champion:
        return f' <span class="mark serving">{as_html(words["in_service"])}</span>'
    return f' <span class="mark">{as_html(words["loaded"])}</span>' if version in loaded else ""


def _write_lineage(
    versions: Sequence[ModelVersion], champion: str | None, loaded: Sequence[str], words: Words
) -> str:
    """A tree of nested lists, parents above their children; a version whose parent is unknown is a root."""
    known = {version.version for version in versions}
    children: dict[str | None, list[str]] = {}
    for version in versions:
        parent = version.parent if version.parent in known and version.parent != version.version else None
        children.setdefault(parent, []).append(version.version)
    drawn: set[str] = set()

    def draw(names: Sequence[str]) -> str:
        items = []
        for name in names:
            if name not in drawn:  # parents that name each other in a ring would never end
                drawn.add(name)
                marks = _write_marks(name, champion, loaded, words)
                items.append(f"<li><span>{as_html(name)}{marks}</span>{draw(children.get(name, []))}</li>")
        return f"<ul>{''.join(items)}</ul>" if items else ""

    tree = draw(children.get(None, []))
    rest = draw([version.version for version in versions if version.version not in drawn])
    return f'<div class="lineage">{tree}{rest}</div>'
