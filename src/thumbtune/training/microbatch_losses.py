"""From the log-probs of a microbatch to the loss of each of its rows, and what is told of them.

The loss itself is the method's pure function; here it gets what it needs, and metrics are noted beside it.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from thumbtune.training.finite import stop_if_not_finite
from thumbtune.training.methods import Method, Scores
from thumbtune.training.router_loss import RouterLoss
from thumbtune.training.rows import Microbatch, ScoredRows
from thumbtune.training.zero import FindsZero


class ComputesLosses(FindsZero):
    """The part of the trainer that knows what a microbatch costs."""

    method: Method
    router_loss: RouterLoss | None

    def _losses(
        self, model: nn.Module, inputs: Microbatch, mode: str, dataset: ScoredRows
    ) -> Tensor:  # (rows,) float32, 0 for rows that keep step alone
        """The weighted loss of each row, with gradient; its numbers go to the window of `mode`, "train" or "eval"."""
        branches, carrier = inputs.flat_branches(), None
        with self.router_loss.watch() if self.router_loss else contextlib.nullcontext():
            if inputs.mismatched and inputs.reference_point is None:  # the microbatch is the whole batch
                log_probs, carrier = self.path.carry(model, branches)
            else:
                log_probs = self.path.log_probs(model, branches)
        log_ratio = log_probs - inputs.reference.T.flatten()  # (branches,)
        what = f"the loss is not a number at step {self._current_step(mode)}"
        stop_if_not_finite(log_ratio.view(-1, len(inputs)).sum(0), inputs.rows, dataset, what)
        reference_point = inputs.reference_point
        if carrier is not None:
            reference_point = self._estimate_reference_point(inputs, mode, carrier)
        elif reference_point is None:
            reference_point = log_ratio.new_tensor(self._held_zero())
        mean_chosen_tokens = inputs.mean_chosen_tokens
        if mean_chosen_tokens is None:  # in evaluation the microbatch is the whole batch
            mean_chosen_tokens = log_ratio.new_tensor(inputs.count_chosen_tokens() / inputs.n_total)
        scores = Scores(
            log_probs=log_probs,
            log_ratio=log_ratio,
            n_tokens=log_ratio.new_tensor([len(branch.completion_ids) for branch in branches]),
            desirable=torch.cat([inputs.desirable, ~inputs.desirable][: inputs.reference.shape[1]]),
            reference_point=reference_point,
            mean_chosen_tokens=mean_chosen_tokens,
        )
        losses = self.method.loss(self.args, scores) * inputs.weights
        if self.router_loss is not None:
            imbalance = self.router_loss.take(self.path, branches)
            losses = losses + self.router_loss.coefficient * imbalance
            self._windows[mode].add_value("aux_loss", float(imbalance.detach()))
        stop_if_not_finite(losses, inputs.rows, dataset, what)
        self._add_metrics(inputs, mode, scores, losses)
        return losses * inputs.counted

    def _add_metrics(self, inputs: Microbatch, mode: str, scores: Scores, losses: Tensor) -> None:
        """Note what is told of the rows that count; their log ratios too, where they move the next batch's zero."""
        rewards = self.method.reward(self.args, scores)
        counted = inputs.counted.repeat(inputs.reference.shape[1])
        if mode == "train" and self._zero == "classes":
            self._shown.append((scores.log_ratio.detach()[counted].cpu(), scores.desirable[counted].cpu()))
        has_zero = self._uses_reference or self._zero != "none"
        self._windows[mode].add_completions(
            losses=losses[inputs.counted],
            rewards=rewards[counted],
            gains=(rewards - self.args.beta * scores.reference_point)[counted] if has_zero else None,
            log_probs=scores.log_probs[counted],
            desirable=scores.desirable[counted],
            hits=_compare_pairs(rewards)[inputs.counted] if self.method.paired else None,
        )


def _compare_pairs(rewards: Tensor) -> Tensor:  # (2 × rows,) -> (rows,) bool
    """Whether the chosen completion of each pair has the higher reward."""
    chosen, rejected = rewards.chunk(2)
    return chosen > rejected
