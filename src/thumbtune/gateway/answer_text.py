"""An answer's text, handed out while its tokens come: whole characters only, and nothing of a stop string.

A character may take several tokens and a stop string too, so that some text is held back until the next token says
what it was. The pieces together are what decoding all tokens at once gives, up to the first stop string; of a
character that the token limit cut in two, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class AnswerText:
    """Takes tokens, gives text. `is_stopped` once a stop string has come."""

    def __init__(self, backend: Any, stop: Sequence[str] = ()) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.is_stopped = False

    def add_token(self, token_id: int) -> str:
        """The text that can be shown now."""
        text = self._stream.step(self._backend, token_id)
        return "" if text is None or self.is_stopped else self._cut(self._held + text)

    def finish(self) -> str:
        """The text that was held back, once no further token comes."""
        text, self._held = self._held, ""
        return text

    def _cut(self, text: str) -> str:
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        shown = len(text) - max((_count_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[shown:]
        return text[:shown]


def _count_begun(text: str, stop: str) -> int:
    """How many characters at the text's end could be the stop string's beginning."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
