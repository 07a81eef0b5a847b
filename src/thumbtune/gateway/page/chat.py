"""The chat: answers as they are written, a thumb on each, and after a press the reason for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from thumbtune.gateway.page.conversation import Conversation, Turn, answer
from thumbtune.gateway.page.plain_text import as_html, shorten, unshield_text
from thumbtune.gateway.page.session import PRIVATE, find_identity, show_html, told, warn
from thumbtune.gateway.page.words import REASONS, Words
from thumbtune.gateway.problems import Problem
from thumbtune.gateway.schemas import Feedback
from thumbtune.gateway.service import Gateway

Changes = dict[Any, Any]
"""Components and what becomes of them."""


class ChatTab:
    """Lays the chat out and answers its events."""

    def __init__(self, gateway: Gateway, words: Words) -> None:
        self.gateway = gateway
        self.words = words

    def lay_out(self) -> None:
        words = self.words
        with gr.Tab(words["chat"], id="chat") as self.tab:
            self.conversation = gr.State(Conversation())
            self.chatbot = gr.Chatbot(
                label=words["conversation"],
                show_label=False,
                elem_id="chat",
                height="min(58vh, 44rem)",
                buttons=["copy"],
                editable="all",
                layout="bubble",
                render_markdown=False,
                latex_delimiters=[],
                allow_tags=False,
                allow_file_downloads=False,
                group_consecutive_messages=False,
                placeholder=f'<p class="begin">{as_html(words["begin"])}</p>',
            )
            self.status = show_html("", elem_id="status")
            with gr.Column(visible=False, elem_id="why") as self.why:
                self.about = show_html("")
                self.reason = gr.Radio([], label=words["why"], show_label=False, elem_id="reasons")
                with gr.Row(elem_id="comment-line"):
                    self.comment = gr.Textbox(
                        label=words["comment"],
                        placeholder=words["comment_hint"],
                        max_length=10_000,
                        max_lines=6,
                        elem_id="comment",
                    )
                    self.save = gr.Button(words["save"], size="md", scale=0, min_width=110, elem_id="save")
            with gr.Row(elem_id="message-line"):
                self.message = gr.Textbox(
                    label=words["message"],
                    show_label=False,
                    placeholder=words["message_hint"],
                    autofocus=True,
                    max_lines=12,
                    max_length=100_000,
                    scale=1,
                    container=False,
                    elem_id="message",
                )
                self.send = gr.Button(
                    words["send"], variant="primary", scale=0, min_width=110, elem_id="send"
                )
                self.stop = gr.Button(words["stop"], scale=0, min_width=110, visible=False, elem_id="stop")
            self.anew = gr.Button(words["new_conversation"], size="sm", elem_id="anew")

    def connect(self) -> None:
        state = [self.conversation]
        shown = [self.chatbot, self.status, self.why, self.send, self.stop, self.anew]
        gr.on(
            [self.send.click, self.message.submit],
            self.ask,
            [*state, self.message],
            [self.message, *shown],
            **PRIVATE,
        )
        self.chatbot.retry(self.retry, state, shown, **PRIVATE)
        self.chatbot.edit(self.edit, state, shown, **PRIVATE)
        # not by Gradio's `cancels`: it leaves the chat in an error now and then, and the answer's event ends by itself
        self.stop.click(self.end_answer, state, None, **PRIVATE)
        self.anew.click(self.begin_anew, None, [self.conversation, self.message, *shown], **PRIVATE)
        asking = [self.about, self.reason, self.comment]
        self.chatbot.like(self.press, state, [self.chatbot, self.status, self.why, *asking], **PRIVATE)
        gr.on(
            [self.reason.input, self.comment.submit, self.save.click],
            self.explain,
            [*state, self.reason, self.comment],
            [self.status],
            **PRIVATE,
        )
        self.chatbot.copy(self.note_copy, state, None, **PRIVATE)

    # Answers

    async def ask(self, conversation: Conversation, text: str, request: gr.Request) -> AsyncIterator[Changes]:
        if not text.strip():
            return
        if conversation.is_answering:
            warn(self.words["is_answering"])
            return
        conversation.turns.append(Turn("user", text))
        yield {self.message: "", **self._show_answering(conversation)}
        async with aclosing(self._answer(conversation, request)) as changes:  # type: ignore[type-var]
            async for change in changes:
                yield change

    async def retry(self, conversation: Conversation, request: gr.Request) -> AsyncIterator[Changes]:
        """The last question once more; that says something about the answer that it had."""
        if conversation.is_answering:
            warn(self.words["is_answering"])
            return
        last = conversation.turns[-1] if conversation.turns else None
        if last is not None and last.completion_id is not None:
            with told(self.words):
                await self._vote(last, request, kind="retry")
        if not conversation.cut_to_question():
            return
        yield self._show_answering(conversation)
        async with aclosing(self._answer(conversation, request)) as changes:  # type: ignore[type-var]
            async for change in changes:
                yield change

    async def edit(
        self, conversation: Conversation, data: gr.EditData, request: gr.Request
    ) -> AsyncIterator[Changes]:
        """An edited answer is a better answer; an edited question is asked instead of the old one."""
        place: Any = data.index
        turn, text = conversation.find_turn(place), unshield_text(_read_text(data.value))
        if turn is None or conversation.is_answering:
            warn(self.words["is_answering"])
            yield {self.chatbot: conversation.as_shown()}
        elif turn.role == "user" and text.strip() and text != turn.text:
            turn.text = text
            conversation.cut_to_question(place)
            yield self._show_answering(conversation)
            async with aclosing(self._answer(conversation, request)) as changes:  # type: ignore[type-var]
                async for change in changes:
                    yield change
        else:
            yield {self.status: await self._correct(turn, text, request), **self._show(conversation)}

    async def _correct(self, turn: Turn, text: str, request: gr.Request) -> str:
        if turn.role == "user" or text == turn.text:
            return ""
        if turn.completion_id is None:
            warn(self.words["not_votable"])
        elif not text.strip():
            warn(self.words["edit_empty"])
        else:
            with told(self.words):
                await self._vote(turn, request, kind="edit", correction=text)
                turn.text = text
                return self.words["edit_saved"]
        return ""

    async def _answer(self, conversation: Conversation, request: gr.Request) -> AsyncIterator[Changes]:
        try:
            identity = find_identity(self.gateway, request)
        except Problem as problem:
            conversation.turns.append(Turn("assistant", "", trouble=self.words.explain(problem)))
        else:
            async with aclosing(answer(conversation, self.gateway, identity, self.words)) as steps:  # type: ignore[type-var]
                async for _ in steps:
                    yield {self.chatbot: conversation.as_shown()}
        yield self.settle(conversation)

    def settle(self, conversation: Conversation) -> Changes:
        """Nothing is being written: what there is, and the buttons for more."""
        return {
            self.send: gr.Button(visible=True),
            self.stop: gr.Button(visible=False),
            self.anew: gr.Button(interactive=True),
            **self._show(conversation),
        }

    async def end_answer(self, conversation: Conversation) -> None:
        conversation.stop()

    def begin_anew(self) -> Changes:
        fresh = Conversation()
        return {self.conversation: fresh, self.message: "", **self._show_quiet(), **self.settle(fresh)}

    def _show(self, conversation: Conversation) -> Changes:
        return {
            self.chatbot: gr.update(value=conversation.as_shown(), feedback_value=conversation.show_thumbs())
        }

    def _show_answering(self, conversation: Conversation) -> Changes:
        return {
            self.send: gr.Button(visible=False),
            self.stop: gr.Button(visible=True),
            self.anew: gr.Button(interactive=False),
            **self._show_quiet(),
            **self._show(conversation),
        }

    def _show_quiet(self) -> Changes:
        return {self.status: "", self.why: gr.Column(visible=False)}

    # Votes

    async def press(self, conversation: Conversation, data: gr.LikeData, request: gr.Request) -> Changes:
        """👍, 👎, or a press taken back: Gradio says True, False, or an empty string."""
        turn = conversation.find_turn(data.index)
        if turn is None or turn.completion_id is None:
            warn(self.words["not_votable"])
            return self._show(conversation)
        label = data.liked if isinstance(data.liked, bool) else None
        with told(self.words):
            said = {"retract": True} if label is None else {"label": label}
            status = await self._vote(turn, request, **said)
            turn.label, turn.reason, turn.comment = label, None, None
            conversation.voted = None if label is None else turn
            return {
                self.status: self.words[f"vote_{status}"],
                **self._show(conversation),
                **self._ask_why(turn),
            }
        return self._show(conversation)

    def _ask_why(self, turn: Turn) -> Changes:
        if turn.label is None:
            return {self.why: gr.Column(visible=False)}
        about = self.words.say("why_up" if turn.label else "why_down", answer=shorten(turn.text, 60))
        choices = [(self.words[name], name) for name in REASONS[turn.label]]
        return {
            self.why: gr.Column(visible=True),
            self.about: f"<p>{as_html(about)}</p>",
            self.reason: gr.Radio(choices=choices, value=None),
            self.comment: "",
        }

    async def explain(
        self, conversation: Conversation, reason: str | None, comment: str, request: gr.Request
    ) -> str:
        """The reason and the comment of the newest press."""
        turn = conversation.voted
        if turn is None or turn.label is None:
            return ""
        with told(self.words):
            comment = comment.strip()
            status = await self._vote(
                turn, request, label=turn.label, reason=reason or None, comment=comment or None
            )
            turn.reason, turn.comment = reason, comment
            return self.words[f"vote_{status}"]
        return ""

    async def note_copy(self, conversation: Conversation, data: gr.CopyData, request: gr.Request) -> None:
        turn = conversation.find_copied(_read_text(data.value))
        if turn is not None:
            with told(self.words):
                await self._vote(turn, request, kind="copy")

    async def _vote(self, turn: Turn, request: gr.Request, **said: Any) -> str:
        identity = find_identity(self.gateway, request)
        feedback = Feedback.model_validate({"completion_id": turn.completion_id, **said})
        return (await self.gateway.vote(feedback, identity)).status


def _read_text(value: Any) -> str:
    """The text of a message as Gradio's events give it: plain, or in a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("text")
    return value if isinstance(value, str) else ""
