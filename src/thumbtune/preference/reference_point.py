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


def estimate_class_middle(
    log_ratio: Tensor,  # (B,) nats
    desirable: Tensor,  # (B,) bool
) -> Tensor:  # () nats
    """BCO's reward shift δ / β: halfway between the mean log ratios of both classes, or the mean of the only one.

    Source: Jung et al. 2024, arXiv:2404.04656 (δ, in units of β r there).
    """
    log_ratio = log_ratio.detach().float()
    means = [log_ratio[members].mean() for members in (desirable, ~desirable) if members.any()]
    return torch.stack(means).mean() if means else log_ratio.new_zeros(())


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
