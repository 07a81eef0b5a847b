"""A deliberate mistake: one edit that must turn tests red (`test_deliberate_mistakes.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    name: str
    file: str
    right: str
    wrong: str
    red: tuple[str, ...]
    """Tests that must fail: file under tests/, then the test's name."""
