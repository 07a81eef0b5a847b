"""Text that stays text. What users and models wrote is shown as they wrote it, and never becomes a page's element.

Gradio's chat renders HTML even with Markdown off. A `<` or `&` with an invisible mark behind it opens neither a tag
nor a character reference, in any HTML parser; what comes back from the chat is freed of the marks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MARK = "\u2063"
"""INVISIBLE SEPARATOR; `page.js` takes it out of the clipboard."""


def shield_text(text: str) -> str:
    """The text for Gradio's chat."""
    return re.sub("[<&]", lambda found: found[0] + MARK, text)


def unshield_text(text: str) -> str:
    """The text as it was, back from Gradio's chat."""
    return text.replace(MARK, "")


def as_html(text: str) -> str:
    """The text inside our own HTML, which stands on one line: a blank line would end it for a Markdown parser."""
    return re.sub(r"\r\n|[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", "<br>", escape(text))


def write_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table on one line of HTML, which may scroll sideways: `heads` are texts, `rows` are HTML cells."""
    names = "".join(f'<th scope="col">{as_html(head)}</th>' for head in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def write_cells(cells: Mapping[str, str]) -> str:
    """Texts as HTML cells, each with its column's name as its class."""
    return "".join(f'<td class="{name}">{as_html(text)}</td>' for name, text in cells.items())


def shorten(text: str, length: int) -> str:
    """The text on one line, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def read_content(message: Mapping[str, Any] | None) -> str:
    """What a chat message says; tool calls as their arguments."""
    if message is None:
        return ""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content)
    calls = [call.get("function", {}) for call in message.get("tool_calls") or ()]
    said = [content] if content else []
    return "\n".join([*said, *(f"{call.get('name')}({call.get('arguments')})" for call in calls)])
