"""The reference pass over a dataset: every branch that the plan will meet, once, block by block.

A block is some thousand rows with all that hangs on their prompts: their own completions, and the lent ones of every
epoch. Its scores are cached by themselves, so that a pass that was stopped goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from thumbtune.engine.logprobs import Branch
from thumbtune.engine.plan import PlannedRow
from thumbtune.training.rows import ScoredRows
from thumbtune.training.tokens import TokenizedRows

ROWS_PER_BLOCK = 4096

Score = Callable[[Sequence[Branch]], Tensor]
"""Branches to (N,) reference log-probs."""


def list_lenders(n_rows: int, epochs: Iterable[Iterable[PlannedRow]]) -> np.ndarray:  # (epochs, rows) int64
    """Who lends to each row in each epoch; −1 where the row is not met or borrows nothing."""
    lenders = []
    for planned_rows in epochs:
        of_epoch = np.full(n_rows, -1, dtype=np.int64)
        for planned in planned_rows:
            if planned.mismatched_row is not None:
                of_epoch[planned.row] = planned.mismatched_row
        lenders.append(of_epoch)
    return np.stack(lenders) if lenders else np.empty((0, n_rows), dtype=np.int64)


def count_branches(rows: TokenizedRows, lenders: np.ndarray) -> int:
    """How many branches the reference pass of these rows scores."""
    return len(rows) * len(rows.branches[0]) + int((lenders >= 0).sum())


def score_rows(dataset: ScoredRows, lenders: np.ndarray, score: Score) -> None:
    """Fill in a dataset's reference log-probs."""
    rows = dataset.rows
    log_probs = torch.empty(len(rows), len(rows.branches[0]))
    lent_log_probs = torch.full(lenders.shape, torch.nan)
    by_prompt = np.argsort(np.asarray(rows.prompt_keys), kind="stable")  # siblings share a block
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = by_prompt[start : start + ROWS_PER_BLOCK].tolist()
        own = [branch for row in block for branch in rows.branches[row]]
        lent = [(epoch, row) for row in block for epoch in range(len(lenders)) if lenders[epoch, row] >= 0]
        borrowed = [rows.mismatched_branch(PlannedRow(row, int(lenders[epoch, row]))) for epoch, row in lent]
        scores = score([*own, *borrowed])
        log_probs[block] = scores[: len(own)].view(len(block), -1)
        for (epoch, row), value in zip(lent, scores[len(own) :], strict=True):
            lent_log_probs[epoch, row] = value
    dataset.log_probs, dataset.mismatched_log_probs = log_probs, lent_log_probs
