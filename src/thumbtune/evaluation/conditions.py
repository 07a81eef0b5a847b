"""The same thumbs under other circumstances: fewer of them, out of balance, with wrong presses, one per prompt.

A condition changes rows, not the people behind them, so it works on any thumbs: simulated or collected. What is drawn
depends on the seed and the rows alone; larger draws hold smaller ones, and a row that is pressed wrongly at 10 % is
so at 30 % too, so that neighbouring conditions differ by what is asked about and not by luck.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from thumbtune.data.formats import Rows, describe_row
from thumbtune.data.pairs import group_by_prompt
from thumbtune.data.refusals import Refusals
from thumbtune.errors import ConfigError, DataError
from thumbtune.records import Example, Pair


@dataclass(frozen=True, slots=True)
class Condition:
    """What is changed about the thumbs. The default changes nothing."""

    rows: int | None = None
    """So many of them."""
    ratio: tuple[int, int] | None = None
    """👍 to 👎, such as (1, 10)."""
    noise: float = 0.0
    """Share of thumbs on the wrong button."""
    one_per_prompt: bool = False
    """One completion of each prompt."""

    @property
    def name(self) -> str:
        parts = [
            f"{self.rows} thumbs" if self.rows is not None else "",
            f"{self.ratio[0]}:{self.ratio[1]}" if self.ratio else "",
            f"{100 * self.noise:g}% wrong" if self.noise else "",
            "one per prompt" if self.one_per_prompt else "",
        ]
        return ", ".join(filter(None, parts)) or "as they are"


def label(over: str, condition: Condition) -> str:
    """What a condition is called where it is plain what is swept."""
    if over == "noise":
        return f"{100 * condition.noise:g}% wrong"
    if over == "ratio" and condition.ratio:
        return f"{condition.ratio[0]}:{condition.ratio[1]}"
    if over == "rows":
        return str(condition.rows)
    return "one" if condition.one_per_prompt else "all"


def vary(rows: Rows, condition: Condition, seed: int) -> Rows:
    """The thumbs under a condition: one per prompt first, then the ratio, their number, and wrong presses at last.

    Raises `DataError` where there are too few.
    """
    examples = sorted(rows.examples, key=lambda example: _draw(seed, "order", example))
    if condition.one_per_prompt:
        examples = [group[0] for group in group_by_prompt(examples).values()]
    if condition.ratio is not None:
        examples = _balance(examples, condition.ratio, condition.rows)
    elif condition.rows is not None:
        if condition.rows > len(examples):
            raise DataError(f"{condition.name}: there are {len(examples)} thumbs only")
        examples = examples[: condition.rows]
    flipped = [
        replace(example, label=not example.label)
        if _draw(seed, "noise", example) < condition.noise
        else example
        for example in examples
    ]
    random.Random(seed).shuffle(flipped)
    return rows_of(flipped, f"{rows.source} ({condition.name})") if condition != Condition() else rows


def rows_of(records: Sequence[Example] | Sequence[Pair], source: str) -> Rows:
    """Records as rows, with the digest of their content."""
    lines = [json.dumps(describe_row(row), sort_keys=True, ensure_ascii=False) for row in records]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    pairs: list[Any] = [row for row in records if isinstance(row, Pair)]
    examples: list[Any] = [row for row in records if isinstance(row, Example)]
    return Rows(examples, pairs, Refusals(), digest, len(records), source)


def parse_sweep(text: str) -> tuple[str, list[Condition]]:
    """`noise=0,0.1,0.3`, `ratio=1:1,1:10`, `rows=50,100` or `per-prompt=1,all` as what is swept and its conditions.

    With `@88` behind a ratio or a noise, each is drawn with so many rows: `ratio=1:1,1:10@88`.
    """
    over, equals, values = text.partition("=")
    values, at, number = values.partition("@")
    readers = {"noise": _read_noise, "ratio": _read_ratio, "rows": _read_rows, "per-prompt": _read_per_prompt}
    if not equals or over not in readers or not values:
        raise ConfigError(f"sweep {text!r}: write one of {', '.join(f'{name}=…' for name in readers)}")
    try:
        n_rows = _read_rows(number).rows if at else None
        if at and over == "rows":
            raise ValueError("rows takes no @: each value is a number of rows")
        conditions = [readers[over](value.strip()) for value in values.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"sweep {text!r}: {error or 'a value cannot be read'}. Examples: noise=0,0.1,0.3, ratio=1:1,1:10@88, "
            "rows=50,100, per-prompt=1,all"
        ) from None
    if n_rows is not None:
        conditions = [replace(condition, rows=n_rows) for condition in conditions]
    return over, conditions


def _read_noise(text: str) -> Condition:
    noise = float(text)
    if not 0 <= noise < 0.5:
        raise ValueError(f"a noise of {text} is no share below a half")
    return Condition(noise=noise)


def _read_ratio(text: str) -> Condition:
    up, colon, down = text.partition(":")
    if not colon or int(up) < 1 or int(down) < 1:
        raise ValueError(f"{text} is no ratio such as 1:10")
    return Condition(ratio=(int(up), int(down)))


def _read_rows(text: str) -> Condition:
    if int(text) < 2:
        raise ValueError(f"{text} rows are too few")
    return Condition(rows=int(text))


def _read_per_prompt(text: str) -> Condition:
    if text not in ("1", "all"):
        raise ValueError(f"{text!r} completions a prompt: 1 or all")
    return Condition(one_per_prompt=text == "1")


def _balance(examples: Sequence[Example], ratio: tuple[int, int], n_rows: int | None) -> list[Example]:
    """As many rows in this ratio as asked for, or as there are."""
    ups = [example for example in examples if example.label]
    downs = [example for example in examples if not example.label]
    up, down = ratio
    most = min(len(ups) / up, len(downs) / down)
    unit = most if n_rows is None else n_rows / (up + down)
    n_ups, n_downs = round(unit * up), round(unit * down)
    if n_ups > len(ups) or n_downs > len(downs) or not n_ups or not n_downs:
        raise DataError(
            f"{up}:{down} asks for {n_ups} 👍 and {n_downs} 👎, and there are {len(ups)} and {len(downs)}"
        )
    return [*ups[:n_ups], *downs[:n_downs]]


def _draw(seed: int, purpose: str, example: Example) -> float:
    """A number in [0, 1) that depends on seed, purpose and row only."""
    content = json.dumps(describe_row(example), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{content}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
