"""What every handler of the page needs: who the session is, and troubles told in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from thumbtune.gateway.identity import Identity
from thumbtune.gateway.middleware import log_fault
from thumbtune.gateway.page.conversation import TROUBLES
from thumbtune.gateway.page.plain_text import as_html
from thumbtune.gateway.page.words import Words
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.service import Gateway

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of every event: no API of Gradio's own, no overlay while it runs."""


def show_html(content: str = "", elem_id: str | None = None) -> gr.Markdown:
    """A place for our own HTML on one line; `gr.HTML` would need `unsafe-eval` in the Content-Security-Policy."""
    return gr.Markdown(content, elem_id=elem_id, latex_delimiters=[])


def find_identity(gateway: Gateway, request: gr.Request) -> Identity:
    """Who sends an event. Raises a 401 `Problem` where the session has ended."""
    if request.username is None:
        raise Problem(401, "this session has ended: sign in again", code="signed_out")
    return gateway.identity_of_session(request.username)


def warn(text: str) -> None:
    """Tell a trouble beside the page; the text is shown as it stands."""
    gr.Warning(as_html(text), title="")


@contextmanager
def told(words: Words) -> Iterator[None]:
    """Troubles within the block are told and go no further: Gradio would print them, with whatever they quote."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, TROUBLES):
            log_fault(error)
        warn(words.explain(error))
