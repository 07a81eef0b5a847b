"""What is measured of an arm on the held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thumbtune.data.synth.users import SimulatedUsers
from thumbtune.evaluation.generate import Sampled
from thumbtune.evaluation.judge import as_user_sample
from thumbtune.evaluation.statistics import estimate_mean, estimate_ratio
from thumbtune.records import Text


@dataclass(frozen=True, slots=True)
class ArmScores:
    """One trained arm (or the base) on the held-out prompts; outer lists by prompt."""

    samples: list[list[Sampled]]
    liked: list[list[bool]]
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


def collect_held_out_votes(users: SimulatedUsers, prompts: Sequence[Text], base: ArmScores) -> Votes:
    """The users' votes on the base's samples, with their noise and silence."""
    votes = Votes([], [], [])
    for i, (prompt, row) in enumerate(zip(prompts, base.samples, strict=True)):
        for k, sample in enumerate(row):
            label = users.vote(as_user_sample(prompt, sample), key=f"held-out/{i}/{k}")
            if label is not None:
                votes.labels.append(label)
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


def join_seeds(by_seed: list[list[list[Any]]]) -> list[list[Any]]:
    """Outcomes by prompt, all seeds together."""
    return [[outcome for row in rows for outcome in row] for rows in zip(*by_seed, strict=True)]


def count_rewards(rewards: list[float], labels: list[bool], bins: int = 20) -> dict[str, list[float]] | None:
    """Histogram of implicit rewards by class, on common edges. None without votes."""
    if not rewards:
        return None
    import numpy as np

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
