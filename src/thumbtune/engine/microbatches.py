"""How a batch is cut into microbatches: what one forward sees. The cut changes memory and speed, never a number."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

Cost = Callable[[list[int]], int]
"""Tokens of one forward over these places."""


def cut_batch(
    prompts: Sequence[Hashable], *, cost: Cost, max_tokens: int | None = None, max_rows: int | None = None
) -> list[list[int]]:
    """Places 0 … n − 1 in microbatches of at most `max_tokens` tokens, or of at most `max_rows` rows.

    Rows of one prompt stand together as far as the bounds allow, since they share its tokens. A row that alone costs
    more than `max_tokens` is a microbatch of its own. Deterministic: the same arguments give the same cut.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(place)
    if max_tokens is None:
        line = [place for group in groups.values() for place in group]
        size = max_rows or len(line) or 1
        return [line[start : start + size] for start in range(0, len(line), size)]
    parts = [part for group in groups.values() for part in split_group(group, cost, max_tokens)]
    parts.sort(key=lambda part: (-cost(part), part))  # the largest first fill best
    bins: list[list[int]] = []
    for part in parts:
        for held in bins:
            if cost(held + part) <= max_tokens:
                held += part
                break
        else:
            bins.append(list(part))
    return bins


def split_group(group: Sequence[int], cost: Cost, max_tokens: int) -> list[list[int]]:
    """One prompt's rows, in as few parts as the bound allows."""
    parts: list[list[int]] = []
    for place in group:
        if parts and cost([*parts[-1], place]) <= max_tokens:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts
