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

_TOKENIZING_ARGUMENTS = {
    "tokenize",
    "tokenizer_kwargs",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
}
"""Arguments of `apply_chat_template` that say how the rendered text becomes ids."""


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
    _check_kinds(prompt, completion)
    if is_conversational(prompt):
        before, after = _template_arguments(tools, chat_template_kwargs, finished)
        prompt_ids = render_messages(tokenizer, prompt, **before)
        both_ids = render_messages(tokenizer, [*prompt, *completion], **after)
    else:
        prompt_text, both_text = _write_plainly(tokenizer, prompt, completion, finished)
        prompt_ids = list(tokenizer(prompt_text)["input_ids"])
        both_ids = list(tokenizer(both_text)["input_ids"])
    return _split_at_boundary(prompt_ids, both_ids)


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


def tokenize_examples(tokenizer: Any, examples: Sequence[Example]) -> list[Tokens]:
    """`tokenize_example` of each row, token for token, in batches where the tokenizer can: several times as fast.

    A fast tokenizer takes a batch on all cores, unless TOKENIZERS_PARALLELISM is false. Raises what one of the rows
    would raise, not always the first.
    """
    found: dict[int, Tokens] = {}
    texts: dict[bool, dict[int, tuple[str, str]]] = {
        True: {},
        False: {},
    }  # of chats and of plain texts, by row
    for number, example in enumerate(examples):
        if _can_batch(tokenizer, example):
            texts[is_conversational(example.prompt)][number] = _write_texts(tokenizer, example)
        else:
            found[number] = tokenize_example(tokenizer, example)
    for is_chat, rows in texts.items():
        ids = _tokenize_texts(tokenizer, [text for row in rows.values() for text in row], not is_chat)
        for number, prompt_ids, both_ids in zip(rows, ids[::2], ids[1::2], strict=True):
            found[number] = _split_at_boundary(prompt_ids, both_ids)
    return [found[number] for number in range(len(examples))]


def _tokenize_texts(tokenizer: Any, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    """Token ids of each text; one that occurs several times is tokenized once."""
    if not texts:
        return []
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(
        distinct,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    ids_of = dict(zip(distinct, ids, strict=True))
    return [ids_of[text] for text in texts]


def _can_batch(tokenizer: Any, example: Example) -> bool:
    """Whether the row's ids are those of its rendered text, so that text can be collected and tokenized at once."""
    from transformers import PreTrainedTokenizerBase

    if not getattr(tokenizer, "is_fast", False):
        return False
    if not is_conversational(example.prompt):
        return True
    has_own_way = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    return not has_own_way and not _TOKENIZING_ARGUMENTS & set(example.chat_template_kwargs or ())


def _write_texts(tokenizer: Any, example: Example) -> tuple[str, str]:
    """What the prompt alone, and prompt and completion together, read as."""
    _check_kinds(example.prompt, example.completion)
    if not is_conversational(example.prompt):
        return _write_plainly(tokenizer, example.prompt, example.completion, example.finished)
    before, after = _template_arguments(example.tools, example.chat_template_kwargs, example.finished)
    prompt = _apply_template(tokenizer, example.prompt, tokenize=False, **before)
    both = _apply_template(tokenizer, [*example.prompt, *example.completion], tokenize=False, **after)
    return prompt, both


def render_messages(
    tokenizer: Any, messages: Any, *, add_generation_prompt: bool, **template: Any
) -> list[int]:
    """Token ids of chat messages by the tokenizer's chat template. Raises `DataError` where it refuses them."""
    rendered = _apply_template(
        tokenizer,
        messages,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=add_generation_prompt,
        **template,
    )
    return list(rendered["input_ids"])


def _apply_template(tokenizer: Any, messages: Any, **arguments: Any) -> Any:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ConfigError(
            "the data holds chat messages, but this tokenizer has no chat template: "
            "use an instruct model, or plain-text prompts and completions"
        )
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **arguments)
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses these messages: {error}. Give them the roles and the order that this model "
            "knows, or drop the row"
        ) from error


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


def _check_kinds(prompt: Text, completion: Text) -> None:
    if is_conversational(prompt) != is_conversational(completion):
        raise DataError(
            "prompt and completion are of two kinds, one plain text and one chat messages: make both the same"
        )


def _template_arguments(
    tools: Sequence[Mapping[str, Any]] | None, chat_template_kwargs: Mapping[str, Any] | None, finished: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that render the prompt alone, and those that render it with its completion."""
    shared: dict[str, Any] = {"tools": list(tools) if tools else None, **(chat_template_kwargs or {})}
    # by dict(): a row that brings its own add_generation_prompt is an error, not a moved boundary
    alone = dict(add_generation_prompt=True, **shared)
    both = dict(add_generation_prompt=False, **shared)
    return alone, both if finished else {**both, "continue_final_message": True}


def _write_plainly(tokenizer: Any, prompt: Text, completion: Text, finished: bool) -> tuple[str, str]:
    """The prompt, and the prompt with its completion and one end-of-sequence token if that is finished."""
    assert isinstance(prompt, str)
    assert isinstance(completion, str)
    eos = tokenizer.eos_token or "" if finished else ""
    ended = completion if eos and completion.endswith(eos) else completion + eos
    return prompt, prompt + ended


def _split_at_boundary(prompt_ids: list[int], both_ids: list[int]) -> Tokens:
    boundary = _common_prefix_length(prompt_ids, both_ids)
    if boundary == len(both_ids):
        raise DataError("the completion renders to no token: give it text, or drop the row")
    return Tokens(both_ids[:boundary], both_ids[boundary:], boundary_moved=boundary < len(prompt_ids))


def _common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    for position, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return position
    return min(len(a), len(b))
