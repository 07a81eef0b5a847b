"""Losses of pairs: DPO and its family, each a pure function with one value per pair; the caller averages.

Some read log ratios against a reference (DPO, IPO, APO-zero, BCO on pairs), some the policy's own log-probs (CPO,
SimPO, ORPO). Where a formula counts per token, the functions take averages: what to divide by is said in each, since
papers and their code differ there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    return _logistic_loss(beta * (chosen_log_ratio - rejected_log_ratio), label_smoothing)


def cpo_loss(
    chosen_log_prob: Tensor,  # (B,) float32, nats, summed over tokens
    rejected_log_prob: Tensor,  # (B,) float32, nats, summed over tokens
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:  # (B,) float32, >= 0
    """CPO's preference term: DPO under a uniform reference, −log σ(β (log π(chosen) − log π(rejected))).

    The method adds the negative log-likelihood of the chosen completions: see `negative_log_likelihood`.

    Source: Xu et al. 2024, arXiv:2401.08417.
    """
    return _logistic_loss(beta * (chosen_log_prob - rejected_log_prob), label_smoothing)


def simpo_loss(
    chosen_mean_log_prob: Tensor,  # (B,) float32, nats per token
    rejected_mean_log_prob: Tensor,  # (B,) float32, nats per token
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:  # (B,) float32, >= 0
    """SimPO loss of each pair: −log σ(β (mean log π(chosen) − mean log π(rejected)) − γ).

    Source: Meng et al. 2024, arXiv:2405.14734.
    """
    return _logistic_loss(beta * (chosen_mean_log_prob - rejected_mean_log_prob) - gamma, label_smoothing)


def ipo_loss(
    chosen_log_ratio: Tensor,  # (B,) float32, nats, or nats per token
    rejected_log_ratio: Tensor,  # (B,) float32, in the same unit
    *,
    beta: float,
) -> Tensor:  # (B,) float32, >= 0
    """IPO loss of each pair: (r_chosen − r_rejected − 1 / (2 β))². β is the paper's τ.

    As published the log ratios are sums over tokens; in practice, and in TRL, each is divided by the number of its
    completion's tokens, so that long completions do not rule the square. The caller chooses by what it hands in.

    Source: Azar et al. 2023, arXiv:2310.12036, Eq. 17.
    """
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)) ** 2


def apo_zero_loss(
    chosen_log_ratio: Tensor,  # (B,) float32, nats
    rejected_log_ratio: Tensor,  # (B,) float32, nats
    *,
    beta: float,
) -> Tensor:  # (B,) float32, in [0, 2]
    """APO-zero loss of each pair: 1 − σ(β r_chosen) + σ(β r_rejected). Its anchor is the reference itself.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7.
    """
    return torch.sigmoid(-beta * chosen_log_ratio) + torch.sigmoid(beta * rejected_log_ratio)


def bco_pair_loss(
    chosen_log_ratio: Tensor,  # (B,) float32, nats
    rejected_log_ratio: Tensor,  # (B,) float32, nats
    *,
    beta: float,
) -> Tensor:  # (B,) float32, >= 0
    """BCO on pairs without a reward shift: −log σ(β r_chosen) − log σ(−β r_rejected).

    Source: Jung et al. 2024, arXiv:2404.04656, its binary classifier with δ = 0; `bco_loss` has the shift.
    """
    return -functional.logsigmoid(beta * chosen_log_ratio) - functional.logsigmoid(-beta * rejected_log_ratio)


def odds_ratio_loss(
    chosen_mean_log_prob: Tensor,  # (B,) float32, nats per token, < 0
    rejected_mean_log_prob: Tensor,  # (B,) float32, nats per token, < 0
) -> Tensor:  # (B,) float32, >= 0
    """ORPO's preference term: −log σ(log odds(chosen) − log odds(rejected)), odds p / (1 − p) of exp(mean log π).

    The method adds it, times its λ (TRL's β), to the negative log-likelihood of the chosen completions.

    Source: Hong et al. 2024, arXiv:2403.07691, Eqs. 4 and 7.
    """
    return _logistic_loss(_log_odds(chosen_mean_log_prob) - _log_odds(rejected_mean_log_prob), 0.0)


def negative_log_likelihood(
    chosen_log_prob: Tensor,  # (B,) float32, nats, summed over tokens
    mean_tokens: Tensor,  # () float32, completion tokens of a chosen completion, mean over the whole batch
) -> Tensor:  # (B,) float32
    """Each pair's part of the chosen completions' negative log-likelihood per token of the batch.

    Naive equivalent: its mean over pairs is −Σ log π / Σ tokens. Long completions count for more, as in TRL's `sft`
    term; dividing each by its own length, as the RPO paper does, would be another weighting. `mean_tokens` is of the
    whole batch, so that the cut into microbatches changes nothing.
    """
    return -chosen_log_prob / mean_tokens


def _logistic_loss(margin: Tensor, label_smoothing: float) -> Tensor:  # (B,) -> (B,)
    """−log σ(margin), smoothed: (1 − ε) L(margin) + ε L(−margin)."""
    loss = -(1 - label_smoothing) * functional.logsigmoid(margin)
    return loss - label_smoothing * functional.logsigmoid(-margin) if label_smoothing else loss


def _log_odds(log_prob: Tensor) -> Tensor:  # (B,) < 0 -> (B,)
    """log (p / (1 − p)) of p = exp(log_prob): log(−expm1) near certainty, log1p(−exp) far from it.

    log 1/2 is where the two change over (Mächler 2012, "Accurately computing log(1 − exp(−|a|))"). A certain completion
    (log-prob zero, by rounding) counts as 1e-7 nats short of it, so that its odds are finite.
    """
    log_prob = log_prob.clamp(max=-1e-7)
    is_near = log_prob > -0.6931471805599453
    near = torch.log(-torch.expm1(torch.where(is_near, log_prob, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1.0, log_prob)))
    return log_prob - torch.where(is_near, near, far)
