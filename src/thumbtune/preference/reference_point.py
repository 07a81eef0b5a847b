"""KTO's zero: what counts as neither gain nor loss."""

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
    if mismatched_log_ratio.numel() == 0:
        return torch.zeros((), device=mismatched_log_ratio.device)
    return mismatched_log_ratio.detach().float().mean().clamp(min=0)
