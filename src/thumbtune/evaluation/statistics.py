"""Means with intervals. A number without its n and its interval is not reported.

All intervals are 95 %. Where a prompt has several samples, prompts are resampled, not samples: completions of one
prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from thumbtune.preference.metrics import area_under_roc

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval and the number of cases behind it."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def above(self, other: Estimate) -> bool:
        """Whether the intervals are apart, this one higher."""
        return self.low > other.high


def estimate_share(by_prompt: Sequence[Sequence[float]]) -> Estimate:
    """Share of True over samples grouped by prompt; a half where a judge could not tell.

    Wilson's interval with one sample a prompt, else prompts are resampled. Where all samples agree, resampling would
    claim certainty: Wilson's interval over the prompts then, which is the wider. Prompts without a judged sample are
    left out.
    """
    by_prompt = [outcomes for outcomes in by_prompt if len(outcomes)]
    flat = [outcome for outcomes in by_prompt for outcome in outcomes]
    is_plain = set(flat) <= {0, 1}
    if is_plain and (all(len(outcomes) == 1 for outcomes in by_prompt) or len(set(flat)) == 1):
        from scipy.stats import binomtest

        n_prompts = len(by_prompt)
        n_true = int(sum(outcomes[0] for outcomes in by_prompt))
        interval = binomtest(n_true, n_prompts).proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(n_true / n_prompts, float(interval.low), float(interval.high), len(flat))
    return estimate_ratio([float(sum(o)) for o in by_prompt], [float(len(o)) for o in by_prompt], n=len(flat))


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Mean of one value per prompt."""
    return estimate_ratio(values, [1.0] * len(values))


def estimate_ratio(
    numerators: Sequence[float], denominators: Sequence[float], n: int | None = None
) -> Estimate:
    """Σ numerators / Σ denominators, both one per prompt, such as nats over tokens."""
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    low, high = _resample(len(top), lambda rows: top[rows].sum() / bottom[rows].sum())
    return Estimate(float(top.sum() / bottom.sum()), low, high, n if n is not None else len(top))


def estimate_auc(
    runs: Sequence[Sequence[float]],  # (seeds, votes)
    labels: Sequence[bool],  # (votes,)
    prompts: Sequence[int],  # (votes,)
) -> Estimate | None:
    """AUC of scores for labels, the mean over runs, prompts resampled. None where one class is missing.

    Scores of different runs are never held against each other: their scales differ.
    """
    scores, label = torch.tensor(runs, dtype=torch.float64), torch.tensor(labels, dtype=torch.bool)
    if bool(label.all()) or not bool(label.any()):
        return None

    def measure(rows: np.ndarray) -> float:
        found = [area_under_roc(score[rows], label[rows]) for score in scores]
        return float(np.mean([_nan_if_none(value) for value in found]))

    return estimate_over_prompts(measure, prompts)


def estimate_over_prompts(measure: Callable[[np.ndarray], float], prompts: Sequence[int]) -> Estimate:
    """`measure` of all rows, given as their numbers, with the prompts that they belong to resampled."""
    members: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(row)
    groups = [np.array(rows) for rows in members.values()]
    low, high = _resample(len(groups), lambda drawn: measure(np.concatenate([groups[i] for i in drawn])))
    return Estimate(measure(np.arange(len(prompts))), low, high, len(prompts))


def paired_p_value(values: Sequence[float]) -> float:
    """Two-sided p-value that one value per prompt, a difference, has a mean of zero: signs flipped at random."""
    from scipy.stats import permutation_test

    if not any(values):
        return 1.0
    found = permutation_test(
        (np.asarray(values, float),),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _resample(n: int, measure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Percentile bootstrap over `n` prompts; the same draws for the same n, so that numbers can be repeated."""
    rng = np.random.default_rng(0)
    values = [measure(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _nan_if_none(value: float | None) -> float:
    return float("nan") if value is None else value
