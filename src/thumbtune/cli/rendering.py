"""One row as the model sees it, for a terminal: what is trained, what is context, what is cut.

Text of strangers reaches a terminal here, so nothing of it is taken as markup or as a control sequence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from thumbtune.data.chat import Tokens, TruncationSide, tokenize_example, truncate
from thumbtune.records import Example

CUT_SHOWN_CHARACTERS = 40
_JOINERS = "\u200c\u200d"
"""Zero-width, but part of ordinary words and emoji."""


def render_example(
    tokenizer: Any,
    example: Example,
    *,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
    truncation: TruncationSide = "keep_end",
    with_colour: bool = True,
) -> Text:
    """A headline and the row's tokens as styled text; without colour the trained part stands in ⟦ ⟧.

    Raises `DataError` where the row renders to no token.
    """
    tokens = tokenize_example(tokenizer, example)
    fitted = truncate(
        tokens, max_length=max_length, max_prompt_length=max_prompt_length, truncation=truncation
    )
    thumb = "👍 desirable" if example.label else "👎 undesirable"
    if fitted is None:
        counts = f"dropped: {len(tokens.prompt_ids)} prompt tokens leave no room for the completion"
        return Text(f"── {example.where} · {thumb} · {counts}\n", style="bold")
    counts = f"prompt {len(fitted.prompt_ids)} tokens, trained {len(fitted.completion_ids)} tokens"
    text = Text()
    text.append(f"── {example.where} · {thumb} · {counts}\n", style="bold")
    cut_before, cut_after = _locate_prompt_cut(tokens, fitted, truncation)
    _append_cut(text, tokenizer, cut_before, "prompt")
    _append_tokens(text, tokenizer, fitted.prompt_ids, "dim")
    _append_cut(text, tokenizer, cut_after, "prompt")
    style = "black on green" if example.label else "black on red"
    if not with_colour:
        text.append("⟦")
    _append_tokens(text, tokenizer, fitted.completion_ids, style)
    if not with_colour:
        text.append("⟧")
    _append_cut(text, tokenizer, tokens.completion_ids[len(fitted.completion_ids) :], "completion")
    text.append("\n")
    return text


def show_controls(text: str) -> str:
    """The text with control and invisible characters made visible; a line break keeps breaking behind its ⏎."""
    return "".join(_show_character(character) for character in text)


def _show_character(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥\t"
    if character == "\x7f":
        return "␡"
    if character < " ":
        return chr(0x2400 + ord(character))
    if character in _JOINERS or unicodedata.category(character) not in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}:
        return character
    return f"‹U+{ord(character):04X}›"


def _locate_prompt_cut(
    tokens: Tokens, fitted: Tokens, truncation: TruncationSide
) -> tuple[list[int], list[int]]:
    if truncation == "keep_end":
        return tokens.prompt_ids[: fitted.prompt_cut], []
    return [], tokens.prompt_ids[len(fitted.prompt_ids) :]


def _append_cut(text: Text, tokenizer: Any, ids: Sequence[int], part: str) -> None:
    if not ids:
        return
    shown = show_controls(tokenizer.decode(list(ids))).replace("\n", "")
    if len(shown) > CUT_SHOWN_CHARACTERS:
        shown = shown[:CUT_SHOWN_CHARACTERS] + "…"
    text.append(f"✂⟨{len(ids)} {part} tokens cut: {shown}⟩", style="yellow")


def _append_tokens(text: Text, tokenizer: Any, ids: Sequence[int], style: str) -> None:
    """Runs of ordinary tokens decoded together, so that a character of several tokens stays whole."""
    special_ids = set(tokenizer.all_special_ids)
    run: list[int] = []
    for token_id in [*ids, None]:
        if token_id is not None and token_id not in special_ids:
            run.append(token_id)
            continue
        if run:
            text.append(show_controls(tokenizer.decode(run)), style=style)
            run = []
        if token_id is not None:
            text.append(show_controls(tokenizer.decode([token_id])), style=f"{style} bold")
