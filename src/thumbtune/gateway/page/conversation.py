"""What is said in one session of the page. It is kept here: a browser names an answer by its place, never by an id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from thumbtune.errors import StoreError
from thumbtune.gateway.identity import Identity
from thumbtune.gateway.middleware import log_fault
from thumbtune.gateway.page.plain_text import shield_text
from thumbtune.gateway.page.words import Words
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.schemas import ChatRequest
from thumbtune.gateway.service import Gateway

TROUBLES = (Problem, StoreError, ValidationError)
"""What a person can be told about in words."""

SHOW_EVERY_SECONDS = 0.06
"""How often an answer that is being written is shown anew."""


@dataclass
class Turn:
    """One message, and the vote on it."""

    role: Literal["user", "assistant"]
    text: str
    completion_id: str | None = None
    label: bool | None = None
    reason: str | None = None
    comment: str | None = None
    trouble: str | None = None
    """Why there is no answer, or no whole one."""

    def as_shown(self) -> dict[str, Any]:
        """The message for Gradio's chat."""
        said = [self.text] if self.text else []
        text = "\n\n".join([*said, *([f"⚠ {self.trouble}"] if self.trouble else [])])
        return {"role": self.role, "content": [{"type": "text", "text": shield_text(text)}]}


@dataclass
class Conversation:
    """The turns of a session, oldest first."""

    turns: list[Turn] = field(default_factory=list)
    writing: asyncio.Task[None] | None = None
    """The newest answer, on its way."""
    voted: Turn | None = None
    """The answer whose vote may still be given a reason."""

    @property
    def is_answering(self) -> bool:
        return self.writing is not None and not self.writing.done()

    def stop(self) -> None:
        """Let the answer that is being written end where it is."""
        if self.writing is not None:
            self.writing.cancel()

    def as_messages(self) -> list[dict[str, str]]:
        """What the model gets to see; a question that met with trouble is left out, so that turns alternate."""
        kept: list[Turn] = []
        for turn in self.turns:
            if turn.trouble is None:
                kept.append(turn)
            elif kept and kept[-1].role == "user":
                kept.pop()
        return [{"role": turn.role, "content": turn.text} for turn in kept]

    def as_shown(self) -> list[dict[str, Any]]:
        """The value of Gradio's chat; an answer without a word yet is not shown."""
        return [turn.as_shown() for turn in self.turns if turn.text or turn.trouble]

    def show_thumbs(self) -> list[str | None]:
        """The pressed thumb of each answer, as Gradio names them."""
        names = {True: "Like", False: "Dislike", None: None}
        return [names[turn.label] for turn in self.turns if turn.role == "assistant"]

    def find_turn(self, place: Any) -> Turn | None:
        """The turn at a place that a browser named."""
        is_there = isinstance(place, int) and 0 <= place < len(self.turns)
        return self.turns[place] if is_there else None

    def find_copied(self, shown: Any) -> Turn | None:
        """The newest answer that is shown so."""
        answers = (turn for turn in reversed(self.turns) if turn.role == "assistant" and turn.completion_id)
        return next((turn for turn in answers if shield_text(turn.text) == shown), None)

    def cut_to_question(self, place: int | None = None) -> bool:
        """Forget what came after the question at `place`, or after the last one; False where there is none."""
        end = len(self.turns) - 1 if place is None else place
        while end >= 0 and self.turns[end].role != "user":
            end -= 1
        del self.turns[end + 1 :]
        return end >= 0


async def answer(
    conversation: Conversation, gateway: Gateway, identity: Identity, words: Words
) -> AsyncIterator[None]:
    """Let the model answer the last question; gives control back whenever there is more to show.

    `Conversation.stop`, or closing this early, stops the model; what was said stays and can be voted on.
    """
    messages = conversation.as_messages()
    turn = Turn("assistant", "")
    conversation.turns.append(turn)
    # a task of its own, since stopping must not wait for the model's next word
    writing = asyncio.create_task(_write(turn, messages, gateway, identity, words))
    conversation.writing = writing
    shown = ""
    try:
        while not writing.done():
            await asyncio.wait({writing}, timeout=SHOW_EVERY_SECONDS)
            if turn.text != shown:
                shown = turn.text
                yield
    finally:
        writing.cancel()
        await asyncio.wait({writing})


async def _write(
    turn: Turn, messages: list[dict[str, str]], gateway: Gateway, identity: Identity, words: Words
) -> None:
    is_whole = False
    try:
        request = ChatRequest.model_validate({"messages": messages, "stream": True})
        async with aclosing(gateway.stream_chat(request, identity)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                turn.completion_id = chunk["id"]
                for choice in chunk["choices"]:
                    turn.text += (choice.get("delta") or {}).get("content") or ""
        is_whole = True
    except Exception as error:
        if not isinstance(error, TROUBLES):
            log_fault(error)
        turn.trouble, turn.completion_id = words.explain(error), None
    finally:
        if not turn.text and turn.trouble is None:
            turn.trouble = words["no_answer" if is_whole else "stopped"]
