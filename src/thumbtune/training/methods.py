"""A method is a loss with a row format. Everything else about training is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thumbtune.preference.losses import dpo_loss, kto_loss, kto_prospect_loss, kto_threshold_loss


@dataclass(frozen=True, slots=True)
class Method:
    """How one method turns log ratios into losses."""

    paired: bool
    """Rows are pairs: their log ratios come as all chosen, then all rejected."""
    mismatched: Callable[[Any], bool]
    """Whether this config needs mismatched completions for a reference point."""
    loss: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    """(config, log_ratio (branches,), desirable (branches,), reference_point ()) -> (rows,) losses."""


def _kto(config: Any, log_ratio: Tensor, desirable: Tensor, reference_point: Tensor) -> Tensor:
    shared = {
        "beta": config.beta,
        "desirable_weight": config.desirable_weight,
        "undesirable_weight": config.undesirable_weight,
    }
    if config.loss_type == "kto_thresholds":
        return kto_threshold_loss(log_ratio, desirable, z_yes=config.z_yes, z_no=config.z_no, **shared)
    if config.loss_type == "kto_prospect":
        return kto_prospect_loss(
            log_ratio,
            desirable,
            reference_point,
            alpha=config.prospect_alpha,
            loss_aversion=config.loss_aversion,
            **shared,
        )
    return kto_loss(log_ratio, desirable, reference_point, **shared)


def _dpo(config: Any, log_ratio: Tensor, desirable: Tensor, reference_point: Tensor) -> Tensor:
    chosen, rejected = log_ratio.chunk(2)
    return dpo_loss(chosen, rejected, beta=config.beta, label_smoothing=config.label_smoothing)


METHODS = {
    "kto": Method(paired=False, mismatched=lambda config: config.loss_type != "kto_thresholds", loss=_kto),
    "dpo": Method(paired=True, mismatched=lambda config: False, loss=_dpo),
}
