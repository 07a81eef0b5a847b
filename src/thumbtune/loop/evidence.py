"""Evidence on two streams of thumbs that may be looked at after every vote: e-processes for "better by more than m".

Votes of champion and canary come in blocks: one of the canary beside `n` of the champion, in the ratio in which users
were sent to them. A block's factor is what the votes would say if the canary's up-rate were `canary` and the
champion's `champion`, over the nearest pair of rates at which the canary is not better by more than the margin:

    p_canary(y) · p_champion(y) / (q_canary(y) · q_champion(y))        its mean is at most 1 where the claim is false

so a product of factors grows above 1/α with a chance of at most α, however often it is looked at (Turner, Ly and
Grünwald, arXiv:2106.02693, Theorem 1, for convex null hypotheses; `tests/loop/test_evidence.py` checks the mean on
a grid). Rates may be chosen anew for each block from what came before it. We take the level of both streams so far
and average over a few differences around it, in log-odds: a mixture of e-processes is one again, and costs at most
-log(weight) nats of evidence, where learning both rates freely costs more (docs/decisions/012).

Harm is the same claim about the other thumb: a canary that is worse gets more 👎.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, expit, logit

Floats = NDArray[np.float64]

LEVELS: Floats = np.unique(np.concatenate([np.linspace(0.01, 0.99, 99), [0.001, 0.003, 0.997, 0.999]]))
"""Up-rates that the level of both streams is rounded to."""

DIFFERENCES: Floats = np.array([0.15, 0.3, 0.55, 1.0, 2.0])
"""How far apart the alternatives' log-odds are. 0.55: 80 % against 70 %."""

WEIGHTS: Floats = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
"""Of the alternatives in the mixture; their sum is 1."""


@dataclass(frozen=True, slots=True)
class Level:
    """What is known of the up-rate of both streams before the first block: so many up-votes of so many."""

    up: float = 1.0
    votes: float = 2.0


def log_evidence(
    champion_up: NDArray[np.integer],  # (..., blocks) up-votes of the champion in a block
    champion_votes: NDArray[np.integer],  # (blocks,) all its votes in it
    canary_up: NDArray[np.integer],  # (..., blocks) 0 or 1
    *,
    margin: float = 0.0,
    before: Level = Level(),
) -> Floats:  # (..., blocks) nats, after each block
    """Log of the evidence that the canary's up-rate is above the champion's by more than `margin` (which may be < 0).

    Reject "it is not" where this
    reaches log(1/α): the chance to ever get there is at most α where it is not.
    """
    level = _level_before(champion_up, champion_votes, canary_up, before)
    total: Floats | None = None
    for k, weight in enumerate(WEIGHTS):
        factors = np.zeros(np.broadcast_shapes(champion_up.shape, canary_up.shape))
        for n in np.unique(champion_votes):
            here = champion_votes == n
            table = _factors(int(n), float(margin))[k][level[..., here]]
            up, votes = champion_up[..., here], champion_votes[here]
            factors[..., here] = (
                up * table[..., 0]
                + (votes - up) * table[..., 1]
                + np.where(canary_up[..., here] > 0, table[..., 2], table[..., 3])
            )
        summed = np.cumsum(factors, axis=-1) + np.log(weight)
        total = summed if total is None else np.logaddexp(total, summed)
    assert total is not None
    return total


def log_harm(
    champion_up: NDArray[np.integer],
    champion_votes: NDArray[np.integer],
    canary_up: NDArray[np.integer],
    *,
    before: Level = Level(),
) -> Floats:
    """Log of the evidence that the canary's up-rate is below the champion's, after each block: shapes as above."""
    return log_evidence(
        champion_votes - champion_up,
        champion_votes,
        1 - canary_up,
        before=Level(before.votes - before.up, before.votes),
    )


def log_split_evidence(n_canary: int, n_users: int, share: float, *, concentration: float = 200.0) -> float:
    """Log of the evidence that users are not sent to the canary by its share: a beta-binomial against the binomial.

    The alternative is centred on the share, as sure of it as `concentration` users would be. Source: Lindon and
    Malek, arXiv:2011.03567, here for two arms.
    """
    if not 0 < share < 1 or not n_users:
        return 0.0
    a, b = concentration * share, concentration * (1 - share)
    n_champion = n_users - n_canary
    mixture = betaln(a + n_canary, b + n_champion) - betaln(a, b)
    return float(mixture - n_canary * np.log(share) - n_champion * np.log1p(-share))


def nearest_null(
    champion: Floats, canary: Floats, n: int, margin: float
) -> tuple[Floats, Floats]:  # up-rates of champion and canary
    """The pair of rates with canary ≤ champion + margin that is nearest, in nats of a block: one canary, `n` champion.

    Without a margin it is the block's mean rate twice; with one it is found by bisection on the derivative.
    """
    if margin == 0:
        pooled = (n * champion + canary) / (n + 1)
        return pooled, pooled
    low = np.full_like(champion, max(0.0, -margin) + 1e-12)
    high = np.full_like(champion, min(1.0, 1.0 - margin) - 1e-12)
    for _ in range(60):
        middle = (low + high) / 2
        shifted = middle + margin
        slope = n * (middle - champion) / (middle * (1 - middle)) + (shifted - canary) / (
            shifted * (1 - shifted)
        )
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    found = (low + high) / 2
    inside = canary <= champion + margin  # the alternative itself is no alternative: a factor of 1
    return np.where(inside, champion, found), np.where(inside, canary, found + margin)


@lru_cache(maxsize=256)
def _factors(n: int, margin: float) -> Floats:  # (differences, levels, 4)
    """Log factors of champion 👍, champion 👎, canary 👍, canary 👎 for each alternative and level."""
    centre = logit(LEVELS)[None, :]
    # against "worse by a margin" the first alternative is that both are alike
    half = (DIFFERENCES - (DIFFERENCES[0] if margin < 0 else 0.0))[:, None] / 2
    champion, canary = expit(centre - half), expit(centre + half)
    null_champion, null_canary = nearest_null(champion, canary, n, margin)
    return np.stack(
        [
            np.log(champion / null_champion),
            np.log((1 - champion) / (1 - null_champion)),
            np.log(canary / null_canary),
            np.log((1 - canary) / (1 - null_canary)),
        ],
        axis=-1,
    )


def _level_before(
    champion_up: NDArray[np.integer],
    champion_votes: NDArray[np.integer],
    canary_up: NDArray[np.integer],
    before: Level,
) -> NDArray[np.intp]:
    """Index into LEVELS of the up-rate of both streams, as it was known before each block."""
    up = np.cumsum(champion_up + canary_up, axis=-1) - (champion_up + canary_up)
    votes = np.cumsum(champion_votes + 1) - (champion_votes + 1)
    rate = (before.up + up) / (before.votes + votes)
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2
    return np.searchsorted(middles, rate)
