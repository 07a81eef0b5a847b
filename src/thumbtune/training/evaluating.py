"""Evaluation on held-out rows: those that the trainer was made with, one set of them, or new ones."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from transformers import Trainer

from thumbtune.engine.logprobs import evaluating
from thumbtune.engine.ranks import Ranks
from thumbtune.errors import ConfigError
from thumbtune.training.config import PreferenceConfig
from thumbtune.training.eval_predictions import EvalPredictions
from thumbtune.training.metrics import MetricWindow
from thumbtune.training.rows import ScoredRows, take_share


class EvaluatesRows(Trainer):
    """The part of the trainer that measures and changes nothing."""

    args: Any
    config: Any
    eval_dataset: Any
    path: Any
    ranks: Ranks
    reference: Any
    _complete: Any
    _fingerprint_reference: Any
    _is_moving: bool
    _is_sharded: bool
    _losses: Any
    _plan: Any
    _references_ready: bool
    _score_reference: Any
    _score_references: Any
    _tokenize: Any
    _uses_reference: bool
    _whole_model: Any
    _windows: dict[str, MetricWindow]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss, z0, rewards and AUC on held-out rows, in fixed batches, against the reference.

        `eval_dataset` is None for all sets that the trainer was made with, the name of one of them, or new rows in any
        form that the trainer takes, or a dict of such. New rows are tokenized and scored by the reference now.
        """
        if self._is_sharded and not self._references_ready:
            raise ConfigError(
                "evaluate() before train() needs the weights in one piece: call train() first, with eval_on_start=True "
                "if you like, or evaluate without FSDP and DeepSpeed"
            )
        self._score_references()
        metrics: dict[str, float] = {}
        for name, dataset in self._choose_eval_sets(eval_dataset).items():
            prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
            for key, value in self._evaluate_rows(dataset).items():
                metrics[key if key.startswith(f"{prefix}_") else f"{prefix}_{key}"] = value
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _choose_eval_sets(self, given: Any) -> dict[str, ScoredRows]:
        sets = self._eval_sets()
        if given is None:
            return sets
        if isinstance(given, str):
            if given not in sets:
                raise ConfigError(
                    f"evaluate({given!r}): the trainer has {', '.join(map(repr, sets)) or 'no eval_dataset'}"
                )
            return {"": sets[given]}
        named: Mapping[str, Any] = given if isinstance(given, dict) else {"": given}
        return {name: self._score_new_rows(rows, name) for name, rows in named.items() if rows is not None}

    def _score_new_rows(self, rows: Any, name: str) -> ScoredRows:
        if isinstance(rows, ScoredRows):
            return rows
        source = f"eval_dataset {name}".strip()
        dataset = ScoredRows(self._tokenize(rows, self.processing_class, all_rows_of(self.config), source))
        if self._is_moving or not self._uses_reference:
            return dataset
        plan = self._plan(dataset.rows, self.args.per_device_eval_batch_size)
        with self.reference.at_hand() as model:
            self._score_reference(dataset, [plan.rows(0)], model, self._fingerprint_reference())
        return dataset

    @torch.no_grad()
    def _evaluate_rows(self, dataset: ScoredRows) -> dict[str, float]:
        window = self._windows["eval"] = MetricWindow()
        self._evaluated = dataset
        plan = self._plan(dataset.rows, self.args.per_device_eval_batch_size)
        model, (first, step) = self._whole_model, self.ranks.part
        lengths = dataset.lengths
        idle = partial(self.path.log_probs, model, dataset.rows.branches[0][:1])
        predictions = EvalPredictions(self.compute_metrics, self.args) if self.compute_metrics else None
        with evaluating(model), self.compute_loss_context_manager(), self.ranks.in_step(model, idle):
            for rows in itertools.islice(plan.batches(0), first, None, step):
                batch = self._complete(dataset.__getitems__(take_share(0, rows, lengths, 0, 1)))
                losses = self._losses(model, self._prepare_inputs(batch), "eval", dataset)
                if predictions is not None:
                    predictions.add(model, batch, losses)
        window = window.gather_ranks(self.ranks)
        theirs = {} if predictions is None else predictions.compute(self.ranks)
        return {"loss": window.mean_loss(), **window.summarize(), **theirs}

    def _eval_sets(self) -> dict[str, ScoredRows]:
        if self.eval_dataset is None:
            return {}
        return self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a preference trainer has no labels to predict."""
        raise ConfigError(
            "predict() is not there: a preference trainer predicts no labels. evaluate(rows) measures new rows, with "
            "compute_metrics for logits; thumbtune.evaluation draws completions"
        )


def all_rows_of(args: PreferenceConfig) -> PreferenceConfig:
    """The settings with which rows are read to be evaluated: none is left out."""
    args = copy.copy(args)
    for name, everything in (("one_per_prompt", False), ("max_pairs_per_prompt", None)):
        if hasattr(args, name):
            setattr(args, name, everything)
    return args
