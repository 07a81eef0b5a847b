"""The zero of a value function, neither gain nor loss: KTO's z0, BCO's reward shift, and averages of them."""

from __future__ import annotations

import torch
from torch import Tensor


def estimate_reference_point(mismatched_log_ratio: Tensor) -> Tensor:  # (B,) nats -> () nats
    """z0, the estimated KL(π_θ ‖ π_ref) of a batch: the mean log ratio of mismatched completions, at least zero.

    A mismatched completion y′ is another example's completion under this prompt, taken from the same batch.
    The estimate is biased (y′ is no sample of π_θ) but tells how far the policy has moved on the whole; it takes no
    gradient. Give it the whole batch, all microbatches and ranks, so that z0 does not depend on how the batch was
    cut. An empty batch has the reference point zero.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, Sec. 4.
    """
    return estimate_uniform_reference_point(mismatched_log_ratio).clamp(min=0)


def estimate_uniform_reference_point(mismatched_log_prob: Tensor) -> Tensor:  # (B,) nats -> () nats
    """z0 where the reference is uniform, so that there is no reference model: the mean log-prob of mismatched
    completions. The uniform distribution's constant drops out of r − z0, so there is nothing to clamp at.
    """
    if mismatched_log_prob.numel() == 0:
        return torch.zeros((), device=mismatched_log_prob.device)
    return mismatched_log_prob.detach().float().mean()


class MovingAverage:
    """An average over the batches so far that forgets: decay × before + (1 − decay) × new, from the first value on."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value: float | None = None

    def update(self, value: float) -> float:
        """Take in a batch's value; gives the average with it."""
        before = value if self.value is None else self.value
        self.value = self.decay * before + (1 - self.decay) * value
        return self.value

    def state(self) -> float | None:
        """What a checkpoint keeps."""
        return self.value

    def restore(self, state: float | None) -> None:
        """Stand where `state` was taken."""
        self.value = state


class RewardShift:
    """BCO's reward shift δ / β: halfway between the classes' mean log ratios, each averaged over batches that had it.

    Naive equivalent, with decay 0 and both classes in the last batch: (mean of 👍 + mean of 👎) / 2. A batch of one
    class moves that class's mean alone, so that the frequent class does not draw the middle to itself. While one class
    was never seen, the middle is the other's mean; before the first batch it is zero.

    Source: Jung et al. 2024, arXiv:2404.04656 (δ, in units of β r there).
    """

    def __init__(self, decay: float) -> None:
        self._classes = {True: MovingAverage(decay), False: MovingAverage(decay)}

    @property
    def value(self) -> float:
        """Where the zero stands, nats."""
        known = [average.value for average in self._classes.values() if average.value is not None]
        return sum(known) / len(known) if known else 0.0

    def update(self, log_ratio: Tensor, desirable: Tensor) -> float:  # (B,) nats, (B,) bool
        """Take in a batch, all microbatches and ranks; gives the zero with it."""
        for label, average in self._classes.items():
            members = log_ratio.detach().float()[desirable == label]
            if members.numel():
                average.update(float(members.mean()))
        return self.value

    def state(self) -> list[float | None]:
        """What a checkpoint keeps."""
        return [average.state() for average in self._classes.values()]

    def restore(self, state: list[float | None] | None) -> None:
        """Stand where `state` was taken."""
        for average, value in zip(self._classes.values(), state or (None, None), strict=True):
            average.restore(value)
