"""How much a row counts in the loss: by its age, and by how much its voter has said already."""

from __future__ import annotations

DAY_US = 86_400_000_000


def recency_weight(age_us: int, half_life_days: float) -> float:
    """0.5 ** (age / half-life): 1 for the newest row, ½ after one half-life."""
    return 0.5 ** (age_us / (half_life_days * DAY_US))


def voter_weight(n_votes: int, most_votes: int) -> float:
    """What each of a voter's votes counts, so that all of them together count at most as `most_votes` do."""
    return min(1.0, most_votes / n_votes)


def round_weight(weight: float) -> float:
    """To six digits: the same text, and so the same digest, everywhere. Never 0, which rows may not weigh."""
    return max(float(f"{weight:.6g}"), 1e-6)
