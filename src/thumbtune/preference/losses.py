"""Losses of single completions, each a pure function of log ratios. Pairs have theirs in `pair_losses`.

A log ratio is log π_θ(y|x) − log π_ref(y|x), summed over the completion's tokens, in nats. Every function
gives one value per example; the caller averages, so that a batch cut into microbatches still has one
mean. Nothing here knows a model, a config or a rank.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from thumbtune.preference.prospect import prospect_value


def kto_loss(
    log_ratio: Tensor,  # (B,) float32, nats
    desirable: Tensor,  # (B,) bool
    reference_point: Tensor,  # () float32, nats, >= 0, no gradient
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:  # (B,) float32, in [0, weight]
    """KTO loss of each completion, with the reference point z0 estimated from the batch.

    Naive equivalent: λ_D (1 − σ(β (r − z0))) for a thumbs-up, λ_U (1 − σ(β (z0 − r))) for a thumbs-down.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, Sec. 4 (λ_y − v(x, y) with the value function v of KTO).
    """
    return _sigmoid_value_loss(
        beta * (log_ratio - reference_point), desirable, desirable_weight, undesirable_weight
    )


def kto_threshold_loss(
    log_ratio: Tensor,  # (B,) float32, nats
    desirable: Tensor,  # (B,) bool
    *,
    z_yes: float,
    z_no: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:  # (B,) float32, in [0, weight]
    """KTO loss with given thresholds instead of an estimated reference point.

    `z_yes` and `z_no` are in units of the implicit reward β r. Naive equivalent: λ_D (1 − σ(β r − z_yes)) for a
    thumbs-up, λ_U (1 − σ(z_no − β r)) for a thumbs-down: the textbook form −λ σ(…) plus the constant λ, which
    leaves the gradient as it is and keeps the loss at zero or above.
    """
    threshold = torch.where(desirable, z_yes, z_no)
    return _sigmoid_value_loss(beta * log_ratio - threshold, desirable, desirable_weight, undesirable_weight)


def kto_prospect_loss(
    log_ratio: Tensor,  # (B,) float32, nats
    desirable: Tensor,  # (B,) bool
    reference_point: Tensor,  # () float32, nats, >= 0, no gradient
    *,
    beta: float,
    alpha: float = 0.88,
    loss_aversion: float = 2.25,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:  # (B,) float32, unbounded
    """KTO's ancestor: minus the prospect-theory value of each completion's outcome.

    The outcome is β (r − z0) for a thumbs-up and β (z0 − r) for a thumbs-down. Unlike the sigmoid, this value
    does not saturate, so one wrong label keeps its full pull: expect less patience with noise.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    outcome = sign * beta * (log_ratio - reference_point)
    return -weight * prospect_value(outcome, alpha=alpha, loss_aversion=loss_aversion)


def kto_logsigmoid_loss(
    log_ratio: Tensor,  # (B,) float32, nats
    desirable: Tensor,  # (B,) bool
    reference_point: Tensor,  # () float32, nats, no gradient
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:  # (B,) float32, >= 0
    """KTO with a value that is concave throughout: −λ log σ(±β (r − z0)).

    A completion on the wrong side keeps its full pull however far it is, so a wrong label does too. In the paper's
    ablation it stands far behind the sigmoid. With the rewards' own mean as reference point it is BCO's loss.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, ablation; BCO: Jung et al. 2024, arXiv:2404.04656.
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return -weight * functional.logsigmoid(sign * beta * (log_ratio - reference_point))


def _sigmoid_value_loss(
    gain: Tensor,  # (B,) implicit reward above the reference point
    desirable: Tensor,  # (B,) bool
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:  # (B,)
    """λ (1 − σ(±gain)), written with one sign, so that a one-sided batch is no special case,
    and with σ(−x) for 1 − σ(x), which keeps value and gradient in low precision."""
    sign = torch.where(desirable, 1.0, -1.0)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-sign * gain)
