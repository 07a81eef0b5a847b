"""What a `compute_metrics` function is given: logits and token ids of the held-out rows, as TRL gives them.

`EvalPrediction.predictions` are the policy's logits, (rows, T, V) float32: those at position t predict the token at
t + 1. `label_ids` are the token ids of prompt and completion, (rows, T). Both are padded on the right with −100. Rows
stand in the dataset's order; of pairs all chosen ones come first, then all rejected ones. With "loss" or "inputs" in
`include_for_metrics` the losses (one for each row or pair) and the token ids come along.

A preference loss needs no logits of whole rows, so they cost a forward of their own, and rows × T × V numbers of
memory: keep such an evaluation set small, or set `batch_eval_metrics`. Loss, z0, rewards and AUC need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.ranks import Ranks
from thumbtune.training.rows import Microbatch

PADDING = -100


class EvalPredictions:
    """Gathers an evaluation's predictions, and calls `compute_metrics` with them."""

    def __init__(self, compute_metrics: Any, args: Any) -> None:
        self._compute, self._args = compute_metrics, args
        self._rows: list[int] = []
        self._branches: list[list[tuple[np.ndarray, np.ndarray]]] = []
        self._losses: list[float] = []

    def add(self, model: Any, batch: Microbatch, losses: Tensor) -> None:
        """Keep a batch's predictions, or hand them on at once where metrics are asked for batch by batch."""
        if self._args.batch_eval_metrics:
            self._hand_on(compute_result=False)
        columns = [_predict(model, column) for column in zip(*batch.branches, strict=True)]
        self._rows += batch.rows
        self._branches += [list(row) for row in zip(*columns, strict=True)]
        self._losses += losses.tolist()

    def compute(self, ranks: Ranks) -> dict[str, float]:
        """The metrics. With `batch_eval_metrics` each rank computes those of its own batches."""
        if self._args.batch_eval_metrics:
            return dict(self._hand_on(compute_result=True) or {})
        for name in ("_rows", "_branches", "_losses"):
            setattr(self, name, [item for part in ranks.gather(getattr(self, name)) for item in part])
        return dict(self._compute(self._gather()) or {})

    def _hand_on(self, *, compute_result: bool) -> Any:
        if not self._rows:
            return None
        metrics = self._compute(self._gather(), compute_result=compute_result)
        self._rows, self._branches, self._losses = [], [], []
        return metrics

    def _gather(self) -> EvalPrediction:
        order = np.argsort(self._rows, kind="stable").tolist()
        columns = zip(*(self._branches[place] for place in order), strict=True)
        logits, ids = zip(*(branch for column in columns for branch in column), strict=True)
        wanted = self._args.include_for_metrics
        label_ids = _pad(ids)
        return EvalPrediction(
            predictions=_pad(logits),
            label_ids=label_ids,
            inputs=label_ids if "inputs" in wanted else None,
            losses=np.array([self._losses[place] for place in order]) if "loss" in wanted else None,
        )


@torch.no_grad()
def _predict(model: Any, branches: Sequence[Branch]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logits (T, V), ids (T,)) of each branch, by the model's own forward."""
    device = next(model.parameters()).device
    rows = [torch.tensor([*prompt_ids, *completion_ids]) for prompt_ids, completion_ids in branches]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().cpu().numpy()
    return [(logits[i, : len(row)], row.numpy()) for i, row in enumerate(rows)]


def _pad(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of different lengths as one."""
    shape = (len(arrays), max(len(array) for array in arrays), *arrays[0].shape[1:])
    padded = np.full(shape, PADDING, dtype=arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded
