"""The text of one answer as it grows: tokens to whole characters, and no part of a stop string let out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream


@dataclass(eq=False)
class AnswerText:
    """Takes tokens, gives the text that can be sent; `tokenizer` is the one of the `tokenizers` library."""

    tokenizer: Any
    stops: Sequence[str]
    said: str = ""
    """What has been decoded."""
    n_sent: int = 0
    _stream: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))

    def add(self, token: int) -> tuple[str, bool]:
        """New text to send, and whether a stop string came."""
        self.said += self._stream.step(self.tokenizer, token) or ""
        return self._take(final=False)

    def end(self, whole: str) -> str:
        """What is left to send, now that nothing follows; `whole` is all tokens decoded at once."""
        if whole.startswith(self.said):  # the last bytes may be no character yet
            self.said = whole
        return self._take(final=True)[0]

    def _take(self, *, final: bool) -> tuple[str, bool]:
        found = [
            place
            for stop in self.stops
            if (place := self.said.find(stop, max(0, self.n_sent - len(stop)))) >= 0
        ]
        if found:
            self.said = self.said[: max(min(found), self.n_sent)]
        limit = len(self.said)
        if not found and not final:
            limit -= max((measure_overlap(self.said, stop) for stop in self.stops), default=0)
        text, self.n_sent = self.said[self.n_sent : limit], max(limit, self.n_sent)
        return text, bool(found)


def measure_overlap(text: str, stop: str) -> int:
    """How much of the text's end could be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
