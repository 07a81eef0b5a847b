"""The trainer of each method: one trainer, told apart by its config."""

from __future__ import annotations

from thumbtune.training.method_configs import (
    APOZeroConfig,
    BCOConfig,
    CPOConfig,
    DPOConfig,
    IPOConfig,
    KTOConfig,
    ORPOConfig,
    RPOConfig,
    SimPOConfig,
)
from thumbtune.training.trainer import PreferenceTrainer


class KTOTrainer(PreferenceTrainer):
    """KTO: learns from single completions with a 👍 or a 👎 each. Paired rows are un-paired."""

    config_class = KTOConfig


class BCOTrainer(PreferenceTrainer):
    """BCO: a binary classifier of single completions. Paired rows are un-paired."""

    config_class = BCOConfig


class DPOTrainer(PreferenceTrainer):
    """DPO: learns from pairs. Thumbs are paired up where one prompt has both; what is left over is counted."""

    config_class = DPOConfig


class IPOTrainer(PreferenceTrainer):
    """IPO: DPO's pairs, with a margin to aim at."""

    config_class = IPOConfig


class APOZeroTrainer(PreferenceTrainer):
    """APO-zero: pairs, each half held against the reference by itself."""

    config_class = APOZeroConfig


class RPOTrainer(PreferenceTrainer):
    """RPO: DPO and the likelihood of the chosen completions."""

    config_class = RPOConfig


class SimPOTrainer(PreferenceTrainer):
    """SimPO: pairs, log-probs per token, a margin, no reference."""

    config_class = SimPOConfig


class CPOTrainer(PreferenceTrainer):
    """CPO: pairs, DPO's form without a reference, and the likelihood of the chosen completions."""

    config_class = CPOConfig


class ORPOTrainer(PreferenceTrainer):
    """ORPO: the likelihood of the chosen completions and a term of odds, no reference."""

    config_class = ORPOConfig


TRAINERS: dict[str, type[PreferenceTrainer]] = {
    trainer.config_class.method: trainer
    for trainer in (
        KTOTrainer,
        DPOTrainer,
        IPOTrainer,
        SimPOTrainer,
        CPOTrainer,
        RPOTrainer,
        ORPOTrainer,
        APOZeroTrainer,
        BCOTrainer,
    )
}
"""By the name that `--method` takes."""
