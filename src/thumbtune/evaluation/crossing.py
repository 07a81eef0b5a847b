"""At which price pairs pay: how many labels' worth of bought pairs do as well as these thumbs.

A curve of up-rates over bought pairs is held against one up-rate, that of the thumbs. The curve is made monotone first
(isotonic regression): more pairs do no harm in the long run, and the first of many noisy points to lie high would else
pass for the crossing. Between its points it is read as straight over the logarithm of the number of pairs; outside of
them it says only that it is below or beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thumbtune.evaluation.statistics import CONFIDENCE, RESAMPLES


@dataclass(frozen=True, slots=True)
class Crossing:
    """How many pairs equal the thumbs. Infinite: not within the pairs that were bought; zero: fewer than the fewest."""

    pairs: float
    low: float
    high: float
    share_beyond: float
    """Of the resamples, those in which no number of bought pairs was enough."""


def find_crossing(
    pair_counts: Sequence[int],
    by_count: Sequence[Sequence[float]],  # (counts, prompts) up-rate of each prompt
    target: Sequence[float],  # (prompts,)
) -> Crossing:
    """The number of pairs whose up-rate equals the target's, prompts resampled for its interval."""
    curves, wanted = np.asarray(by_count, float), np.asarray(target, float)
    n_prompts = len(wanted)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, n_prompts, n_prompts)
        drawn.append(_cross(pair_counts, curves[:, rows].mean(1), wanted[rows].mean()))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail], method="nearest")
    found = _cross(pair_counts, curves.mean(1), wanted.mean())
    return Crossing(found, float(low), float(high), float(np.isinf(drawn).mean()))


def _cross(pair_counts: Sequence[int], rates: np.ndarray, wanted: float) -> float:
    """The first place where the curve, made monotone, reaches the wanted rate."""
    from scipy.optimize import isotonic_regression

    rates = isotonic_regression(rates).x
    if rates[0] >= wanted:
        return 0.0
    for before, after, below, above in zip(pair_counts, pair_counts[1:], rates, rates[1:], strict=False):
        if above >= wanted:
            share = (wanted - below) / (above - below)
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return math.inf
