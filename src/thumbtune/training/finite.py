"""A number that is none stops the run, and names the rows that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thumbtune.errors import TrainingError


def stop_if_not_finite(values: Tensor, rows: Sequence[int], dataset: Any, what: str) -> None:
    """Raise `TrainingError` with the rows, by their place in the data, whose value is NaN or infinite."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if not bad:
        return
    named = ", ".join(f"row {rows[i]} ({dataset.rows.where[rows[i]]})" for i in bad[:5])
    raise TrainingError(
        f"{what}, on {len(bad)} rows: {named}. "
        "Look at these rows with `thumbtune data show`, lower learning_rate, or set max_grad_norm"
    )
