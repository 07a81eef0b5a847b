"""Learning rate and β of each method, searched with as many trials for every method, on prompts of their own.

A comparison in which one method runs at its best settings and another at somebody's defaults says nothing about
methods. Each gets the same number of trials around its starting point, and the same validation prompts, which no table
is made of. What was tried and what came of it stays in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thumbtune.errors import ConfigError
from thumbtune.evaluation.statistics import Estimate

TRIALS: tuple[tuple[str, float], ...] = (
    ("learning_rate", 1.0),
    ("learning_rate", 3.0),
    ("learning_rate", 1 / 3),
    ("beta", 3.0),
    ("beta", 1 / 3),
    ("learning_rate", 10.0),
    ("learning_rate", 0.1),
)
"""What is tried, in this order: a setting, and the factor on its starting point."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of one method, and what it did on the validation prompts."""

    settings: Mapping[str, Any]
    up_rate: Estimate | None
    error: str | None = None


def propose_settings(start: Mapping[str, Any], n_trials: int) -> list[dict[str, Any]]:
    """The settings that are tried: the start, and steps of three from it in learning rate and β."""
    if not 1 <= n_trials <= len(TRIALS):
        raise ConfigError(f"{n_trials} trials a method: 1 to {len(TRIALS)}")
    return [
        {**start, name: float(f"{start[name] * factor:.3g}")} if factor != 1 else dict(start)
        for name, factor in TRIALS[:n_trials]
    ]


def choose(trials: Sequence[Trial]) -> Mapping[str, Any]:
    """The settings with the highest up-rate; among equals the earliest, which is nearest to the start."""
    measured = [trial for trial in trials if trial.up_rate is not None]
    if not measured:
        return trials[0].settings
    return max(measured, key=lambda trial: trial.up_rate.mean if trial.up_rate else 0.0).settings
