"""What is measured of an arm on the held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thumbtune.data.synth.users import SimulatedUsers
from thumbtune.evaluation.generate import Sampled
from thumbtune.evaluation.judge import as_user_sample
from thumbtune.evaluation.statistics import (
    estimate_mean,
    estimate_over_prompts,
    estimate_ratio,
    estimate_share,
)
from thumbtune.records import Text


@dataclass(frozen=True, slots=True)
class ArmScores:
    """One trained arm (or the base) on the held-out prompts; outer lists by prompt."""

    samples: list[list[Sampled]]
    liked: list[list[float | None]]
    """1 for a 👍, 0 for a 👎, a half where the judge could not tell, None where it failed."""
    base_log_probs: list[list[float]]
    """Of the arm's own samples, under the base."""
    vote_log_ratios: list[list[float]]
    """log ratio of the base's samples (the held-out votes) under the arm; zeros for the base."""


@dataclass(frozen=True, slots=True)
class Votes:
    """The held-out votes: the base's samples, voted on with noise and silence as in production."""

    labels: list[bool]
    prompts: list[int]
    places: list[tuple[int, int]]
    """(prompt, sample) of each vote."""


def collect_held_out_votes(users: SimulatedUsers | None, prompts: Sequence[Text], base: ArmScores) -> Votes:
    """The users' votes on the base's samples, with their noise and silence; without users what the judge said."""
    votes = Votes([], [], [])
    for i, (prompt, row) in enumerate(zip(prompts, base.samples, strict=True)):
        for k, sample in enumerate(row):
            label = (
                base.liked[i][k]
                if users is None
                else users.vote(as_user_sample(prompt, sample), key=f"held-out/{i}/{k}")
            )
            if label in (0, 1):
                votes.labels.append(bool(label))
                votes.prompts.append(i)
                votes.places.append((i, k))
    return votes


def estimate_kl_per_token(scores: list[ArmScores]) -> dict[str, float]:
    """Mean over fresh samples of log π_θ − log π_ref, per token, nats: a Monte Carlo estimate of the KL."""
    nats, tokens = [], []
    for i in range(len(scores[0].samples)):
        drawn = [
            (sample.log_prob - log_prob, len(sample.scored_ids))
            for score in scores
            for sample, log_prob in zip(score.samples[i], score.base_log_probs[i], strict=True)
        ]
        nats.append(sum(ratio for ratio, _ in drawn))
        tokens.append(float(sum(length for _, length in drawn)))
    return estimate_ratio(nats, tokens).as_dict()


def estimate_length(scores: list[ArmScores]) -> dict[str, float]:
    """Tokens in a completion."""
    by_prompt = join_seeds([[[len(s.token_ids) for s in row] for row in score.samples] for score in scores])
    return estimate_mean([mean(row) for row in by_prompt]).as_dict()


def judged(by_prompt: Sequence[Sequence[float | None]]) -> list[list[float]]:
    """The outcomes without those that the judge failed at."""
    return [[outcome for outcome in row if outcome is not None] for row in by_prompt]


def count_outcomes(
    ours: Sequence[Sequence[float | None]], theirs: Sequence[Sequence[float | None]]
) -> dict[str, int]:
    """Prompts on which the mean is above the other's, equal, below; and completions that the judge failed at."""
    pairs = [(mean(a), mean(b)) for a, b in zip(judged(ours), judged(theirs), strict=True) if a and b]
    return {
        "wins": sum(a > b for a, b in pairs),
        "ties": sum(a == b for a, b in pairs),
        "losses": sum(a < b for a, b in pairs),
        "not_judged": sum(outcome is None for row in ours for outcome in row),
    }


def estimate_negative_flips(
    ours: Sequence[Sequence[float | None]], base: Sequence[Sequence[float | None]]
) -> dict[str, float] | None:
    """Share of prompts whose answer was liked before and is not any more; None where the base was never liked.

    Liked: by more than half of its samples. n: prompts on which the base was liked.
    """
    pairs = [(mean(a), mean(b)) for a, b in zip(judged(ours), judged(base), strict=True) if a and b]
    flips = [[a <= 0.5] for a, b in pairs if b > 0.5]
    return estimate_share(flips).as_dict() if flips else None


def estimate_at_base_length(
    scores: Sequence[ArmScores], base: ArmScores, bins: int = 4
) -> dict[str, float] | None:
    """Up-rate if the arm's completions were as long as the base's: by quarters of the base's lengths, each counted as
    often as it is there. `covered` is the share of the base's completions in quarters that the arm has any in; the rest
    cannot be told. None where that is under a half. n: the arm's judged completions.
    """
    lengths = [len(s.token_ids) for row in base.samples for s in row]
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    of_base = np.zeros((len(base.samples), len(edges) + 1))  # (prompts, quarters)
    of_arm, liked = np.zeros_like(of_base), np.zeros_like(of_base)
    for prompt, row in enumerate(base.samples):
        for sample in row:
            of_base[prompt, np.searchsorted(edges, len(sample.token_ids))] += 1
    for score in scores:
        for prompt, (row, outcomes) in enumerate(zip(score.samples, score.liked, strict=True)):
            for sample, outcome in zip(row, outcomes, strict=True):
                if outcome is not None:
                    quarter = np.searchsorted(edges, len(sample.token_ids))
                    of_arm[prompt, quarter] += 1
                    liked[prompt, quarter] += outcome

    def measure(prompts: np.ndarray) -> float:
        counts = of_arm[prompts].sum(0)
        known = counts > 0
        shares = of_base[prompts].sum(0)[known]
        if not shares.any():  # nothing of these prompts can be told
            return float("nan")
        return float((shares * liked[prompts].sum(0)[known] / counts[known]).sum() / shares.sum())

    covered = float(of_base.sum(0)[of_arm.sum(0) > 0].sum() / of_base.sum())
    if covered < 0.5:
        return None
    rate = estimate_over_prompts(measure, range(len(of_base)))
    return rate.as_dict() | {"covered": covered, "n": int(of_arm.sum())}


def join_seeds(by_seed: list[list[list[Any]]]) -> list[list[Any]]:
    """Outcomes by prompt, all seeds together."""
    return [[outcome for row in rows for outcome in row] for rows in zip(*by_seed, strict=True)]


def count_rewards(rewards: list[float], labels: list[bool], bins: int = 20) -> dict[str, list[float]] | None:
    """Histogram of implicit rewards by class, on common edges. None without votes."""
    if not rewards:
        return None
    edges = np.histogram_bin_edges(rewards, bins=bins)
    up = [reward for reward, label in zip(rewards, labels, strict=True) if label]
    down = [reward for reward, label in zip(rewards, labels, strict=True) if not label]
    return {
        "edges": edges.tolist(),
        "desirable": np.histogram(up, edges)[0].tolist(),
        "undesirable": np.histogram(down, edges)[0].tolist(),
    }


def mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return sum(values) / len(values)
