"""What is handed to the GPU's varlen kernel, by a plain loop in its place: it gives what the CPU's products give.

The kernel itself has not run: no machine here has a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.families import assert_same
from engine.test_attention import draw, lengths, make_branches
from thumbtune.engine import varlen
from thumbtune.engine.attention import Rule, attend_packed
from thumbtune.engine.logprobs import Branch
from thumbtune.engine.packing import PackedBatch, pack_branches, pack_riders
from thumbtune.engine.varlen import attend_varlen, has_varlen_kernel

windows = st.none() | st.integers(1, 12)


def plain_kernel(
    query: Tensor,  # (T, H, D)
    key: Tensor,  # (T′, K, D)
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:  # (T, H, D)
    """torch's `varlen_attn` by its documentation, a sequence at a time; masks are counted from the end."""
    assert enable_gqa
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert most_queries == int(query_starts.diff().max())
    assert most_keys == int(key_starts.diff().max())
    left, right = window_size
    outputs = []
    for first, last, first_key, last_key in zip(
        query_starts[:-1], query_starts[1:], key_starts[:-1], key_starts[1:], strict=True
    ):
        q, k, v = query[first:last], key[first_key:last_key], value[first_key:last_key]
        k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (k, v))
        scores = scale * torch.einsum("qhd,khd->hqk", q, k)
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        hidden = distance < -right
        if left >= 0:
            hidden |= distance > left
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def attend_by_kernel(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, kept: Any, window: int | None
) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", plain_kernel)
        return attend_varlen(query, key, value, kept, packed.pieces, scaling=0.35, window=window)


@given(
    lengths=lengths,
    n_fed=st.lists(st.integers(2, 7), min_size=1, max_size=4),
    window=windows,
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_rows_and_riders_are_handed_over_as_they_are(
    lengths: list[tuple[int, list[int]]], n_fed: list[int], window: int | None, seed: int
) -> None:
    branches = make_branches(lengths)
    carrier = pack_branches(branches, keep_prompts=True)
    row = [draw(heads, carrier.n_tokens, 4, seed + n) for n, heads in enumerate((4, 2, 2))]
    rule = Rule(0.35, window)
    ways = []
    for output in (
        attend_packed(*row, carrier, layer=0, rule=rule),
        attend_by_kernel(*row, carrier, None, window),
    ):
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        ways.append([output, *torch.autograd.grad((output * weights).sum(), row)])
    for expected, found in zip(*ways, strict=True):
        assert_same(found, expected, tolerance=1e-5)

    prompts = [branch.prompt_ids for branch in branches]
    others = [Branch(prompts[i % len(prompts)], [0] * n) for i, n in enumerate(n_fed)]
    riders = pack_riders(others, carrier, branches)
    assert carrier.keeps is not None
    kept = carrier.keeps.keys_values[0]
    with torch.no_grad():  # riders take none
        ride = [draw(heads, riders.n_tokens, 4, seed + 5 + n) for n, heads in enumerate((4, 2, 2))]
        expected = attend_packed(*ride, riders, layer=0, rule=rule)
        assert_same(attend_by_kernel(*ride, riders, kept, window), expected, tolerance=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "soft_cap", "fits"),
    [
        ("meta", torch.bfloat16, 64, None, False),
        ("cuda", torch.bfloat16, 64, None, True),
        ("cuda", torch.float32, 64, None, False),
        ("cuda", torch.bfloat16, 64, 30.0, False),
        ("cuda", torch.bfloat16, 512, None, False),
        ("cuda", torch.bfloat16, 12, None, False),
    ],
)
def test_the_kernel_is_taken_for_half_precision_on_a_gpu_alone(
    device: str, dtype: torch.dtype, size: int, soft_cap: float | None, fits: bool
) -> None:
    class Shape:  # a tensor on a GPU cannot be made here
        def __init__(self) -> None:
            self.device, self.dtype, self.shape = torch.device(device), dtype, (1, 4, 3, size)

    query: Any = Shape()
    assert has_varlen_kernel(query, query, soft_cap) == fits
