"""Metrics of a logging window, from sums and counts, so that windows and microbatches of any size average rightly."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from thumbtune.engine.ranks import Ranks
from thumbtune.preference.metrics import area_under_roc, saturated_share


class MetricWindow:
    """Gathers what happened since the last log."""

    def __init__(self) -> None:
        self._rewards: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._gains: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add_completions(
        self,
        *,
        losses: Tensor,  # (rows,)
        rewards: Tensor,  # (branches,) β × log ratio
        gains: Tensor | None,  # (branches,) β × (log ratio − z0), where the loss has such a zero
        log_probs: Tensor,  # (branches,) nats
        desirable: Tensor,  # (branches,) bool
        hits: Tensor | None = None,  # (rows,) bool, of pairs: whether the chosen one has the higher reward
    ) -> None:
        for store, value in (
            (self._losses, losses),
            (self._rewards, rewards),
            (self._log_probs, log_probs),
            (self._labels, desirable),
            (self._gains, gains),
            (self._hits, hits),
        ):
            if value is not None:
                store.append(value.detach().cpu())

    def add_value(self, name: str, value: float) -> None:
        """One value per batch, such as z0; averaged over batches."""
        self._sums[name] += value
        self._counts[name] += 1

    def gather_ranks(self, ranks: Ranks) -> MetricWindow:
        """The window over all ranks' rows; every rank has to ask."""
        parts = ranks.gather(self)
        whole = MetricWindow()
        for part in parts:
            for name in ("_rewards", "_labels", "_log_probs", "_gains", "_losses", "_hits"):
                getattr(whole, name).extend(getattr(part, name))
            for (
                name,
                total,
            ) in part._sums.items():  # of one batch the same on each rank, or of batches of its own
                whole._sums[name] += total
                whole._counts[name] += part._counts[name]
        return whole

    def summarize(self) -> dict[str, float]:
        """The window's metrics under the names that users of other trainers know, and ours beside them."""
        if not self._rewards:
            return {}
        rewards, labels = torch.cat(self._rewards), torch.cat(self._labels)
        log_probs = torch.cat(self._log_probs)
        metrics = {name: self._sums[name] / self._counts[name] for name in sorted(self._sums)}
        for name, members in (("chosen", labels), ("rejected", ~labels)):
            if members.any():
                metrics[f"rewards/{name}"] = float(rewards[members].mean())
                metrics[f"logps/{name}"] = float(log_probs[members].mean())
                metrics[f"count/{name}"] = int(members.sum())
        if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        if self._hits:
            metrics["rewards/accuracies"] = float(torch.cat(self._hits).float().mean())
        auc = area_under_roc(rewards.round(decimals=4), labels)  # closer rewards differ by rounding alone
        if auc is not None:
            metrics["auc"] = auc
        if self._gains:
            metrics["saturated_share"] = saturated_share(torch.cat(self._gains))
        return metrics

    def mean_loss(self) -> float:
        return float(torch.cat(self._losses).mean())
