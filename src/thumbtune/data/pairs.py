"""Between pairs and thumbs: a pair is two thumbs, and thumbs contain pairs where one prompt has both.

Both directions keep the count: what `pair_thumbs` cannot use is counted by reason, and used and left over
add up to what came in.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from thumbtune.errors import ConfigError
from thumbtune.records import Example, Pair, text_key

Row = TypeVar("Row", Example, Pair)

NO_COUNTERPART = "no_counterpart"
"""The prompt has thumbs of one class only."""
SURPLUS = "surplus"
"""The prompt has more of this class than of the other."""
CONTRADICTION = "contradiction"
"""All that was left to pair it with is the same text with the other thumb."""
OVER_CAP = "over_cap"
"""The prompt has more pairs than `max_pairs_per_prompt`."""


@dataclass(frozen=True)
class ThumbPairs:
    """Pairs that the thumbs contain, and how many thumbs went unused."""

    pairs: list[Pair]
    n_used: int
    """Examples that stand in a pair: two per pair."""
    left_over: dict[str, int] = field(default_factory=dict)
    """Examples in no pair, by reason."""


def unpair(pairs: Iterable[Pair]) -> list[Example]:
    """Two examples per pair, in the order chosen, rejected, chosen, …: chosen is True, rejected False. Both have the
    pair's weight."""
    return [
        Example(
            pair.prompt,
            text,
            label,
            f"{pair.where}{side}",
            pair.tools,
            pair.chat_template_kwargs,
            ended,
            pair.weight,
        )
        for pair in pairs
        for text, label, side, ended in (
            (pair.chosen, True, " chosen", pair.chosen_finished),
            (pair.rejected, False, " rejected", pair.rejected_finished),
        )
    ]


def pair_thumbs(
    examples: Sequence[Example], *, max_pairs_per_prompt: int | None = None, seed: int = 0
) -> ThumbPairs:
    """As many pairs 👍 over 👎 under one prompt as there are, each example in at most one of them.

    Prompts are one if their text, tools and template arguments are equal. One text with both thumbs is never paired
    with itself. Which 👍 meets which 👎 is drawn from `seed` and the prompt alone, so that rows of other prompts change
    nothing. A pair weighs as much as the lighter of its halves. Raises `ConfigError` on a cap below 1.
    """
    if max_pairs_per_prompt is not None and max_pairs_per_prompt < 1:
        raise ConfigError(
            f"max_pairs_per_prompt is {max_pairs_per_prompt}: expected at least 1, or None for no cap"
        )
    pairs: list[Pair] = []
    left_over: Counter[str] = Counter()
    for prompt_key, group in group_by_prompt(examples).items():
        ups = [example for example in group if example.label]
        downs = [example for example in group if not example.label]
        if not ups or not downs:
            left_over[NO_COUNTERPART] += len(group)
            continue
        matched, n_contradicting = _match_one_to_one(ups, downs, random.Random(f"{seed}\n{prompt_key}"))
        kept = matched[:max_pairs_per_prompt]
        pairs += [_join_pair(up, down) for up, down in kept]
        left_over[CONTRADICTION] += n_contradicting
        left_over[SURPLUS] += len(group) - 2 * len(matched) - n_contradicting
        left_over[OVER_CAP] += 2 * (len(matched) - len(kept))
    return ThumbPairs(pairs, 2 * len(pairs), {reason: count for reason, count in left_over.items() if count})


def cap_pairs(pairs: Iterable[Pair], most: int, *, seed: int = 0) -> tuple[list[Pair], int]:
    """At most so many pairs of each prompt, drawn by the seed and in their order, and how many are left out."""
    if most < 1:
        raise ConfigError(f"max_pairs_per_prompt is {most}: expected at least 1, or None for no cap")
    return _draw_per_prompt(pairs, most, seed)


def keep_one_per_prompt(examples: Iterable[Example], *, seed: int = 0) -> tuple[list[Example], int]:
    """One completion of each prompt, drawn by the seed and in their order, and how many are left out."""
    return _draw_per_prompt(examples, 1, seed)


def _draw_per_prompt(rows: Iterable[Row], most: int, seed: int) -> tuple[list[Row], int]:
    groups: dict[str, list[int]] = {}
    everything = list(rows)
    for place, row in enumerate(everything):
        groups.setdefault(key_prompt(row), []).append(place)
    kept = {
        place
        for key, places in groups.items()
        for place in random.Random(f"{seed}\n{key}").sample(places, min(most, len(places)))
    }
    return [everything[place] for place in sorted(kept)], len(everything) - len(kept)


def group_by_prompt(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Examples by what their prompt renders from: its text or messages, tools and template arguments."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(key_prompt(example), []).append(example)
    return groups


def key_prompt(row: Example | Pair) -> str:
    """A string that is equal exactly where two rows' prompts, tools and template arguments are equal."""
    kind = "text" if isinstance(row.prompt, str) else "messages"
    key = f"{kind}\n{text_key(row.prompt)}"
    if row.tools or row.chat_template_kwargs:
        key += "\n" + json.dumps(
            [row.tools, row.chat_template_kwargs], sort_keys=True, default=_write_plainly
        )
    return key


def _match_one_to_one(
    ups: Sequence[Example], downs: Sequence[Example], rng: random.Random
) -> tuple[list[tuple[Example, Example]], int]:
    """Random pairs of unequal text, as many as there can be, and how many are left to clash.

    Both sides are shuffled and laid side by side, the shorter one filled up with None. Where a text meets
    itself, its 👎 is swapped with another place that the text does not touch. If no such place is left,
    then every pair holds this text already, and no other matching has more pairs.
    """
    size = max(len(ups), len(downs))
    up_side: list[Example | None] = [*rng.sample(ups, len(ups)), *[None] * (size - len(ups))]
    down_side: list[Example | None] = [*rng.sample(downs, len(downs)), *[None] * (size - len(downs))]
    up_texts = [text_key(up.completion) if up else None for up in up_side]
    down_texts = [text_key(down.completion) if down else None for down in down_side]
    clashes: dict[str, list[int]] = {}
    for place, (up_text, down_text) in enumerate(zip(up_texts, down_texts, strict=True)):
        if up_text is not None and up_text == down_text:
            clashes.setdefault(up_text, []).append(place)
    n_contradicting = 0
    for text, places in clashes.items():
        other = 0
        for place in places:
            if up_texts[place] != down_texts[place]:
                continue  # an earlier swap has parted them
            while other < size and text in (up_texts[other], down_texts[other]):
                other += 1
            if other == size:
                n_contradicting += 2
                continue
            down_side[place], down_side[other] = down_side[other], down_side[place]
            down_texts[place], down_texts[other] = down_texts[other], down_texts[place]
    matched = [
        (up, down)
        for up, down, up_text, down_text in zip(up_side, down_side, up_texts, down_texts, strict=True)
        if up is not None and down is not None and up_text != down_text
    ]
    return matched, n_contradicting


def _join_pair(up: Example, down: Example) -> Pair:
    where = f"{up.where} + {down.where}" if up.where or down.where else ""
    return Pair(
        up.prompt,
        up.completion,
        down.completion,
        where,
        up.tools,
        up.chat_template_kwargs,
        chosen_finished=up.finished,
        rejected_finished=down.finished,
        weight=min(up.weight, down.weight),
    )


def _write_plainly(value: object) -> object:
    return dict(value) if hasattr(value, "keys") else str(value)  # type: ignore[call-overload]
