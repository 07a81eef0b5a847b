"""Metrics of a logging window, from sums and counts, so that windows and microbatches of any size average rightly."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from thumbtune.preference.metrics import area_under_roc, saturated_share


class MetricWindow:
    """Gathers what happened since the last log."""

    def __init__(self) -> None:
        self._rewards: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._gains: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add_completions(
        self,
        *,
        losses: Tensor,  # (rows,)
        rewards: Tensor,  # (branches,) β × log ratio
        gains: Tensor,  # (branches,) β × (log ratio − z0)
        log_probs: Tensor,  # (branches,) nats
        desirable: Tensor,  # (branches,) bool
    ) -> None:
        for store, value in (
            (self._losses, losses),
            (self._rewards, rewards),
            (self._gains, gains),
            (self._log_probs, log_probs),
            (self._labels, desirable),
        ):
            store.append(value.detach().cpu())

    def add_value(self, name: str, value: float) -> None:
        """One value per batch, such as z0; averaged over batches."""
        self._sums[name] += value
        self._counts[name] += 1

    def summarize(self) -> dict[str, float]:
        """The window's metrics under the names that users of other trainers know, and ours beside them."""
        if not self._rewards:
            return {}
        rewards, labels = torch.cat(self._rewards), torch.cat(self._labels)
        log_probs, gains = torch.cat(self._log_probs), torch.cat(self._gains)
        metrics = {name: self._sums[name] / self._counts[name] for name in sorted(self._sums)}
        for name, members in (("chosen", labels), ("rejected", ~labels)):
            if members.any():
                metrics[f"rewards/{name}"] = float(rewards[members].mean())
                metrics[f"logps/{name}"] = float(log_probs[members].mean())
                metrics[f"count/{name}"] = int(members.sum())
        if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        auc = area_under_roc(rewards.round(decimals=4), labels)  # closer rewards differ by rounding alone
        if auc is not None:
            metrics["auc"] = auc
        metrics["saturated_share"] = saturated_share(gains)
        return metrics

    def mean_loss(self) -> float:
        return float(torch.cat(self._losses).mean())
