"""Attention over a packed row in one kernel call, where a GPU has such a kernel: torch's varlen attention.

Each piece is a sequence of its own. Its queries are its tokens; its keys are its prompt's and its own, of which the
queries are the last: the kernel counts causal masks and windows from the end. What is handed to the kernel is tested
everywhere, by a plain loop in its place, and the kernel itself where there is a GPU (`make test-gpu`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thumbtune.engine.packing import Piece

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # an older torch
    varlen_attn = None

_LARGEST_HEAD = 256
_HEAD_STEP = 8
"""The kernel takes heads whose size is a multiple of this."""


def has_varlen_kernel(query: Tensor, value: Tensor, soft_cap: float | None) -> bool:
    """Whether one call of the kernel can do this layer."""
    return (
        varlen_attn is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and soft_cap is None
        and query.shape[-1] == value.shape[-1] <= _LARGEST_HEAD
        and query.shape[-1] % _HEAD_STEP == 0
    )


def attend_varlen(
    query: Tensor,  # (1, H, T, D)
    key: Tensor,  # (1, K, T, D)
    value: Tensor,  # (1, K, T, D)
    kept: tuple[Tensor, Tensor] | None,  # keys and values (1, K, T′, D) of the row that holds the prompts
    pieces: Sequence[Piece],
    *,
    scaling: float,
    window: int | None,
) -> Tensor:  # (1, T, H, D)
    """Softmax attention of a packed row; pieces follow one another and leave no token out."""
    keys, values = key, value
    if kept is not None:
        keys, values = (
            torch.cat([there, here], dim=2) for there, here in zip(kept, (key, value), strict=True)
        )
    n_kept = keys.shape[2] - key.shape[2]
    sequences = _list_sequences(tuple(pieces), n_kept, query.device)
    output = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        *(sequences.line_up(x[0].transpose(0, 1)) for x in (keys, values)),
        sequences.query_starts,
        sequences.key_starts,
        sequences.most_queries,
        sequences.most_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    return output.unsqueeze(0)


class _Sequences(NamedTuple):
    """N pieces as the kernel takes them."""

    keys: Tensor | None
    """Which keys each piece sees, piece after piece; None where they are its own and nothing else."""
    query_starts: Tensor
    """(N + 1,) int32: where the queries of each piece begin, and the end."""
    key_starts: Tensor
    most_queries: int
    most_keys: int

    def line_up(self, x: Tensor) -> Tensor:  # (T′, K, D) -> (keys, K, D)
        """Keys or values, piece after piece."""
        return x.contiguous() if self.keys is None else x[self.keys]


@lru_cache(maxsize=8)  # a row's layers ask for the same
def _list_sequences(pieces: tuple[Piece, ...], n_kept: int, device: torch.device) -> _Sequences:
    keys: list[Tensor] = []
    query_lengths: list[int] = []
    key_lengths: list[int] = []
    for piece in pieces:
        assert piece.start == sum(query_lengths), "the pieces of a row follow one another"
        own = torch.arange(n_kept + piece.start, n_kept + piece.stop)
        seen = own if piece.prompt is None else torch.cat([torch.arange(*piece.prompt), own])
        keys.append(seen)
        query_lengths.append(len(own))
        key_lengths.append(len(seen))
    starts = (torch.tensor([0, *lengths]).cumsum(0) for lengths in (query_lengths, key_lengths))
    query_starts, key_starts = (start.to(device, torch.int32) for start in starts)
    shares = any(piece.prompt for piece in pieces)
    return _Sequences(
        torch.cat(keys).to(device) if shares else None,
        query_starts,
        key_starts,
        max(query_lengths),
        max(key_lengths),
    )
