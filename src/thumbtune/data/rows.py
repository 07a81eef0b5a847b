"""One row in, one `Example` or `Pair` out, or a refusal that says what is wrong with it.

Unpaired rows are {prompt, completion, label}, paired ones {prompt, chosen, rejected}; both may bring
`tools`, `chat_template_kwargs` and `weight`. Texts are plain strings or lists of chat messages. A row that holds images
is refused, since the text alone would be another question; other columns are ignored.

Guaranteed: nothing is repaired. Text is taken as it stands, spaces too. Chat messages lose only keys
whose value is null (Arrow files cannot leave a key out), and a message with tool calls gets `content:
null` where it has none, so that one conversation reads the same from every file format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from thumbtune.data.labels import parse_label
from thumbtune.data.refusals import (
    EMPTY_COMPLETION,
    EMPTY_PROMPT,
    HOLDS_IMAGES,
    MISSING_KEY,
    MIXED_KINDS,
    MIXED_SHAPES,
    NOT_AN_OBJECT,
    NOT_UTF8,
    WRONG_TYPE,
    RowRefused,
)
from thumbtune.records import Example, Pair, Text

IMAGE_COLUMNS = ("image", "images")
"""Where rows for vision models keep their pictures."""

TEXT_ALONE = (
    "thumbtune trains on text alone. Leave out the rows with images, drop the column if the answer does not need them, "
    "or train on this data with TRL's trainer"
)

COLUMNS = (
    "prompt",
    "completion",
    "label",
    "chosen",
    "rejected",
    "tools",
    "chat_template_kwargs",
    "finished",
    "chosen_finished",
    "rejected_finished",
    "weight",
    *IMAGE_COLUMNS,
)
"""The columns that are read; all others are ignored."""

TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected")


def parse_row(
    row: Mapping[str, Any], where: str, label_map: Mapping[str, bool] | None = None
) -> Example | Pair:
    """An `Example` or a `Pair` from one row's columns; a null column counts as absent, except for `label`.

    Where a paired row of conversations has no prompt, the messages that both begin with are the prompt.
    Raises `RowRefused`.
    """
    if not isinstance(row, Mapping):
        raise RowRefused(
            NOT_AN_OBJECT, where, f"the row is {_name_type(row)}, expected an object with columns"
        )
    _refuse_images(row, where)
    paired = row.get("chosen") is not None or row.get("rejected") is not None
    unpaired = row.get("completion") is not None or row.get("label") is not None
    if paired and unpaired:
        raise RowRefused(
            MIXED_SHAPES,
            where,
            "the row has chosen or rejected as well as completion or label: keep one set of columns",
        )
    names = ("prompt", "chosen", "rejected") if paired else ("prompt", "completion")
    texts: dict[str, Text] = {
        name: _read_text(name, row[name], where) for name in names if row.get(name) is not None
    }
    if paired and "prompt" not in texts:
        _split_off_shared_prompt(texts, row, where)
    for name in names:
        if name not in texts:
            raise _refuse_missing(name, row, where)
    _check_kinds(texts, where)
    for name in names:
        if _is_empty(texts[name]):
            reason = EMPTY_PROMPT if name == "prompt" else EMPTY_COMPLETION
            raise RowRefused(reason, where, f"{name} holds no text: fill it in, or drop the row")
    tools = _read_tools(row.get("tools"), where)
    kwargs = _read_template_kwargs(row.get("chat_template_kwargs"), where)
    weight = _read_weight(row.get("weight"), where)
    if paired:
        chosen_ended, rejected_ended = (
            _read_finished(name, row, where) for name in ("chosen_finished", "rejected_finished")
        )
        return Pair(
            texts["prompt"],
            texts["chosen"],
            texts["rejected"],
            where,
            tools,
            kwargs,
            chosen_ended,
            rejected_ended,
            weight,
        )
    if "label" not in row:
        raise _refuse_missing("label", row, where)
    label = parse_label(row["label"], where, label_map)
    finished = _read_finished("finished", row, where)
    return Example(texts["prompt"], texts["completion"], label, where, tools, kwargs, finished, weight)


def _refuse_images(row: Mapping[str, Any], where: str) -> None:
    for name in IMAGE_COLUMNS:
        held = row.get(name)
        if isinstance(held, str):  # a table of text writes an empty list so
            held = held.strip() not in ("", "[]")
        if held:
            raise RowRefused(HOLDS_IMAGES, where, f"the row holds {name!r}: {TEXT_ALONE}")


def _read_finished(name: str, row: Mapping[str, Any], where: str) -> bool:
    """Whether a completion ended by itself: a true or false, true where the column is absent."""
    value = row.get(name)
    if value is None:
        return True
    if not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        raise RowRefused(WRONG_TYPE, where, f"{name} is {value!r}, expected true or false")
    return str(value).lower() == "true"


def _read_weight(value: Any, where: str) -> float:
    """How much the row counts: a number above 0, 1 where the column is absent."""
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if isinstance(value, bool) or not 0 < weight < math.inf:
        raise RowRefused(
            WRONG_TYPE, where, f"weight is {value!r}, expected a number above 0: leave a row out instead"
        )
    return weight


def _refuse_missing(name: str, row: Mapping[str, Any], where: str) -> RowRefused:
    present = ", ".join(f"{str(key)[:30]}" for key in list(row)[:12]) or "no column at all"
    return RowRefused(
        MISSING_KEY,
        where,
        f"no {name!r}. A row needs prompt, completion and label, or prompt, chosen and rejected; "
        f"this one has {present}",
    )


def _split_off_shared_prompt(texts: dict[str, Text], row: Mapping[str, Any], where: str) -> None:
    chosen, rejected = texts.get("chosen"), texts.get("rejected")
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return  # the caller says that the prompt is missing
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise RowRefused(
            MISSING_KEY,
            where,
            "no 'prompt', and chosen and rejected begin with no message in common: add a prompt",
        )
    texts["prompt"], texts["chosen"], texts["rejected"] = chosen[:shared], chosen[shared:], rejected[shared:]


def _check_kinds(texts: Mapping[str, Text], where: str) -> None:
    kinds = {name: "plain text" if isinstance(text, str) else "chat messages" for name, text in texts.items()}
    if len(set(kinds.values())) > 1:
        described = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise RowRefused(MIXED_KINDS, where, f"{described}: make them all the same")


def _read_text(name: str, value: Any, where: str) -> Text:
    if isinstance(value, str):
        _check_encodable(name, value, where)
        return value
    if not isinstance(value, (list, tuple)):
        hint = ": put it in a list" if isinstance(value, Mapping) else ""
        raise RowRefused(
            WRONG_TYPE,
            where,
            f"{name} is {_name_type(value)}, expected text or a list of chat messages{hint}",
        )
    return [
        _read_message(f"{name} message {number}", message, where) for number, message in enumerate(value, 1)
    ]


def _read_message(what: str, message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
        raise RowRefused(WRONG_TYPE, where, f"{what} is no chat message: it needs a 'role' and a 'content'")
    kept = {str(key): value for key, value in message.items() if value is not None}
    tool_calls, content = kept.get("tool_calls"), kept.get("content")
    if tool_calls is not None and not (
        isinstance(tool_calls, (list, tuple)) and all(isinstance(call, Mapping) for call in tool_calls)
    ):
        raise RowRefused(WRONG_TYPE, where, f"{what}: tool_calls is no list of objects")
    if content is None:
        if not tool_calls:
            raise RowRefused(WRONG_TYPE, where, f"{what} ({kept['role']}) has neither content nor tool_calls")
        kept["content"] = None
    elif isinstance(content, str):
        _check_encodable(what, content, where)
    else:
        _check_parts(what, content, where)
    if len(kept) > 2:  # tool calls, names and the like
        _check_encodable(what, json.dumps(kept, ensure_ascii=False, default=str), where)
    return kept


def _check_parts(what: str, content: Any, where: str) -> None:
    if not isinstance(content, (list, tuple)):
        raise RowRefused(WRONG_TYPE, where, f"{what}: content is {_name_type(content)}, expected text")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _name_type(part)
            raise RowRefused(
                WRONG_TYPE, where, f"{what} holds a part of type {kind!r}: only text can be trained on"
            )
        _check_encodable(what, part["text"], where)


def _is_empty(text: Text) -> bool:
    if isinstance(text, str):
        return not text or text.isspace()
    return not any(message.get("tool_calls") or read_content(message).strip() for message in text)


def read_content(message: Mapping[str, Any]) -> str:
    """The text of one chat message, its text parts joined; "" for a message of tool calls alone."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _read_tools(value: Any, where: str) -> list[Mapping[str, Any]] | None:
    value = _read_json_cell("tools", value, where)
    if not value:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowRefused(WRONG_TYPE, where, f"tools is {_name_type(value)}, expected a list of objects")
    return list(value)


def _read_template_kwargs(value: Any, where: str) -> dict[str, Any] | None:
    value = _read_json_cell("chat_template_kwargs", value, where)
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise RowRefused(
            WRONG_TYPE, where, f"chat_template_kwargs is {_name_type(value)}, expected an object"
        )
    return dict(value)


def _read_json_cell(name: str, value: Any, where: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value if not isinstance(value, str) else None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowRefused(WRONG_TYPE, where, f"{name} is text that is not JSON ({error})") from None


def _check_encodable(name: str, text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowRefused(
            NOT_UTF8,
            where,
            f"{name} holds half a character, or bytes that are not UTF-8: save the text as UTF-8",
        ) from None


def _name_type(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", tuple: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
