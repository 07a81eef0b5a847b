"""A method is a loss with a row format. Everything else about training is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thumbtune.preference import pair_losses
from thumbtune.preference.label_noise import correct_for_flips
from thumbtune.preference.losses import kto_logsigmoid_loss, kto_loss, kto_prospect_loss, kto_threshold_loss
from thumbtune.training import method_configs as configs
from thumbtune.training.config import PreferenceConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """What a loss may look at. Branches of pairs come as all chosen, then all rejected."""

    log_probs: Tensor  # (branches,) float32, nats, with gradient
    log_ratio: Tensor  # (branches,) float32, nats; the log-probs themselves where there is no reference
    n_tokens: Tensor  # (branches,) float32, completion tokens
    desirable: Tensor  # (branches,) bool
    reference_point: Tensor  # () float32, nats, without gradient
    mean_chosen_tokens: Tensor  # () float32, over the chosen completions of the whole batch


@dataclass(frozen=True, slots=True)
class Method:
    """How one method turns scores into losses."""

    name: str
    config: type[PreferenceConfig]
    paired: bool
    """Rows are pairs."""
    loss: Callable[[Any, Scores], Tensor]
    """(config, scores) -> (rows,) losses."""
    uses_reference: Callable[[Any], bool] = lambda config: True
    """Whether there is a reference model; without one there is no reference pass."""
    reference_point: Callable[[Any], Literal["none", "mismatched", "classes"]] = lambda config: "none"
    """Where the loss's zero comes from: mismatched completions of the batch, or the classes' rewards before it."""
    reward: Callable[[Any, Scores], Tensor] = lambda config, scores: config.beta * scores.log_ratio
    """(config, scores) -> (branches,) implicit rewards, for metrics."""


# ---- single completions


def _kto(config: Any, scores: Scores, desirable: Tensor) -> Tensor:
    shared = _share_settings(config)
    if config.loss_type == "kto_thresholds":
        return kto_threshold_loss(scores.log_ratio, desirable, z_yes=config.z_yes, z_no=config.z_no, **shared)
    if config.loss_type == "kto_prospect":
        shared |= {"alpha": config.prospect_alpha, "loss_aversion": config.loss_aversion}
    loss = _KTO_LOSSES.get(config.loss_type, kto_loss)
    return loss(scores.log_ratio, desirable, scores.reference_point, **shared)


_KTO_LOSSES: dict[str, Callable[..., Tensor]] = {
    "kto_prospect": kto_prospect_loss,
    "kto_logsigmoid": kto_logsigmoid_loss,
}
"""Variants with another value than the sigmoid; the others differ in their reference point."""


def _bco(config: Any, scores: Scores, desirable: Tensor) -> Tensor:
    return kto_logsigmoid_loss(scores.log_ratio, desirable, scores.reference_point, **_share_settings(config))


def _share_settings(config: Any) -> dict[str, float]:
    return {
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
    }


def _robust(loss: Callable[[Any, Scores, Tensor], Tensor]) -> Callable[[Any, Scores], Tensor]:
    """A loss of single completions, corrected for thumbs on the wrong button where a rate of them is given."""

    def correct(config: Any, scores: Scores) -> Tensor:
        as_labelled = loss(config, scores, scores.desirable)
        if not config.desirable_flip_rate and not config.undesirable_flip_rate:
            return as_labelled
        return correct_for_flips(
            as_labelled,
            loss(config, scores, ~scores.desirable),
            scores.desirable,
            desirable_flip_rate=config.desirable_flip_rate,
            undesirable_flip_rate=config.undesirable_flip_rate,
        )

    return correct


# ---- pairs


def _ratios(scores: Scores) -> tuple[Tensor, ...]:
    return scores.log_ratio.chunk(2)


def _mean_log_probs(scores: Scores) -> tuple[Tensor, ...]:
    return (scores.log_probs / scores.n_tokens).chunk(2)


PAIR_TERMS: dict[str, Callable[[Any, Scores], Tensor]] = {
    "sigmoid": lambda config, scores: pair_losses.dpo_loss(
        *_ratios(scores), beta=config.beta, label_smoothing=config.label_smoothing
    ),
    "ipo": lambda config, scores: pair_losses.ipo_loss(
        *(scores.log_ratio / scores.n_tokens).chunk(2), beta=config.beta
    ),
    "ipo_summed": lambda config, scores: pair_losses.ipo_loss(*_ratios(scores), beta=config.beta),
    "apo_zero": lambda config, scores: pair_losses.apo_zero_loss(*_ratios(scores), beta=config.beta),
    "bco_pair": lambda config, scores: pair_losses.bco_pair_loss(*_ratios(scores), beta=config.beta),
    "sft": lambda config, scores: pair_losses.negative_log_likelihood(
        scores.log_probs.chunk(2)[0], scores.mean_chosen_tokens
    ),
    "cpo": lambda config, scores: pair_losses.cpo_loss(
        *scores.log_probs.chunk(2), beta=config.beta, label_smoothing=config.label_smoothing
    ),
    "simpo": lambda config, scores: pair_losses.simpo_loss(
        *_mean_log_probs(scores),
        beta=config.beta,
        gamma=config.simpo_gamma,
        label_smoothing=config.label_smoothing,
    ),
    "odds_ratio": lambda config, scores: pair_losses.odds_ratio_loss(*_mean_log_probs(scores)),
}
"""What losses of pairs are made of: (config, scores) -> (pairs,)."""


def _add_terms(config: Any, scores: Scores) -> Tensor:
    terms = [weight * PAIR_TERMS[name](config, scores) for name, weight in config.terms.items()]
    return torch.stack(terms).sum(0)


def _reward_per_token(config: Any, scores: Scores) -> Tensor:
    return config.beta * scores.log_probs / scores.n_tokens


def _never(config: Any) -> bool:
    return False


METHODS = {
    "kto": Method(
        "KTO",
        configs.KTOConfig,
        paired=False,
        loss=_robust(_kto),
        uses_reference=lambda config: config.loss_type != "kto_reference_free",
        reference_point=lambda config: "mismatched" if config.estimates_reference_point else "none",
    ),
    "dpo": Method("DPO", configs.DPOConfig, paired=True, loss=_add_terms),
    "ipo": Method("IPO", configs.IPOConfig, paired=True, loss=_add_terms),
    "simpo": Method(
        "SimPO",
        configs.SimPOConfig,
        paired=True,
        loss=_add_terms,
        uses_reference=_never,
        reward=_reward_per_token,
    ),
    "cpo": Method("CPO", configs.CPOConfig, paired=True, loss=_add_terms, uses_reference=_never),
    "rpo": Method("RPO", configs.RPOConfig, paired=True, loss=_add_terms),
    "orpo": Method(
        "ORPO",
        configs.ORPOConfig,
        paired=True,
        loss=_add_terms,
        uses_reference=_never,
        reward=_reward_per_token,
    ),
    "apo_zero": Method("APO-zero", configs.APOZeroConfig, paired=True, loss=_add_terms),
    "bco": Method(
        "BCO",
        configs.BCOConfig,
        paired=False,
        loss=_robust(_bco),
        reference_point=lambda config: "classes",
    ),
}
"""By the name that `--method` takes."""
