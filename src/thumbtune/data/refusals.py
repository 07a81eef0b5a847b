"""Rows that cannot be used: one exception for one row, one count for a whole file.

Nothing is dropped in silence: a refused row is either an error or a number by reason, with the first few
shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from thumbtune.errors import DataError

MESSAGES_PER_REASON = 3
"""How many refusals of one reason are kept in words; the others are only counted."""

NOT_UTF8 = "not_utf8"
LINE_TOO_LONG = "line_too_long"
BROKEN_JSON = "broken_json"
BROKEN_CSV = "broken_csv"
NOT_AN_OBJECT = "not_an_object"
MISSING_KEY = "missing_key"
WRONG_LABEL = "wrong_label"
WRONG_TYPE = "wrong_type"
EMPTY_PROMPT = "empty_prompt"
EMPTY_COMPLETION = "empty_completion"
MIXED_KINDS = "mixed_kinds"
"""Plain text beside chat messages in one row."""
MIXED_SHAPES = "mixed_shapes"
"""Unpaired and paired columns in one row, or both sorts of rows in one file."""
HOLDS_IMAGES = "holds_images"
"""A picture beside the text, which alone would be another question."""


class RowRefused(DataError):  # noqa: N818 - it says what happened to the row
    """One row cannot be used: `reason` is a slug to count by, the message says where, what and what to do."""

    def __init__(self, reason: str, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}" if where else what)
        self.reason = reason
        self.where = where


@dataclass
class Refusals:
    """Refused rows, counted by reason, with the first few of each reason in words."""

    by_reason: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    """In file order, each with file and line, at most `MESSAGES_PER_REASON` of one reason."""

    @property
    def total(self) -> int:
        return sum(self.by_reason.values())

    def add(self, refused: RowRefused) -> None:
        """Count one refused row, and keep its message if it is among the first of its reason."""
        self.by_reason[refused.reason] += 1
        if self.by_reason[refused.reason] <= MESSAGES_PER_REASON:
            self.messages.append(str(refused))

    def describe_counts(self) -> str:
        """The counts in one phrase, most frequent first: `3 missing_key, 1 wrong_label`."""
        return ", ".join(f"{count} {reason}" for reason, count in self.by_reason.most_common())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: total, counts by reason, messages."""
        return {"total": self.total, "by_reason": dict(self.by_reason), "messages": list(self.messages)}


class RowsRefused(DataError):  # noqa: N818 - the plural of RowRefused
    """A file has refused rows, and going on was not asked for or nothing is left; carries the `refusals`."""

    def __init__(self, message: str, refusals: Refusals, n_read: int) -> None:
        super().__init__(message)
        self.refusals = refusals
        self.n_read = n_read
