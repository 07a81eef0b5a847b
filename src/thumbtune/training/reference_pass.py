"""The reference pass of a trainer: when each row gets its reference log-probs, and from which model.

Usually all of them, once, before step 1. Where the weights are sharded, when the parts are made. A stream's rows,
window by window. Where the reference moves, batch by batch, just before each is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Trainer

from thumbtune.engine.loading import cache_folder
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.paths import PaddedPath, choose_path
from thumbtune.engine.plan import BatchPlan, PlannedRow
from thumbtune.engine.ranks import Ranks
from thumbtune.engine.reference import reference_log_probs
from thumbtune.training.finite import stop_if_not_finite
from thumbtune.training.ranks import load_sharded_checkpoint
from thumbtune.training.rows import Microbatch, ScoredRows
from thumbtune.training.scoring import count_branches, list_lenders, score_rows


class ScoresReference(Trainer):
    """The part of the trainer that asks the reference."""

    args: Any
    on_reference_progress: Callable[[int, int], None] | None
    pad_token_id: int
    path: Any
    ranks: Ranks
    reference: Any
    stream: Any
    train_dataset: Any
    _eval_sets: Any
    _is_moving: bool
    _is_sharded: bool
    _plan: Any
    _planned_epochs: Any
    _reference_fingerprint: str | None
    _references_ready: bool
    _uses_reference: bool

    def _score_references(self) -> None:
        """Fill in the reference log-probs of all branches that will be met, once."""
        if self._references_ready:
            return
        if not self._uses_reference:
            self._references_ready = True
            return
        fingerprint = self._fingerprint_reference()
        if self._is_moving:  # each batch is scored when it is met
            self._references_ready = True
            return
        self._score_what_is_planned(fingerprint)
        if self.stream is None:
            self.reference.let_go()
        self._references_ready = True

    def _score_what_is_planned(self, fingerprint: str) -> None:
        with self.reference.at_hand() as model:
            if self.stream is None:
                self._score_reference(self.train_dataset, self._planned_epochs(), model, fingerprint)
            for dataset in self._eval_sets().values():
                plan = self._plan(dataset.rows, self.args.per_device_eval_batch_size)
                self._score_reference(dataset, [plan.rows(0)], model, fingerprint)

    def _score_window(self, window: ScoredRows, plan: BatchPlan, number: int) -> None:
        """Fill in the reference log-probs of a stream's next window."""
        if self._is_moving or not self._uses_reference:
            return
        with self.reference.at_hand() as model:
            self._score_reference(window, [plan.rows(number)], model, self._fingerprint_reference())

    @torch.no_grad()
    def _complete(self, batch: Microbatch) -> Microbatch:
        """The batch with its reference log-probs, where the reference moves and nothing could be scored before; with
        zeros where there is none."""
        if not self._uses_reference:
            return batch.without_reference()
        if not self._is_moving:
            return batch
        own = batch.flat_branches()
        with self.reference.at_hand() as model, self.compute_loss_context_manager():
            scores = self.path.score(
                model, [*own, *batch.mismatched], max_tokens=self.args.reference_max_tokens
            )
        reference, lent = scores[: len(own)].view(-1, len(batch)).T, scores[len(own) :]
        return replace(batch, reference=reference, mismatched_reference=lent if batch.mismatched else None)

    def _score_reference(
        self, dataset: ScoredRows, epochs: Iterable[Iterable[PlannedRow]], model: Any, fingerprint: str
    ) -> None:
        lenders = list_lenders(len(dataset), epochs)
        total, done = count_branches(dataset.rows, lenders), 0

        def report(done_of_block: int, _: int) -> None:
            if self.on_reference_progress is not None and self.ranks.is_main:
                self.on_reference_progress(done + done_of_block, total)

        def score(branches: Sequence[Branch]) -> Tensor:
            nonlocal done
            scores = self._score(branches, model, fingerprint, report)
            done += len(branches)
            return scores

        score_rows(dataset, lenders, score)
        assert dataset.log_probs is not None
        assert dataset.mismatched_log_probs is not None
        what = "the reference model's log-prob is not a number"
        lent = dataset.mismatched_log_probs.T[torch.from_numpy(lenders.T >= 0)]
        borrowers = torch.from_numpy((lenders.T >= 0).nonzero()[0])
        stop_if_not_finite(dataset.log_probs.sum(-1), range(len(dataset)), dataset, what)
        stop_if_not_finite(lent, borrowers.tolist(), dataset, what)

    def _score(
        self,
        branches: Sequence[Branch],
        model: Any,
        fingerprint: str,
        on_progress: Callable[[int, int], None],
    ) -> Tensor:
        cache = self.args.reference_cache
        # another model as the reference may need padding where the policy does not
        engine: Literal["padded", "auto"] = "padded" if isinstance(self.path, PaddedPath) else "auto"
        with self.compute_loss_context_manager():
            return reference_log_probs(
                model,
                branches,
                path=choose_path(model, engine, pad_token_id=self.pad_token_id),
                cache=Path(cache) if cache else cache_folder() / "reference",
                max_tokens=self.args.reference_max_tokens,
                precision="bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "float32",
                fingerprint=fingerprint,
                on_progress=on_progress,
                ranks=self.ranks,
            )

    def _fingerprint_reference(self) -> str:
        """By the main process, before the weights are shared out."""
        if self._reference_fingerprint is None:
            self._reference_fingerprint = self.ranks.decide(self.reference.fingerprint)
        return self._reference_fingerprint

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> tuple[Any, Any]:
        """Where the weights are sharded, the reference is scored with the parts: no rank has to hold the whole.

        That lies between transformers' wrapping of the model and its loading of a checkpoint into it.
        """
        if not self._is_sharded:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._score_references()
        if resume_from_checkpoint is not None:
            load_sharded_checkpoint(self, resume_from_checkpoint)
        return prepared
