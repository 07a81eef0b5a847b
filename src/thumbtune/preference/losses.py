"""Losses of preference learning, each a pure function of log ratios.

A log ratio is log π_θ(y|x) − log π_ref(y|x), summed over the completion's tokens, in nats. Every function
gives one value per example (or pair); the caller averages, so that a batch cut into microbatches still has one
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


def dpo_loss(
    chosen_log_ratio: Tensor,  # (B,) float32, nats
    rejected_log_ratio: Tensor,  # (B,) float32, nats
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:  # (B,) float32, >= 0
    """DPO loss of each pair: −log σ(β (r_chosen − r_rejected)).

    `label_smoothing` ε is the share of pairs assumed to be flipped (conservative DPO): (1 − ε) L(Δ) + ε L(−Δ).

    Source: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7.
    """
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    return -(1 - label_smoothing) * functional.logsigmoid(margin) - label_smoothing * functional.logsigmoid(
        -margin
    )


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
