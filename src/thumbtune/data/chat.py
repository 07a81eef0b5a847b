"""The only place that renders a prompt: text or chat messages in, token ids out.

What is guaranteed: the completion's tokens are those of the model's own chat template, including the end of
turn, so that the policy learns to stop. The boundary between prompt and completion is where the tokens of
`prompt` and of `prompt + completion` diverge; a token that would straddle it belongs to the completion.

What is not: a template that renders an earlier turn differently once a later one exists (some reasoning
templates do) leaves a prompt that is shorter than at inference. Such rows are counted as `boundary_moved`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thumbtune.errors import ConfigError, DataError
from thumbtune.records import Example, Text

TruncationSide = Literal["keep_end", "keep_start"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One prompt and one completion as token ids, and what was done to fit them."""

    prompt_ids: list[int]
    completion_ids: list[int]
    prompt_cut: int = 0
    """Prompt tokens that truncation removed."""
    completion_cut: int = 0
    """Completion tokens that truncation removed."""
    boundary_moved: bool = False
    """True where the prompt alone renders differently from the prompt in front of its completion."""


def is_conversational(text: Text) -> bool:
    return not isinstance(text, str)


def tokenize(
    tokenizer: Any,
    prompt: Text,
    completion: Text,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Tokens:
    """Token ids of a prompt and of its completion, untruncated.

    Plain text gets the tokenizer's own special tokens and an end-of-sequence token behind the completion.
    Chat messages go through the chat template. A completion that is not `finished` gets no end of turn.
    Raises `DataError` if one part is text and the other messages, or if the completion renders to nothing.
    """
    if is_conversational(prompt) != is_conversational(completion):
        raise DataError(
            "prompt and completion are of two kinds, one plain text and one chat messages: make both the same"
        )
    if is_conversational(prompt):
        template: dict[str, Any] = {"tools": list(tools) if tools else None, **(chat_template_kwargs or {})}
        prompt_ids = render_messages(tokenizer, prompt, add_generation_prompt=True, **template)
        if not finished:
            template["continue_final_message"] = True
        both_ids = render_messages(tokenizer, [*prompt, *completion], add_generation_prompt=False, **template)
    else:
        assert isinstance(prompt, str)
        assert isinstance(completion, str)
        eos = tokenizer.eos_token or "" if finished else ""
        ended = completion if eos and completion.endswith(eos) else completion + eos
        prompt_ids = list(tokenizer(prompt)["input_ids"])
        both_ids = list(tokenizer(prompt + ended)["input_ids"])
    boundary = _common_prefix_length(prompt_ids, both_ids)
    if boundary == len(both_ids):
        raise DataError("the completion renders to no token: give it text, or drop the row")
    return Tokens(both_ids[:boundary], both_ids[boundary:], boundary_moved=boundary < len(prompt_ids))


def tokenize_example(tokenizer: Any, example: Example) -> Tokens:
    """`tokenize` of one row, with its tools and template arguments."""
    return tokenize(
        tokenizer,
        example.prompt,
        example.completion,
        tools=example.tools,
        chat_template_kwargs=example.chat_template_kwargs,
        finished=example.finished,
    )


def render_messages(
    tokenizer: Any, messages: Any, *, add_generation_prompt: bool, **template: Any
) -> list[int]:
    """Token ids of chat messages by the tokenizer's chat template. Raises `DataError` where it refuses them."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ConfigError(
            "the data holds chat messages, but this tokenizer has no chat template: "
            "use an instruct model, or plain-text prompts and completions"
        )
    try:
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
            **template,
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses these messages: {error}. Give them the roles and the order that this model "
            "knows, or drop the row"
        ) from error
    return list(rendered["input_ids"])


def tokenize_prompt(tokenizer: Any, prompt: Text, **template: Any) -> list[int]:
    """Token ids of a prompt alone, ready for a completion to be sampled behind it."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return render_messages(tokenizer, prompt, add_generation_prompt=True, **template)


def truncate(
    tokens: Tokens,
    *,
    max_length: int | None,
    max_prompt_length: int | None,
    truncation: TruncationSide = "keep_end",
) -> Tokens | None:
    """Cut a row to fit, or give None where nothing of the completion would be left.

    First the prompt is cut to `max_prompt_length`, keeping its end (the question) or its start (the system
    prompt); then the completion's end is cut so that both fit `max_length`. All lengths are in tokens.
    """
    prompt_ids, completion_ids = tokens.prompt_ids, tokens.completion_ids
    if max_prompt_length is not None and len(prompt_ids) > max_prompt_length:
        prompt_ids = (
            prompt_ids[len(prompt_ids) - max_prompt_length :]
            if truncation == "keep_end"
            else prompt_ids[:max_prompt_length]
        )
    room = None if max_length is None else max_length - len(prompt_ids)
    if room is not None and room < len(completion_ids):
        if room <= 0:
            return None
        completion_ids = completion_ids[:room]
    return Tokens(
        prompt_ids,
        completion_ids,
        prompt_cut=len(tokens.prompt_ids) - len(prompt_ids),
        completion_cut=len(tokens.completion_ids) - len(completion_ids),
        boundary_moved=tokens.boundary_moved,
    )


def template_digest(tokenizer: Any) -> str:
    """SHA-256 of the chat template (or of nothing), for the run's manifest."""
    template = tokenizer.chat_template or ""
    return hashlib.sha256(str(template).encode()).hexdigest()


def _common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))
