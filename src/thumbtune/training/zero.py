"""The zero of a batch: KTO's z0 from completions lent to other prompts, BCO's shift from the rewards of batches before.

z0 is taken over the whole batch, all microbatches and ranks, before the first backward, riding on the prompts of the
forward that just ran where the batch is one microbatch. The shift needs no pass of its own: each step uses what the
steps before it showed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from thumbtune.engine.logprobs import evaluating
from thumbtune.engine.paths import Carrier
from thumbtune.engine.ranks import Ranks
from thumbtune.preference.reference_point import (
    MovingAverage,
    RewardShift,
    estimate_reference_point,
    estimate_uniform_reference_point,
)
from thumbtune.training.finite import stop_if_not_finite
from thumbtune.training.metrics import MetricWindow
from thumbtune.training.rows import Microbatch, ScoredRows


class FindsZero(Trainer):
    """The part of the trainer that knows what counts as neither gain nor loss."""

    args: Any
    path: Any
    ranks: Ranks
    train_dataset: Any
    _cut: Any
    _evaluated: ScoredRows
    _uses_reference: bool
    _whole_model: Any
    _windows: dict[str, MetricWindow]
    _zero: str
    """Where it comes from: see `thumbtune.training.methods.Method.reference_point`."""
    _moving_point: MovingAverage | RewardShift | None
    """What earlier batches showed, where the config averages."""
    _shown: list[tuple[Tensor, Tensor]]
    """Log ratios and classes of the batch in hand, where they move the zero of the next one."""

    def _current_step(self, mode: str) -> int:
        return self.state.global_step + (mode == "train")  # a step counts once it is done

    def _held_zero(self) -> float:
        """The zero of a batch that estimates none: what the batches before it showed, or nothing."""
        return self._moving_point.value if isinstance(self._moving_point, RewardShift) else 0.0

    @torch.no_grad()
    def _estimate_reference_point(
        self, batch: Microbatch, mode: str, carrier: Carrier | None = None
    ) -> Tensor:  # () nats
        """z0 of a whole batch over all ranks, riding on the prompts of the forward that just ran where it did."""
        batch = batch.to(self.args.device)
        assert batch.mismatched_reference is not None
        dataset = self.train_dataset if mode == "train" else self._evaluated
        model = self._whole_model
        with evaluating(model), self.compute_loss_context_manager():
            if carrier is not None:
                log_probs = carrier.ride(model, batch.mismatched)
            else:
                max_tokens = self.args.max_tokens_per_microbatch or self._tokens_of_a_microbatch(batch)
                with self.ranks.in_step(model, partial(self.path.log_probs, model, batch.mismatched[:1])):
                    scores = self.path.score(model, batch.mismatched, max_tokens=max_tokens)
                log_probs = scores.to(self.args.device)
        log_ratio = log_probs - batch.mismatched_reference
        what = f"a mismatched log ratio is not a number at step {self._current_step(mode)}"
        stop_if_not_finite(log_ratio, batch.rows, dataset, what)
        everywhere = self._gather_counted(log_ratio, batch.counted) if mode == "train" else log_ratio
        estimate = estimate_reference_point if self._uses_reference else estimate_uniform_reference_point
        reference_point = estimate(everywhere)
        if mode == "train" and isinstance(self._moving_point, MovingAverage):
            reference_point = reference_point.new_tensor(self._moving_point.update(float(reference_point)))
        for name in ("z0", "kl"):  # one number: TRL's name beside ours
            self._windows[mode].add_value(name, float(reference_point))
        return reference_point

    def _move_reward_shift(self) -> None:
        """Let the batch's rewards, of all microbatches and ranks, move the zero of the next one."""
        shown = [part for of_rank in self.ranks.gather(self._shown) for part in of_rank]
        log_ratio, desirable = (torch.cat(parts) for parts in zip(*shown, strict=True))
        self._shown = []
        assert isinstance(self._moving_point, RewardShift)
        moved = self._moving_point.update(log_ratio, desirable)
        self._windows["train"].add_value("reward_shift", self.args.beta * moved)

    def _tokens_of_a_microbatch(self, batch: Microbatch) -> int:
        """What the largest microbatch by count holds: the z0 pass takes no more at once."""
        return max(
            self.path.count_tokens(batch.select(places).flat_branches()) for places in self._cut(batch)
        )

    def _gather_counted(self, values: Tensor, counted: Tensor) -> Tensor:
        """The values of all ranks whose rows count."""
        if self.args.world_size == 1:
            return values
        both = self.accelerator.pad_across_processes(torch.stack([values, counted.to(values.dtype)], dim=1))
        values, counted = self.accelerator.gather(both).T
        return values[counted.bool()]


def make_moving_point(args: Any) -> MovingAverage | RewardShift | None:
    """What a config averages over batches: BCO's shift, KTO's z0 where asked for, or nothing."""
    if hasattr(args, "reward_shift_decay"):
        return RewardShift(args.reward_shift_decay)
    decay = getattr(args, "reference_point_decay", None)
    return None if decay is None else MovingAverage(decay)
