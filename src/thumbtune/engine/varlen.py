"""Attention over a packed row in one kernel call, where a GPU has such a kernel: torch's varlen attention.

Each piece is a sequence of its own. Its queries are its tokens; its keys are its prompt's and its own, of which the
queries are the last: the kernel counts causal masks and windows from the end. Not run on a GPU so far: what is handed
to the kernel is tested, by a plain loop in its place. The trial of a model in half precision runs it; that of a float32
model, which meets it under autocast alone, does not.
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


def has_varlen_kernel(query: Tensor, value: Tensor, soft_cap: float | None) -> bool:
    """Whether one call of the kernel can do this layer."""
    return (
        varlen_attn is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and soft_cap is None
        and query.shape[-1] == value.shape[-1] <= _LARGEST_HEAD
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
        *(x[0].transpose(0, 1)[sequences.keys] for x in (keys, values)),
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

    keys: Tensor
    """Which keys each piece sees, piece after piece."""
    query_starts: Tensor
    """(N + 1,) int32: where the queries of each piece begin, and the end."""
    key_starts: Tensor
    most_queries: int
    most_keys: int


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
    return _Sequences(
        torch.cat(keys).to(device), query_starts, key_starts, max(query_lengths), max(key_lengths)
    )
