"""What to watch while training: functions of rewards, apart from the losses, so that no metric can change a loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

SATURATED_ABOVE = 4.0
"""|β (r − z0)| above which a sigmoid loss has nearly no gradient left: σ′(4) is 7 % of σ′(0)."""


def area_under_roc(scores: Tensor, labels: Tensor) -> float | None:
    """Chance that a desirable completion scores above an undesirable one, ties counted half. None for one class.

    `scores` (N,) float, `labels` (N,) bool.
    """
    labels = labels.bool()
    n_up, n_down = int(labels.sum()), int((~labels).sum())
    if n_up == 0 or n_down == 0:
        return None
    _, inverse, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    last_rank = counts.cumsum(0).double()
    mean_rank = (last_rank - (counts.double() - 1) / 2)[inverse]  # (N,) ties share their mean rank
    return float((mean_rank[labels].sum() - n_up * (n_up + 1) / 2) / (n_up * n_down))


def saturated_share(gain: Tensor) -> float:
    """Share of completions whose |β (r − z0)| is above `SATURATED_ABOVE`: these have stopped teaching."""
    return float((gain.abs() > SATURATED_ABOVE).float().mean()) if gain.numel() else 0.0


def both_rewards_fall(desirable: Sequence[float], undesirable: Sequence[float], windows: int = 3) -> bool:
    """True where the policy unlearns everything it is shown, which is how too high a learning rate looks.

    Either both classes' mean rewards fell in each of the last `windows` windows, 👍 to below zero; or both have been
    below −`SATURATED_ABOVE` for that long: they fell already, to where no gradient brings them back.
    """
    if min(len(desirable), len(undesirable)) <= windows:
        return False

    def falls(values: Sequence[float]) -> bool:
        recent = values[-windows - 1 :]
        return all(later < earlier for earlier, later in pairwise(recent))

    collapsed = max(*desirable[-windows:], *undesirable[-windows:]) < -SATURATED_ABOVE
    return collapsed or (desirable[-1] < 0 and falls(desirable) and falls(undesirable))
