"""The page in one language: a title line and its tabs. What a tab shows and does stands in its own module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from thumbtune.gateway.page.canary import CanaryTab
from thumbtune.gateway.page.chat import ChatTab
from thumbtune.gateway.page.live import LiveTab
from thumbtune.gateway.page.loop import LoopTab
from thumbtune.gateway.page.models import ModelsTab
from thumbtune.gateway.page.plain_text import as_html
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html
from thumbtune.gateway.page.votes import VotesTab
from thumbtune.gateway.page.words import LANGUAGES, Words
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.service import Gateway
from thumbtune.store.keys import Role

AT_ONCE = 64
"""Events of one kind that run side by side; each of them mostly waits for the model or the disk."""

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def build_theme() -> gr.themes.Base:
    """Calm colours, the system's own fonts: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.emerald,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        font=FONT,
        font_mono=MONO,
    ).set(
        body_background_fill="#fffefb",
        body_background_fill_dark="#161719",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_label_text_color="*neutral_600",
        block_border_width="0px",
        block_shadow="none",
    )


def build_page(gateway: Gateway, language: str) -> gr.Blocks:
    """Gradio's blocks over a gateway; one set serves every session."""
    words = Words(language)
    chat, votes = ChatTab(gateway, words), VotesTab(gateway, words)
    models = ModelsTab(gateway, words)
    ticking = (CanaryTab(gateway, words), LoopTab(gateway, words), LiveTab(gateway, words))
    all_tabs = (chat, votes, models, *ticking)
    with gr.Blocks(title=words["title"], analytics_enabled=False, fill_height=True) as page:
        head = show_html(_write_head(words, None, "client"), elem_id="head")
        with gr.Tabs(elem_id="tabs") as tabs:
            for tab in all_tabs:
                tab.lay_out()
        for tab in all_tabs:
            tab.connect()
        _tick_only_where_looked_at(ticking, all_tabs)

        def greet(request: gr.Request) -> dict[Any, Any]:
            """What this session's role may see; the handlers check it again."""
            try:
                role = find_identity(gateway, request).role
            except Problem:
                role = "client"
            return {
                head: _write_head(words, request.username, role),
                # the chat is open from the start: whoever was quicker than this stays where they went
                tabs: gr.Tabs(selected="votes") if role == "voter" else gr.skip(),
                models.change: gr.Column(visible=role == "admin"),
            }

        page.load(greet, outputs=[head, tabs, models.change], **PRIVATE)
    page.queue(default_concurrency_limit=AT_ONCE, max_size=1_000, api_open=False)
    return page


def _tick_only_where_looked_at(ticking: Sequence[Any], all_tabs: Sequence[Any]) -> None:
    """Who opens a tab looks at no other: its timer alone goes on. One event, however many timers there are."""

    def connect(tabs: Sequence[Any], timers: list[gr.Timer]) -> None:
        def stop() -> dict[Any, Any]:
            return {timer: gr.Timer(active=False) for timer in timers}

        gr.on([tab.tab.select for tab in tabs], stop, None, timers, **PRIVATE)

    for opened in ticking:
        connect([opened], [other.timer for other in ticking if other is not opened])
    connect([tab for tab in all_tabs if tab not in ticking], [tab.timer for tab in ticking])


def _write_head(words: Words, username: str | None, role: Role) -> str:
    """The title line. Its class hides tabs, by `page.css`: Gradio 6.31 heeds no change of a tab's `visible`."""
    links = ""
    for language, table in LANGUAGES.items():
        current = ' class="current"' if language == words.language else ""
        links += f'<a href="../{language}/" hreflang="{language}" lang="{language}"{current}>{table["language"]}</a>'
    out = "" if username in (None, "local") else f'<a href="../../sign-out">{words["sign_out"]}</a>'
    return (
        f'<div class="title-line for-{role}"><h1>{words["title"]}</h1><p>{as_html(words["tagline"])}</p>'
        f"<nav>{links}{out}</nav></div>"
    )
